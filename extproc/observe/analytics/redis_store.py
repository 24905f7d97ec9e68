"""Figures in Redis, where several services write their own and read everybody's.

Owns the keys. All of a prefix are in one slot of a cluster:

    {prefix}:analytics:v1:LENGTH                     zset: "BEGIN:WRITER" by BEGIN, what there is
    {prefix}:analytics:v1:LENGTH:BEGIN:WRITER        hash: a writer's rows of a span by key; expires
    {prefix}:analytics:v1:claim:NAME                 who counts a request that nobody owns; expires

A writer's rows are written whole, so that a write whose answer was lost may be sent again. Waits at most
OPERATION_TIMEOUT_S for an answer; called from a thread, never on a request's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError
from redis.retry import Retry

from extproc.config.redis_url import clients, several
from extproc.observe.analytics.spans import HOUR, LENGTHS, Retention, Stretch, TimeSpan
from extproc.observe.analytics.store import StoredRow, StoreError

OPERATION_TIMEOUT_S = 2.0
#: Rows written, and spans read, in one round trip.
WRITTEN_AT_ONCE, READ_AT_ONCE = 1_000, 20
#: Spans live so much longer than they are kept, so that no clock ends them early.
SLACK_S = 2 * HOUR
CLAIM_S = HOUR

T = TypeVar("T")


class RedisStore:
    """Rows under a prefix; raises ValueError for a URL that names no Redis. `where` is for people."""

    def __init__(self, url: str, *, prefix: str, where: str) -> None:
        self.name = f"redis {where}"
        self.early = 0
        self._root = f"{{{prefix}}}:analytics:v1"
        self._url, self._connected = url, None if several(url) else _connect(url)

    @property
    def _redis(self) -> Redis:
        """Made when first needed: a cluster's client connects as it is made."""
        if self._connected is None:
            self._connected = _connect(self._url)
        return self._connected

    def write(self, entries: Sequence[StoredRow], retention: Retention) -> None:
        """Keep rows; what is written before a failure is written again by the next call."""
        for begin in range(0, len(entries), WRITTEN_AT_ONCE):
            some = entries[begin : begin + WRITTEN_AT_ONCE]
            self._tried(partial(self._write, some, retention))

    def _write(self, entries: Sequence[StoredRow], retention: Retention) -> None:
        spans: dict[tuple[TimeSpan, str], list[bytes]] = {}
        for length_s, begin_s, writer, key, data in entries:
            spans.setdefault((TimeSpan(length_s, begin_s), writer), []).extend((key, data))
        pipeline = self._redis.pipeline(transaction=False)
        for (span, writer), rows in spans.items():
            name = f"{span.begin_s}:{writer}"
            key_of_span = f"{self._root}:{span.length_s}:{name}"
            pipeline.hset(key_of_span, items=rows)
            pipeline.expireat(key_of_span, span.end_s + retention.keeps_s(span.length_s) + SLACK_S)
            pipeline.zadd(f"{self._root}:{span.length_s}", {name: span.begin_s})
        pipeline.execute()

    def read(self, stretch: Stretch) -> Iterator[StoredRow]:
        """The rows of whole spans."""
        index = f"{self._root}:{stretch.length_s}"
        names = self._tried(partial(self._names, index, stretch))
        for begin in range(0, len(names), READ_AT_ONCE):
            some = names[begin : begin + READ_AT_ONCE]
            for name, rows in zip(some, self._tried(partial(self._all, index, some)), strict=True):
                begin_s, _, writer = name.partition(":")
                for key, data in rows.items():
                    yield StoredRow(stretch.length_s, int(begin_s), writer, key, data)

    def _names(self, index: str, stretch: Stretch) -> list[str]:
        found: Any = self._redis.zrangebyscore(index, stretch.begin_s, f"({stretch.end_s}")
        return [name.decode() for name in found]

    def _all(self, index: str, names: Sequence[str]) -> list[dict[bytes, bytes]]:
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(f"{index}:{name}")
        return pipeline.execute()

    def prune(self, retention: Retention, *, now_s: int) -> None:
        """Forget what has been kept for long enough: hashes expire, their names are taken out here."""

        def prune() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            for length_s in LENGTHS:
                oldest_s = retention.since_s(length_s, now_s=now_s)
                pipeline.zremrangebyscore(f"{self._root}:{length_s}", "-inf", f"({oldest_s}")
            pipeline.execute()

        self._tried(prune)

    def claim(self, names: Sequence[str]) -> list[bool]:
        """For each name whether it was claimed now, for the first time by anybody."""

        def claim() -> list[bool]:
            pipeline = self._redis.pipeline(transaction=False)
            for name in names:
                pipeline.set(f"{self._root}:claim:{name}", b"1", nx=True, ex=CLAIM_S)
            return [bool(each) for each in pipeline.execute()]

        return self._tried(claim)

    def close(self) -> None:
        """Let go of the connections."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def _tried(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, ReadOnlyError):
                # A master that was demoted keeps its connections: the address may mean another one by now.
                self.close()
            raise StoreError(
                f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error


def _connect(url: str) -> Redis:
    """A client of one server, of Sentinel's master or of a cluster: all of ours is in one slot."""
    made = clients(url, operation_timeout_s=OPERATION_TIMEOUT_S)
    where, retry = made.where, Retry(NoBackoff(), 0)
    if where is None:
        client: Redis = Redis.from_url(url, retry=retry, **made.servers)
        return client
    if where.master:
        asked = {**made.sentinels, "retry": retry}
        sentinels = Sentinel(where.nodes, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        found: Redis = sentinels.master_for(  # type: ignore[no-untyped-call]
            where.master, retry=retry, db=where.db, **made.servers
        )
        return found
    nodes = [ClusterNode(host, port) for host, port in where.nodes]  # type: ignore[no-untyped-call]
    return cast("Redis", RedisCluster(startup_nodes=nodes, retry=retry, **made.servers))
