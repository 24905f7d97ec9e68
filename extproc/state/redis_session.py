"""One part's connections to Redis: begun again whenever they end, asked only while they stand.

Owns the tasks, who is asked, and one log line per transition. What is done in a session is its part's: the
quotas' (quota/session.py), the response cache's (cache/redis/session.py). The share of loads has a
subscription, and a way of its own (redis_share.py).
"""

from __future__ import annotations

import abc
import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from extproc.state import redis_client

#: A session that lasted this long was a good one.
GOOD_SESSION_NS = 5_000_000_000
#: After a question without an answer nobody asks for this long.
ASK_PAUSE_NS = 100_000_000
#: What a script is told whose user may not run a command of it.
NO_RIGHTS = "The user executing the script"


class SessionWords(NamedTuple):
    """What the log says: what is shared, what holds while Redis is away, and what again when it is back."""

    sharing: str
    without: str
    again: str


class RedisSession(abc.ABC):
    """Sessions one after the other; `connected` says whether one stands.

    `work` is set where there is something to say; until `pause_until_ns` nobody asks.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        words: SessionWords,
        counts: Counter[str],
        clock: Callable[[], int],
        log: logging.Logger,
    ) -> None:
        """Raises ValueError for a URL that names no Redis."""
        self.connected = False
        self.pause_until_ns = 0
        self.work = asyncio.Event()
        #: For questions; one that is refused ends the session: who answers is no server for us (any more), as
        #: a master that was demoted keeps its connections.
        self.asker = redis_client.connect(url)
        self.refused: Exception | None = None
        self._url, self._name, self._words, self._clock = url, name, words, clock
        self._transitions = redis_client.Transitions(url, counts, log)
        self._closing = False
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def shares(self, now_ns: int) -> bool:
        """Whether Redis may be asked."""
        return self.connected and now_ns >= self.pause_until_ns

    def start(self) -> None:
        """Begin in the background."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._run(), name=f"redis-{self._words.sharing}")

    async def close(self, asks: Iterable[asyncio.Task[Any]]) -> None:
        """Tell what there is to tell if Redis is there; ends within two seconds if it is not.

        `asks` are the questions under way.
        """
        self._closing = True
        self.work.set()
        self._closed.set()
        tasks = {*asks, *([self._task] if self._task else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * redis_client.OPERATION_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        self.connected = False
        with suppress(RedisError, OSError, TimeoutError):
            await self.asker.aclose()

    @abc.abstractmethod
    async def session(self, client: Redis) -> None:
        """What is done while it stands; `back` once it may be asked. Ends by an error, or as we close."""

    async def _run(self) -> None:
        backoff = redis_client.Backoff(Random(secrets.randbits(64)))
        while not self._closing:
            begun_ns = self._clock()
            client = redis_client.connect(self._url)
            try:
                await self._renew_asker()
                await self.session(client)
            except Exception as error:  # noqa: BLE001 - whatever ends a session must not end the next
                self._lost(redis_client.reason(error))
            finally:
                with suppress(RedisError, OSError, TimeoutError):
                    async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                        await client.aclose()
            if self._clock() - begun_ns > GOOD_SESSION_NS:
                backoff.reset()
            if not self._closing:
                await self.closed_within(backoff.next_s())

    async def _renew_asker(self) -> None:
        """New connections for questions too: an address may have come to mean another server."""
        before, self.asker = self.asker, redis_client.connect(self._url)
        self.refused = None
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                await before.aclose()

    async def worked_within(self, seconds: float) -> None:
        """Until there is something to say, or so long; raises what a question was refused with."""
        await _pause(self.work, seconds)
        self.work.clear()
        if self.refused is not None:
            raise self.refused

    async def closed_within(self, seconds: float) -> None:
        """So long, or until we close."""
        await _pause(self._closed, seconds)

    def failed(self, error: BaseException) -> None:
        """A question's words came to nothing: where they were refused, the session ends."""
        if isinstance(error, Exception) and refused(error):
            self.refused = error
        self.work.set()

    def back(self) -> None:
        """It stands, and may be asked."""
        self.connected = True
        self.pause_until_ns = 0
        self._transitions.back(self._words.again, sharing=self._words.sharing, name=self._name)

    def _lost(self, why: str) -> None:
        self.connected = False
        self._transitions.lost(why, self._words.without, closing=self._closing)


async def _pause(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def poisonous(error: BaseException) -> bool:
    """A fault of the script or of what it found: the same words would fail again.

    What the server itself refuses (READONLY, OOM, NOPERM, NOREPLICAS, MISCONF) is read by a class of its own
    or by the code before the text: redis-py cuts off the codes that it knows. Redis 7 has no code for a user
    with too few rights.
    """
    text = str(error)
    if type(error) is not ResponseError or "user_script" not in text or text.startswith(NO_RIGHTS):
        return False
    code = text.partition(" ")[0]
    return not code.isupper() or code in ("ERR", "WRONGTYPE")


def refused(error: BaseException) -> bool:
    """The server refused the words unread: who answers is none for us (any more)."""
    return isinstance(error, ResponseError) and not poisonous(error)
