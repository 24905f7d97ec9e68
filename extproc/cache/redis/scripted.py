"""A session that runs scripts: one, or many in a round trip, errors of the server among their answers.

Owns the order of purges, and what becomes of errands when Redis is lost.
"""

from __future__ import annotations

import abc
import asyncio
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from extproc.cache.redis.errands import Errands, PurgeErrand, resolved
from extproc.cache.redis.scripts import ScriptBook
from extproc.state import redis_client
from extproc.state.redis_session import RedisSession

#: Of so many looks at the server's clock the one that took the shortest counts.
CLOCK_LOOKS: Final = 4


class ScriptedSession(RedisSession):
    """`scripts` are those that it runs; the server that has `clock_key` tells the time."""

    def __init__(
        self, url: str, *, scripts: ScriptBook, clock_key: str, counts: Counter[str], **of_session: Any
    ) -> None:
        super().__init__(url, counts=counts, **of_session)
        self._book, self._clock_key, self._counts = scripts, clock_key, counts
        self.errands = Errands(counts)
        #: How far the server's clock is ahead of ours at least, microseconds, by the last looks.
        self._ahead_us: deque[int] = deque(maxlen=CLOCK_LOOKS)

    def began_ms(self, begun_ns: int) -> int:
        """When a request began by the server's clock, rather too early: a purge in doubt counts."""
        return (begun_ns // 1_000 + max(self._ahead_us, default=0)) // 1_000

    async def look_at_clock(self, client: Redis) -> None:
        """Know the server's clock anew: it may be another server."""
        self._ahead_us.clear()
        for _ in range(CLOCK_LOOKS):
            await self._now_ms(client)

    async def _now_ms(self, client: Redis) -> int:
        """The server's clock."""
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            now_us = await redis_client.server_time_us(client, self._clock_key)
        self._ahead_us.append(now_us - math.ceil(self._clock() / 1e3))
        return now_us // 1_000

    @abc.abstractmethod
    async def _purge(self, client: Redis, errand: PurgeErrand) -> int:
        """Carry out a purge; how many went."""

    async def _purge_all(self, client: Redis) -> None:
        """Carry out the purges that wait; one that fails is tried again in the next session."""
        purges = self.errands.purges
        while purges:
            errand = purges[0]
            count = await self._purge(client, errand)
            if purges and purges[0] is errand:
                purges.popleft()
            resolved(errand, count)

    def _lost(self, why: str) -> None:
        super()._lost(why)
        # What waited to be told is not worth waiting for: answers come again, questions are read anew.
        if dropped := self.errands.forget():
            self._counts["dropped.away"] += dropped

    async def _pipelined(self, client: Redis, commands: list[tuple[Any, ...]]) -> list[Any]:
        """The commands' answers, errors of the server among them."""
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            results: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(result, NoScriptError) for result in results):
            for at, result in enumerate(results):
                if isinstance(result, NoScriptError):
                    results[at] = await self._called(client, commands[at])
        return results

    async def _called(self, client: Redis, command: tuple[Any, ...]) -> Any:
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            try:
                return await self._book.call(client, command)
            except OutOfMemoryError as error:
                return error

    async def _done(self, client: Redis, command: tuple[Any, ...]) -> Any:
        """The same, of what has to be done: raises what the server said instead."""
        result = await self._called(client, command)
        if isinstance(result, Exception):
            raise result
        return result


def chunks(keys: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """At most so many at once."""
    rest = iter(keys)
    while some := list(islice(rest, most)):
        yield some
