"""A real redis-server of one's own, and services that share through it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis_harness import Redis as RedisServer

from extproc.state.redis_share import RedisShare
from extproc.state.share import PeerLoads

#: A turn of the event loop that comes this much too late was held by us: a call that waits for Redis takes a
#: second. What others on the machine take is less.
LATE_S = 0.5


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that a test may kill, halt and start again."""
    with RedisServer(tmp_path) as server:
        yield server


class Service:
    """One service: its own loads to change, and what it has heard."""

    def __init__(self, url: str, name: str, *, interval_ms: int = 100) -> None:
        self.loads: dict[tuple[str, str], tuple[int, int, int]] = {}
        self.reports: list[tuple[str, bytes]] = []
        self.changed: set[tuple[str, str]] = set()
        self.share = RedisShare(
            url,
            service_id=name,
            interval_ms=interval_ms,
            loads=lambda: self.loads,
            on_peers=self._on_peers,
            on_report=lambda node, data: self.reports.append((node, data)),
        )

    def _on_peers(self, peers: PeerLoads) -> None:
        self.changed |= peers.changed

    def sees(self, pool: str, address: str) -> tuple[int, int, int]:
        return self.share.peers.load(pool, address)

    async def die(self) -> None:
        """End without a goodbye."""
        for task in self.share._tasks:
            task.cancel()
        await asyncio.gather(*self.share._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def services(url: str, *names: str) -> AsyncIterator[list[Service]]:
    """Services that have found each other."""
    started = [Service(url, name) for name in names]
    for service in started:
        await service.share.start()
    try:
        await until(lambda: all(s.share.peers.deciders == len(names) for s in started))
        yield started
    finally:
        await asyncio.gather(*(service.share.close() for service in started))


async def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> float:
    """Wait for a condition; returns the seconds it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, "it did not happen in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


class Lag:
    """How late the event loop was, in seconds; `blocked` leaves out one turn: the scheduler may take it."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.late = 0

    @property
    def blocked(self) -> bool:
        return self.late > 1

    async def __aenter__(self) -> Lag:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            late_s = time.monotonic() - begun - 0.005
            self.worst_s = max(self.worst_s, late_s)
            self.late += late_s >= LATE_S
