"""How this project talks to Redis: one way to connect, to give up, to wait and to say what went wrong.

Owns the timeouts, the backoff and the wording of failures. Retrying is the caller's affair: a client
made here fails at once, because whoever waits for it may have a better answer of their own (law 9).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from random import Random
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

#: To connect, and one round trip, in the background.
CONNECT_TIMEOUT_S = 1.0
OPERATION_TIMEOUT_S = 1.0
#: Between attempts: half of it fixed, half of it chance.
BACKOFF_FIRST_S, BACKOFF_LONGEST_S = 0.1, 1.0

_REASON_CHARACTERS_MAX = 200


def connect(url: str, *, operation_timeout_s: float = OPERATION_TIMEOUT_S) -> Redis:
    """A client that connects when first used; raises ValueError for a URL that names no Redis.

    RESP2, and no name: every server and proxy speaks it, a user with few rights may not set one. Options
    in the URL override these, so a caller that must not wait longer holds its own `asyncio.timeout` too.
    """
    client: Redis = Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=operation_timeout_s,
        decode_responses=False,
    )
    return client


def place(url: str) -> str:
    """Where a URL points, without what is secret in it."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path


def reason(error: BaseException) -> str:
    """A failure in one line for the log: the first of a group, its text or else its type."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "timeout"
    return " ".join(str(error).split())[:_REASON_CHARACTERS_MAX] or type(error).__name__


class Transitions:
    """Redis's goings and comings, each said and counted once. The words are the caller's.

    Each `lost` and `back` is for every session that ends or begins; only a change is logged.
    """

    def __init__(self, url: str, counts: Counter[str], log: logging.Logger) -> None:
        self._where, self._counts, self._log = place(url), counts, log
        self._lost_logged = False
        self._ever_connected = False

    def lost(self, why: str, then: str, *, closing: bool) -> None:
        """A session failed: `then` says what holds without Redis."""
        self._counts["failed_sessions"] += 1
        if not self._lost_logged and not closing:
            self._lost_logged = True
            self._counts["lost"] += 1
            self._log.warning("redis %s lost (%s): %s", self._where, why, then)

    def back(self, again: str, *, sharing: str, name: str) -> None:
        """A session stands: `again` says what holds once more, `sharing` what is shared at the first."""
        if self._lost_logged:
            self._counts["back"] += 1
            self._log.info("redis %s is back: %s", self._where, again)
        elif not self._ever_connected:
            self._log.info("sharing %s through redis %s as %s", sharing, self._where, name)
        self._ever_connected = True
        self._lost_logged = False


class Backoff:
    """How long to wait before the next attempt; twice as long each time."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        longest_s = min(BACKOFF_FIRST_S * 2.0**self._attempts, BACKOFF_LONGEST_S)
        self._attempts = min(self._attempts + 1, 16)
        return longest_s / 2 + self._rng.random() * longest_s / 2

    def reset(self) -> None:
        """It held for a while: begin anew next time."""
        self._attempts = 0
