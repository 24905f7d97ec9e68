"""What is done of answers while Redis is there: errands are run, the bound of all is held, purges are heard.

Owns the figures of all scopes as last heard. None of it is on a request's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from extproc.cache.purging import AnswerOrigin, PurgeOrder, wanted
from extproc.cache.redis.errands import Errand, PurgeErrand
from extproc.cache.redis.scripted import ScriptedSession, chunks
from extproc.cache.redis.scripts import AnswerScripts, read_meta
from extproc.cache.store import ScopeHeld
from extproc.state import redis_client
from extproc.state.redis_session import SessionWords, poisonous

log = logging.getLogger(__name__)

#: The least time between two round trips; without anything to say we look this often for others' purges, and
#: this often at the figures.
SPACING_S: Final = 0.01
LOOK_EVERY_S: Final = 0.1
HEAR_EVERY_NS, FIGURES_EVERY_NS = 200_000_000, 1_000_000_000
#: Errands in one round trip; answers of an index that are read, and dropped, at once.
BATCH_MAX: Final = 32
WALK_COUNT: Final = 500
#: Tries to make room in one turn, of the largest scope each time.
TRIMS_MAX: Final = 8
#: A scope is known for so long after it was last expected or filled; said again after half a minute.
SCOPE_S: Final = 31 * 86_400
EXPECT_EVERY_NS: Final = 30_000_000_000
#: Purges that are remembered for the other services, and for how long.
HEARD_MAX: Final = 64
HEARD_S: Final = 60
SCOPES_MAX: Final = 100_000
WORDS = SessionWords("answers", "nothing is answered from the cache", "answers are looked up again")

_orders = msgspec.msgpack.Decoder(tuple[str, tuple[PurgeOrder, ...]])


class AnswerSession(ScriptedSession):
    """`on_purged` hears what other services purge; `bytes_max` is the bound of all scopes together."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        scripts: AnswerScripts,
        bytes_max: int,
        counts: Counter[str],
        clock: Callable[[], int],
        on_purged: Callable[[Sequence[PurgeOrder]], None],
    ) -> None:
        super().__init__(
            url,
            name=name,
            words=WORDS,
            counts=counts,
            clock=clock,
            log=log,
            scripts=scripts,
            clock_key=scripts.scopes_key,
        )
        self.bytes_max = bytes_max
        #: By scope, as last heard.
        self.figures: dict[str, ScopeHeld] = {}
        #: What nobody may be given by the configuration: looked for once, when Redis is first there.
        self.unwanted: Callable[[str, AnswerOrigin], bool] | None = None
        self._scripts, self._on_purged = scripts, on_purged
        self._expected: dict[str, int] = {}
        self._expecting: set[str] = set()
        self._told: dict[str, tuple[int, int]] = {}
        self._heard = b""
        self._heard_ns = self._figures_ns = -FIGURES_EVERY_NS
        self._swept = ""
        #: Times that all that waited was told.
        self.turns = 0

    def expect(self, scope: str) -> None:
        """A purge from now on has to know of this scope."""
        now_ns = self._clock()
        if now_ns - self._expected.get(scope, -EXPECT_EVERY_NS) >= EXPECT_EVERY_NS:
            if len(self._expected) >= SCOPES_MAX:
                self._expected.clear()
            self._expected[scope] = now_ns
            self._expecting.add(scope)
            self.work.set()

    async def session(self, client: Redis) -> None:
        """Carry out what waits, then what comes."""
        # What was known to a server may not be known to this one.
        self._expecting |= self._expected.keys()
        await self._hear(client, first=True)
        await self.look_at_clock(client)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            # So that the first question finds its connection and its script.
            await self._scripts.load(self.asker)
        await self._purge_all(client)
        self.back()
        await self._tidy(client)
        while not self._closing:
            await self.worked_within(LOOK_EVERY_S)
            await self._turn(client)
            await self.closed_within(SPACING_S)
        await self._turn(client)

    async def _turn(self, client: Redis) -> None:
        now_ns = self._clock()
        await self._expect(client)
        await self._purge_all(client)
        while batch := self.errands.batch(BATCH_MAX):
            await self._run_errands(client, batch)
        if self._told:
            await self._report(client)
        if now_ns - self._heard_ns >= HEAR_EVERY_NS:
            await self._hear(client)
        if now_ns - self._figures_ns >= FIGURES_EVERY_NS:
            await self._look_at_figures(client)
        self.turns += 1

    async def _expect(self, client: Redis) -> None:
        """Writes, or fails where the server may only be read."""
        scopes, self._expecting = self._expecting, set()
        if not scopes:
            return
        try:
            until_s = await self._now_ms(client) // 1_000 + SCOPE_S
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                await client.zadd(self._scripts.scopes_key, dict.fromkeys(scopes, until_s))
        except OutOfMemoryError:
            self._counts["out_of_memory"] += 1
            self._expecting |= scopes
        except BaseException:
            self._expecting |= scopes
            raise

    async def _run_errands(self, client: Redis, batch: list[Errand]) -> None:
        commands = []
        for each in batch:
            arguments = each.arguments
            if each.script == "keep":
                # When its request began: what was purged since is not kept.
                arguments = (*arguments[:5], self.began_ms(each.begun_ns), *arguments[5:])
            commands.append(self._scripts.of(each.script, each.scope, *arguments))
        results = await self._pipelined(client, commands)
        for each, result in zip(batch, results, strict=True):
            if isinstance(result, OutOfMemoryError):
                self._counts["out_of_memory"] += 1
            elif isinstance(result, Exception):
                if not poisonous(result):
                    raise result
                # What is in its place there is none of ours.
                self._counts["script_failed"] += 1
            elif each.script == "keep":
                became, size, answers, gone = result
                self._counts[f"put.{became.decode()}"] += 1
                self._counts["evicted"] += gone
                self._told[each.scope] = (size, answers)
            elif each.script == "drop":
                self._told[each.scope] = (result[1], result[2])

    async def _report(self, client: Redis) -> None:
        """Tell what scopes hold now, and make room where all of them hold too much."""
        told, self._told = self._told, {}
        rows = [(scope, size, answers) for scope, (size, answers) in told.items()]
        for _ in range(TRIMS_MAX):
            found = await self._called(client, self._scripts.report(rows))
            if isinstance(found, OutOfMemoryError):
                self._counts["out_of_memory"] += 1
                return
            total, largest, its = int(found[0]), found[1].decode(), int(found[2])
            if total <= self.bytes_max or not largest:
                return
            most = max(0, its - (total - self.bytes_max))
            size, answers, gone = await self._called(client, self._scripts.of("trim", largest, most))
            self._counts["evicted"] += gone
            rows = [(largest, size, answers)]
        await self._called(client, self._scripts.report(rows))

    async def _hear(self, client: Redis, *, first: bool = False) -> None:
        """What others have purged since; whoever waits for such an answer waits no more."""
        self._heard_ns = self._clock()
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            # It writes: a server that may only be read, which others do not purge, fails here.
            await client.expire(self._scripts.purges_key, HEARD_S)
            found: Any = await client.lrange(self._scripts.purges_key, 0, HEARD_MAX - 1)
        newest = found[0] if found else b""
        if not first and newest != self._heard:
            known = found.index(self._heard) if self._heard in found else len(found)
            for raw in reversed(found[:known]):
                self._others(raw)
        self._heard = newest

    def _others(self, raw: bytes) -> None:
        try:
            whose, orders = _orders.decode(raw)
        except (msgspec.MsgspecError, ValueError):
            self._counts["unreadable"] += 1
            return
        if not whose.startswith(f"{self._name} "):
            self._on_purged(orders)

    async def _purge(self, client: Redis, errand: PurgeErrand) -> int:
        orders = errand.orders
        self._counts["purges"] += 1
        said = msgspec.msgpack.encode((f"{self._name} {self._counts['purges']}", orders))
        pipeline = client.pipeline(transaction=False)
        pipeline.lpush(self._scripts.purges_key, said)
        pipeline.ltrim(self._scripts.purges_key, 0, HEARD_MAX - 1)
        pipeline.expire(self._scripts.purges_key, HEARD_S)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            await pipeline.execute()
        await self._expect(client)
        count = 0
        for scope in await self._scopes(client):
            meant = [order for order in orders if order.concerns(scope)]
            for order in meant:
                if not order.older_ns:
                    await self._refusing(client, scope, order)
            if meant:
                count += await self._sift(client, scope, partial(wanted, meant, scope))
        return count

    async def _refusing(self, client: Redis, scope: str, order: PurgeOrder) -> None:
        """What began before is not kept there, whichever service it comes to."""
        await self._done(client, self._scripts.purge(scope, order))

    async def _tidy(self, client: Redis) -> None:
        """Forget what nobody may be given by the configuration that this service began with."""
        unwanted, self.unwanted = self.unwanted, None
        if unwanted is None:
            return
        for scope in await self._scopes(client):
            await self._sift(client, scope, partial(_by_origin, unwanted, scope))

    async def _scopes(self, client: Redis) -> list[str]:
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            found: Any = await client.zrange(self._scripts.scopes_key, 0, -1)
        return [name.decode("utf-8", "replace") for name in found]

    async def _sift(self, client: Redis, scope: str, unwanted: Callable[[bytes, AnswerOrigin], bool]) -> int:
        """Walk a scope's index and drop what is unwanted; what cannot be read goes too. How many."""
        gone, cursor, now_ms = 0, 0, await self._now_ms(client)
        while True:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                found: Any = await client.hscan(self._scripts.meta_key(scope), cursor, count=WALK_COUNT)
            cursor, rows = found
            keys = [key for key, raw in rows.items() if key != b"t" and _goes(key, raw, now_ms, unwanted)]
            for some in chunks(keys, WALK_COUNT):
                result = await self._done(client, self._scripts.of("drop", scope, *some))
                gone += result[0]
                self._told[scope] = (result[1], result[2])
            if not cursor:
                return gone

    async def _look_at_figures(self, client: Redis) -> None:
        """All scopes' figures; those of one scope are looked after at a time, since answers end unheard."""
        self._figures_ns = self._clock()
        seconds, scripts = await self._now_ms(client) // 1_000, self._scripts
        pipeline = client.pipeline(transaction=False)
        pipeline.zremrangebyscore(scripts.scopes_key, "-inf", seconds)
        pipeline.hgetall(scripts.bytes_key)
        pipeline.hgetall(scripts.answers_key)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            _, sizes, answers = await pipeline.execute()
        self.figures = {
            name.decode("utf-8", "replace"): ScopeHeld(int(answers.get(name, 0)), int(size))
            for name, size in sizes.items()
        }
        later = [name for name in sorted(self.figures) if name > self._swept]
        self._swept = (later or sorted(self.figures) or [""])[0]
        if self._swept:
            found = await self._called(client, scripts.of("trim", self._swept, 1 << 50))
            if not isinstance(found, Exception):
                size, count, _ = found
                await self._called(client, scripts.report([(self._swept, size, count)]))


def _by_origin(
    unwanted: Callable[[str, AnswerOrigin], bool], scope: str, _key: bytes, whose: AnswerOrigin
) -> bool:
    return unwanted(scope, whose)


def _goes(key: bytes, raw: bytes, now_ms: int, unwanted: Callable[[bytes, AnswerOrigin], bool]) -> bool:
    meta = read_meta(raw)
    return meta is None or unwanted(key, meta.origin(now_ms=now_ms))
