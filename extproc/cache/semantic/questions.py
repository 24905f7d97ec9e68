"""The service's side of the semantic cache: what was answered, what is asked again, and what is checked.

Owns the order: a question that the exact cache does not know is looked for within a budget, its would-be
answer is given or checked, and what came of a check is noted. Embeddings are `SemanticPort`'s.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

import msgspec

from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.purging import wanted as meant
from extproc.cache.semantic.errors import upper
from extproc.cache.semantic.jobs import (
    AddJob,
    CheckedEntry,
    CompareJob,
    DropJob,
    FindJob,
    FoundEntry,
    SemanticReply,
)
from extproc.cache.store import KeptAnswer
from extproc.core.cachekeys import CachedAnswer, WantedAnswer
from extproc.core.cachekeys.asked import plain, said

#: A kept question counts as so many bytes beside its text and its answer: its embedding, and what is noted.
ENTRY_BYTES: Final = 4_096
#: Checks of one entry that are kept for a process that has to learn it anew: the newest.
CHECKS_KEPT: Final = 64
#: Entries told to a new process in a quarter of a second.
TOLD_PER_STEP: Final = 20
#: Characters of an answer that are compared; a longer one is the same only where it is equal.
COMPARED_MAX: Final = 4_000

Told = Callable[[CachedAnswer | None], None]


class SemanticPort(Protocol):
    """Whatever embeds, keeps vectors and finds; nothing of it blocks."""

    @property
    def up(self) -> bool:
        """Whether it may be asked."""

    def number(self) -> int:
        """The next job's number."""

    def find(self, job: FindJob, heard: Callable[[SemanticReply | None], None], *, budget_s: float) -> bool:
        """Ask; `heard` is called once. False where it cannot be asked."""

    def check(self, job: CompareJob, heard: Callable[[SemanticReply | None], None]) -> bool:
        """Have two answers compared; False where it cannot be done."""

    def tell(self, job: AddJob | DropJob) -> bool:
        """Have something kept or forgotten; False where it cannot be done."""


class SemanticEntry(msgspec.Struct):
    """A question that was answered."""

    scope: str
    frame: bytes
    key: bytes
    text: str
    answer: KeptAnswer
    said: str
    size: int
    checks: list[tuple[float, bool]] = []


class SemanticScope(msgspec.Struct):
    """One scope's entries, the least recently used first, and the last word on its checks."""

    entries: OrderedDict[int, SemanticEntry] = msgspec.field(default_factory=OrderedDict)
    keys: dict[bytes, int] = {}
    size: int = 0
    sampled: int = 0
    wrong: int = 0
    off: bool = False


