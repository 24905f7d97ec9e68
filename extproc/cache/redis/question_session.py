"""What is done of kept questions while Redis is there: all is read, then what changes is told and heard.

Owns the order: whoever was away knows nothing, and reads everything anew before anything is given again. None
of it is on a request's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from extproc.cache.purging import AnswerOrigin, PurgeOrder, wanted
from extproc.cache.redis.errands import Errand, PurgeErrand
from extproc.cache.redis.question_scripts import QuestionScripts
from extproc.cache.redis.scripted import ScriptedSession, chunks
from extproc.cache.redis.scripts import read_meta
from extproc.cache.sealed import PoisonedError
from extproc.cache.semantic.books import QuestionBooks
from extproc.cache.semantic.entries import QuestionSeal, SemanticEntry
from extproc.state import redis_client
from extproc.state.redis_session import SessionWords, poisonous

log = logging.getLogger(__name__)

#: The least time between two round trips; without anything to say what others say is heard this often.
SPACING_S: Final = 0.01
HEAR_EVERY_S: Final = 0.2
#: The server's clock is looked at this often.
CLOCK_EVERY_NS: Final = 1_000_000_000
#: Errands and questions in one round trip, and changes that are heard in one.
BATCH_MAX: Final = 32
HEARD_MAX: Final = 500
WORDS = SessionWords(
    "questions", "nothing is answered in other words", "questions in other words are answered again"
)
START: Final = b"0-0"


class QuestionSession(ScriptedSession):
    """`books` are told what other services keep, check and forget."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        scripts: QuestionScripts,
        counts: Counter[str],
        refused: Counter[str],
        seal: QuestionSeal,
        books: QuestionBooks,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(
            url,
            name=name,
            words=WORDS,
            counts=counts,
            clock=clock,
            log=log,
            scripts=scripts,
            clock_key=scripts.names_key,
        )
        #: What nobody may be given by the configuration.
        self.unwanted: Callable[[str, AnswerOrigin], bool] = lambda *_: False
        self._scripts, self._refused = scripts, refused
        self._seal, self._books = seal, books
        self._heard, self._timed_ns = START, 0
        #: Times that all that waited was told, and what there was to hear was heard.
        self.turns = 0

    async def session(self, client: Redis) -> None:
        """Read everything, then tell and hear."""
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            await self._scripts.load(self.asker)
        await self.look_at_clock(client)
        await self._purge_all(client)
        await self._read_all(client)
        self.back()
        while not self._closing:
            await self.worked_within(HEAR_EVERY_S)
            await self._turn(client)
            await self.closed_within(SPACING_S)
        await self._turn(client)

    async def _turn(self, client: Redis) -> None:
        await self._purge_all(client)
        while batch := self.errands.batch(BATCH_MAX):
            await self._run_errands(client, batch)
        await self._hear(client)
        if self._clock() - self._timed_ns >= CLOCK_EVERY_NS:
            self._timed_ns = self._clock()
            await self._now_ms(client)
        self.turns += 1

    async def _run_errands(self, client: Redis, batch: list[Errand]) -> None:
        commands = []
        for each in batch:
            arguments = each.arguments
            if each.script == "keep":
                # When its request began: what was purged since is not kept.
                arguments = (*arguments[:4], self.began_ms(each.begun_ns), *arguments[4:])
            commands.append(self._scripts.of(each.script, each.scope, *arguments))
        for each, result in zip(batch, await self._pipelined(client, commands), strict=True):
            if isinstance(result, OutOfMemoryError):
                self._counts["out_of_memory"] += 1
                became = "out_of_memory"
            elif isinstance(result, Exception):
                if not poisonous(result):
                    raise result
                self._counts["script_failed"] += 1
                became = "failed"
            elif each.script == "keep":
                became = result[0].decode()
                self._counts[f"put.{became}"] += 1
                self._counts["evicted"] += result[1]
            else:
                continue
            if each.script == "keep" and became != "kept":
                # What is not kept there is not known here either.
                self._books.lose(each.scope, each.arguments[0], each.arguments[3])

    async def _read_all(self, client: Redis) -> None:
        """What is kept there is known here, and nothing else."""
        self._books.clear()
        # First where the log ends: what changes while all is read is heard again.
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            newest: Any = await client.xrevrange(self._scripts.log_key, count=1)
            names: Any = await client.hvals(self._scripts.names_key)
        self._heard = newest[0][0] if newest else START
        self._counts["reads"] += 1
        for name in names:
            scope = name.decode("utf-8", "surrogatepass")
            metas, samples = await self._done(client, self._scripts.of("list", scope))
            gone = [key for key, raw in _pairs(metas) if self._unwanted(scope, raw)]
            for some in chunks(gone, BATCH_MAX):
                await self._called(client, self._scripts.of("drop", scope, *some))
            left = set(gone)
            for some in chunks([key for key, _ in _pairs(metas) if key not in left], BATCH_MAX):
                await self._read(client, scope, some)
            self._books.take_window(scope, self._samples(scope, samples))

    async def _read(self, client: Redis, scope: str, keys: Sequence[bytes]) -> None:
        found = await self._done(client, self._scripts.of("read", scope, *keys))
        now_ns, refused = self._clock(), []
        for key, row in zip(keys, found, strict=True):
            if not row:
                continue
            try:
                entry = self._seal.read(scope, key, row[0], made_ns=now_ns - max(0, int(row[1])) * 1_000_000)
            except (PoisonedError, ValueError) as error:
                self._refused[error.reason if isinstance(error, PoisonedError) else "unreadable"] += 1
                refused.append(key)
                continue
            self._checks(entry, row[3])
            self._books.take(entry)
        if refused:
            await self._called(client, self._scripts.of("drop", scope, *refused))

    def _checks(self, entry: SemanticEntry, rows: Iterable[bytes]) -> None:
        for raw in rows:
            try:
                entry.note(self._seal.read_check(entry, raw))
            except PoisonedError as error:
                self._refused[error.reason] += 1

    def _samples(self, scope: str, rows: Iterable[bytes]) -> list[bool]:
        found = {}
        for raw in rows:
            try:
                sample = self._seal.read_sample(scope, raw)
            except PoisonedError as error:
                self._refused[error.reason] += 1
            else:
                found[sample.number] = sample.same
        return list(found.values())

    def _unwanted(self, scope: str, raw: bytes) -> bool:
        meta = read_meta(raw)
        return meta is None or self.unwanted(scope, meta.origin())

    async def _hear(self, client: Redis) -> None:
        """What other services have kept, checked and forgotten since."""
        while True:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                first: Any = await client.xrange(self._scripts.log_key, count=1)
                found: Any = await client.xread({self._scripts.log_key: self._heard}, count=HEARD_MAX)
            if self._heard != START and (not first or _at(first[0][0]) > _at(self._heard)):
                # What was said between is lost.
                await self._read_all(client)
                return
            rows = found[0][1] if found else []
            if rows:
                await self._heed(client, rows)
                self._heard = rows[-1][0]
            if len(rows) < HEARD_MAX:
                return

    async def _heed(self, client: Redis, rows: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        kept: dict[str, dict[bytes, None]] = {}
        for _, row in rows:
            if row.get(b"b") == self._name.encode():
                continue
            scope = row.get(b"s", b"").decode("utf-8", "surrogatepass")
            key, version, kind = row.get(b"i", b""), row.get(b"n", b""), row.get(b"k")
            if kind == b"keep":
                kept.setdefault(scope, {})[key] = None
            elif kind == b"drop":
                self._books.lose(scope, key, version)
            elif kind == b"check" and (entry := self._books.entry(scope, key, version)) is not None:
                self._heed_check(entry, row.get(b"v", b""), row.get(b"w", b""))
        # Read as they are now, with all their checks.
        for scope, keys in kept.items():
            for some in chunks(keys, BATCH_MAX):
                await self._read(client, scope, some)

    def _heed_check(self, entry: SemanticEntry, raw: bytes, sample: bytes) -> None:
        try:
            check = self._seal.read_check(entry, raw)
            would = bool(sample) and self._seal.read_sample(entry.scope, sample) == check
        except PoisonedError as error:
            self._refused[error.reason] += 1
        else:
            self._books.learn(entry, check, would=would)

    async def _purge(self, client: Redis, errand: PurgeErrand) -> int:
        orders = errand.orders
        self._counts["purges"] += 1
        for order in orders:
            if not order.older_ns:
                await self._done(client, self._scripts.purge(order))
        now_ms = await self._now_ms(client)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            names: Any = await client.hvals(self._scripts.names_key)
        count = 0
        for name in names:
            scope = name.decode("utf-8", "surrogatepass")
            meant = [order for order in orders if order.concerns(scope)]
            if not meant:
                continue
            found = await self._done(client, self._scripts.of("list", scope))
            gone = [key for key, raw in _pairs(found[0]) if _goes(meant, scope, key, raw, now_ms)]
            for some in chunks(gone, BATCH_MAX):
                count += await self._done(client, self._scripts.of("drop", scope, *some))
        return count


def _goes(orders: Sequence[PurgeOrder], scope: str, key: bytes, raw: bytes, now_ms: int) -> bool:
    meta = read_meta(raw)
    return meta is None or wanted(orders, scope, key, meta.origin(now_ms=now_ms))


def _pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _at(name: bytes) -> tuple[int, int]:
    """An ID of a stream, in its order."""
    ms, _, number = name.partition(b"-")
    return int(ms), int(number or b"0")
