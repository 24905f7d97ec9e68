"""How this project talks to Redis: one way to connect, to give up, to wait and to say what went wrong.

Owns the timeouts, the backoff and the wording of failures. Retrying is the caller's affair: a client
made here fails at once, because whoever waits for it may have a better answer of their own
(law: Redis within its budget).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from random import Random
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError

from extproc.config.redis_url import clients

#: One round trip, in the background.
OPERATION_TIMEOUT_S = 1.0
#: Between attempts: half of it fixed, half of it chance.
BACKOFF_FIRST_S, BACKOFF_LONGEST_S = 0.1, 1.0

_REASON_CHARACTERS_MAX = 200
#: What a connection to one node takes over from its cluster's client.
_OF_A_CONNECTION = frozenset(
    {
        *("host", "port", "username", "password", "protocol", "decode_responses"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive"),
        *("ssl_ca_certs", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"),
        *("ssl_check_hostname", "ssl_min_version", "ssl_ciphers"),
    }
)


def connect(url: str, *, operation_timeout_s: float = OPERATION_TIMEOUT_S) -> Redis:
    """A client that connects when first used; raises ValueError for a URL that names no Redis.

    Behind sentinels it is a client of whoever is master when a connection is made; of a cluster it is a
    `RedisCluster`, of which we use what `Redis` has too (and nothing over several slots at once). Options in
    the URL override ours, so a caller that must not wait longer holds its own `asyncio.timeout` too.
    """
    made = clients(url, operation_timeout_s=operation_timeout_s)
    where, retry = made.where, Retry(NoBackoff(), 0)
    if where is None:
        client: Redis = Redis.from_url(url, retry=retry, **made.servers)
        return client
    if not where.master:
        nodes = [ClusterNode(host, port) for host, port in where.nodes]
        return cast("Redis", RedisCluster(startup_nodes=nodes, retry=retry, **made.servers))
    asked = {**made.sentinels, "retry": retry}
    sentinels = Sentinel(where.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    found: Redis = sentinels.master_for(
        where.master, redis_class=_BehindSentinels, retry=retry, db=where.db, **made.servers
    )
    return found


class _BehindSentinels(Redis):
    """A master's client that lets go of the sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        pool: Any = self.connection_pool
        await super().aclose(close_connection_pool)
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


async def at(client: Redis, key: str) -> Redis:
    """A client of the one server that holds a key: the same one, or of a cluster that node's.

    For a subscription, and for what belongs to one slot for a session; the caller closes both.
    """
    cluster: Any = client
    if not isinstance(cluster, RedisCluster):
        return client
    await cluster.initialize()
    node = cluster.get_node_from_key(key)
    if node is None:
        raise ClusterDownError("no node holds our slot")
    settings = {name: value for name, value in node.connection_kwargs.items() if name in _OF_A_CONNECTION}
    tls = issubclass(node.connection_class, SSLConnection)
    return Redis(retry=Retry(NoBackoff(), 0), ssl=tls, **settings)


async def server_time_s(client: Redis, key: str) -> int:
    """Whole seconds of the clock of the server that holds a key."""
    return await server_time_ms(client, key) // 1_000


async def server_time_ms(client: Redis, key: str) -> int:
    """Milliseconds of the clock of the server that holds a key."""
    return await server_time_us(client, key) // 1_000


async def server_time_us(client: Redis, key: str) -> int:
    """The same in microseconds."""
    cluster: Any = client
    if isinstance(cluster, RedisCluster):
        await cluster.initialize()
        answer: Any = await cluster.execute_command("TIME", target_nodes=cluster.get_node_from_key(key))
        answer = next(iter(answer.values())) if isinstance(answer, dict) else answer
    else:
        answer = await client.time()
    return int(answer[0]) * 1_000_000 + int(answer[1])


def place(url: str) -> str:
    """Where a URL points, without what is secret in it."""
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    return where + parts.path if "+sentinel" in parts.scheme else where or parts.path


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