class SemanticCache:
    """The kept questions of all scopes."""

    def __init__(
        self,
        port: SemanticPort,
        *,
        budget_s: float,
        entries_max: int,
        bytes_max: int,
        keep_ns: int,
        chance: Random,
        clock: Callable[[], int],
    ) -> None:
        self._port, self._chance, self._clock = port, chance, clock
        self.budget_s, self.entries_max, self.bytes_max = budget_s, entries_max, bytes_max
        #: How long a question is kept after its last answer.
        self.keep_ns = keep_ns
        self.scopes: dict[str, SemanticScope] = {}
        self.size = 0
        self._number = 0
        #: Entries that a new process has not been told of, by number and scope.
        self._untold: OrderedDict[int, str] = OrderedDict()
        #: Entries that are gone, and that the process could not be told of.
        self._undropped: list[tuple[str, int]] = []
        #: By tenant and outcome; by kind of guard; by what came of a check.
        self.looked: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.evicted = 0
        #: What was purged while an answer is compared is not kept after all.
        self._purges = 0
        #: Hears of a scope that is turned off (True) or on again, with its checks and how many were wrong.
        self.turned: Callable[[str, bool, int, int], None] = lambda *_: None

    def ask(self, wanted: WantedAnswer, tenant: str, tell: Told) -> bool:
        """Look for a question that asks the same; `tell` hears of its answer, or None. False: it is not."""
        asked = wanted.asked
        if asked is None:
            return False
        if not self._port.up:
            self.looked[tenant, "away"] += 1
            return False
        rule = asked.rule
        job = FindJob(
            job=self._port.number(),
            scope=wanted.scope,
            frame=asked.frame,
            text=asked.text,
            least=rule.similarity_min,
            bound=rule.wrong_max,
            confidence=rule.confidence,
            until_ns=self._clock() + int(self.budget_s * 1e9),
        )

        def heard(reply: SemanticReply | None) -> None:
            tell(self._judged(wanted, tenant, reply))

        if not self._port.find(job, heard, budget_s=self.budget_s):
            self.looked[tenant, "busy"] += 1
            return False
        return True

    def _judged(self, wanted: WantedAnswer, tenant: str, reply: SemanticReply | None) -> CachedAnswer | None:
        """The answer that may be given; None, with a check noted where there was one to check."""
        asked = wanted.asked
        if asked is None or not isinstance(reply, FoundEntry):
            self.looked[tenant, "late"] += 1
            return None
        self.refused.update(reply.refused)
        scope = self.scopes.get(wanted.scope)
        entry = scope.entries.get(reply.entry) if scope is not None else None
        now_ns = self._clock()
        if scope is None or entry is None or entry.frame != asked.frame:
            outcome = "long" if reply.long else "refused" if reply.refused else "unknown"
            self.looked[tenant, outcome] += 1
            return None
        scope.entries.move_to_end(reply.entry)
        self._turn(wanted.scope, scope, off=reply.off)
        rule = asked.rule
        if entry.answer.expires_ns <= now_ns:
            # Too old to be given; its next answer renews it, with all that was learned, if it is the same.
            self.looked[tenant, "stale"] += 1
            asked.entry, asked.similarity = reply.entry, reply.similarity
            return None
        sampled = reply.within and self._chance.random() < rule.check_share
        if reply.within and not sampled and not reply.off:
            self.looked[tenant, "hit"] += 1
            entry.answer.hits += 1
            return CachedAnswer(
                body=entry.answer.body(),
                stream=entry.answer.stream,
                age_s=max(0, now_ns - entry.answer.made_ns) // 1_000_000_000,
                usage=entry.answer.usage,
                charge=wanted.charge,
                likely=1.0 - reply.wrong,
                gpu_ms=entry.answer.gpu_ms,
            )
        outcome = "off" if reply.within and reply.off else "check" if reply.within else "unsure"
        self.looked[tenant, outcome] += 1
        asked.entry, asked.similarity, asked.would = reply.entry, reply.similarity, reply.within
        return None

    def filled(self, wanted: WantedAnswer, answer: KeptAnswer, body: bytes) -> None:
        """A question was answered by an engine: check it against what would have been given, and keep it."""
        asked = wanted.asked
        if asked is None:
            return
        come = said(body, wanted.kind, stream=wanted.stream)
        if not come.strip():
            return
        scope = self.scopes.get(wanted.scope)
        entry = scope.entries.get(asked.entry) if scope is not None and asked.entry else None
        if entry is None:
            self._keep(wanted, answer, come)
            return

        purges = self._purges

        def heard(reply: SemanticReply | None) -> None:
            if not isinstance(reply, CheckedEntry):
                self.checks["unmade"] += 1
                return
            self.checks["same" if reply.same else "differing"] += 1
            now = self.scopes.get(wanted.scope)
            if now is not None:
                now.sampled, now.wrong = reply.sampled, reply.wrong
                if asked.entry in now.entries:
                    entry.checks = [*entry.checks[1 - CHECKS_KEPT :], (asked.similarity, reply.same)]
                    if reply.same:
                        self._renew(now, entry, answer, come)
            if not reply.same and self._purges == purges:
                self._keep(wanted, answer, come)

        # Equal texts are equal however long; of others only what is compared whole.
        equal = plain(entry.said) == plain(come)
        kept, new = (entry.said, come) if not equal else ("equal", "equal")
        comparable = max(len(kept), len(new)) <= COMPARED_MAX
        job = CompareJob(
            job=self._port.number(),
            scope=wanted.scope,
            entry=asked.entry,
            similarity=asked.similarity,
            would=asked.would,
            kept=kept if comparable else "one",
            come=new if comparable else "another",
            alike=asked.rule.answers_alike,
        )
        if not self._port.check(job, heard):
            heard(None)

    def _keep(self, wanted: WantedAnswer, answer: KeptAnswer, come: str) -> None:
        """Keep an answered question; what is used least goes for it."""
        asked = wanted.asked
        if asked is None:
            return
        scope = self.scopes.setdefault(wanted.scope, SemanticScope())
        before = scope.keys.get(wanted.key)
        if before is not None:
            if plain(scope.entries[before].said) == plain(come):
                self._renew(scope, scope.entries[before], answer, come)
                scope.entries.move_to_end(before)
                return
            # Another answer now: what was checked was the older one.
            self._forget(wanted.scope, [before])
            scope = self.scopes.setdefault(wanted.scope, SemanticScope())
        size = ENTRY_BYTES + len(asked.text) + len(come) + len(answer.packed)
        if size > self.bytes_max:
            return
        self._number += 1
        entry = SemanticEntry(wanted.scope, asked.frame, wanted.key, asked.text, answer, come, size)
        scope.entries[self._number] = entry
        scope.keys[wanted.key] = self._number
        scope.size += size
        self.size += size
        if not self._told(self._number, entry):
            self._untold[self._number] = wanted.scope
        if len(scope.entries) > self.entries_max:
            self._evict(wanted.scope)
        while self.size > self.bytes_max:
            self._evict(max(self.scopes, key=lambda name: self.scopes[name].size))

    def _renew(self, scope: SemanticScope, entry: SemanticEntry, answer: KeptAnswer, come: str) -> None:
        """The same answer has come again: it is the younger one that is given from now on."""
        size = ENTRY_BYTES + len(entry.text) + len(come) + len(answer.packed)
        scope.size += size - entry.size
        self.size += size - entry.size
        entry.answer, entry.said, entry.size = answer, come, size

    def begun(self) -> None:
        """A new process knows nothing: it is told again, some at each step."""
        self._undropped.clear()
        self._untold = OrderedDict(
            (number, name) for name, scope in self.scopes.items() for number in scope.entries
        )

    def step(self, *, now_ns: int) -> None:
        """Let time pass: what is too old goes, and what is untold is told."""
        for name, scope in list(self.scopes.items()):
            # Looked at from the least recently used.
            old = [
                number
                for number, entry in list(scope.entries.items())[:64]
                if entry.answer.made_ns + self.keep_ns <= now_ns
            ]
            self._forget(name, old)
        while self._undropped:
            name, gone = self._undropped[-1]
            if not self._port.tell(DropJob(scope=name, entries=[gone])):
                break
            self._undropped.pop()
        for _ in range(min(TOLD_PER_STEP, len(self._untold))):
            if not self._port.up:
                break
            number, name = next(iter(self._untold.items()))
            held = self.scopes.get(name)
            entry = held.entries.get(number) if held is not None else None
            if entry is not None and not self._told(number, entry):
                break
            self._untold.pop(number, None)

    def purge(self, orders: Sequence[PurgeOrder]) -> int:
        """Forget what one of the orders means; how many."""
        now_ns = self._clock()

        def unwanted(scope: str, key: bytes, kept: KeptAnswer) -> bool:
            age_ns = max(0, now_ns - kept.made_ns)
            return meant(orders, scope, key, AnswerOrigin(kept.tenant, kept.model, kept.pool, age_ns))

        gone = 0
        self._purges += 1
        for name, scope in list(self.scopes.items()):
            those = [
                number for number, entry in scope.entries.items() if unwanted(name, entry.key, entry.answer)
            ]
            self._forget(name, those)
            gone += len(those)
        return gone

    def clear(self) -> None:
        """Forget everything."""
        self.purge([PurgeOrder()])

    def _told(self, number: int, entry: SemanticEntry) -> bool:
        return self._port.tell(
            AddJob(scope=entry.scope, frame=entry.frame, entry=number, text=entry.text, checks=entry.checks)
        )

    def _evict(self, name: str) -> None:
        self.evicted += 1
        self._forget(name, [next(iter(self.scopes[name].entries))])

    def _forget(self, name: str, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        scope = self.scopes[name]
        for number in numbers:
            entry = scope.entries.pop(number)
            scope.keys.pop(entry.key, None)
            scope.size -= entry.size
            self.size -= entry.size
            self._untold.pop(number, None)
        # A process that is away knows nothing when it comes back.
        if not self._port.tell(DropJob(scope=name, entries=list(numbers))) and self._port.up:
            self._undropped += [(name, number) for number in numbers]
        if not scope.entries:
            del self.scopes[name]

    def _turn(self, name: str, scope: SemanticScope, *, off: bool) -> None:
        if off != scope.off:
            scope.off = off
            self.turned(name, off, scope.sampled, scope.wrong)

    def figures(self) -> dict[str, Any]:
        """What is kept, by scope."""
        return {
            name: {
                "questions": len(scope.entries),
                "bytes": scope.size,
                "checked_hits": scope.sampled,
                "wrong": scope.wrong,
                "wrong_at_most": upper(scope.wrong, scope.sampled),
                "off": scope.off,
            }
            for name, scope in self.scopes.items()
        }
