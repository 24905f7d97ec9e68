"""The service's side of the semantic cache: what is asked again, what is given of it, and what is checked.

Owns the order: a question that the exact cache does not know is looked for within a budget, its would-be
answer is given or checked, and what came of a check is noted. Embeddings are `SemanticPort`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.purging import wanted as meant
from extproc.cache.semantic.books import QuestionBooks, SemanticPort
from extproc.cache.semantic.entries import (
    VERSION_BYTES,
    QuestionStore,
    SemanticCheck,
    SemanticEntry,
    SemanticScope,
)
from extproc.cache.semantic.jobs import (
    CheckedEntry,
    CompareJob,
    FindJob,
    FoundEntry,
    SemanticReply,
)
from extproc.cache.store import KeptAnswer
from extproc.core.cachekeys import CachedAnswer, WantedAnswer
from extproc.core.cachekeys.asked import plain, said

#: Characters of an answer that are compared; a longer one is the same only where it is equal.
COMPARED_MAX: Final = 4_000

Told = Callable[[CachedAnswer | None], None]


class SemanticCache(QuestionBooks):
    """The kept questions of all scopes, on a request's way."""

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
        super().__init__(port, entries_max=entries_max, bytes_max=bytes_max)
        self._chance, self._clock = chance, clock
        self.budget_s = budget_s
        #: How long a question is kept after its last answer.
        self.keep_ns = keep_ns
        #: What keeps questions for other services too; None where nothing does.
        self.store: QuestionStore | None = None
        #: By tenant and outcome; by kind of guard; by what came of a check.
        self.looked: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        #: Hears of a scope that is turned off (True) or on again, with its checks and how many were wrong.
        self.turned: Callable[[str, bool, int, int], None] = lambda *_: None

    def ask(self, wanted: WantedAnswer, tenant: str, tell: Told) -> bool:
        """Look for a question that asks the same; `tell` hears of its answer, or None. False: it is not."""
        asked = wanted.asked
        if asked is None:
            return False
        if not self._port.up or (self.store is not None and not self.store.connected):
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
            self._judged(wanted, tenant, reply, tell)

        if not self._port.find(job, heard, budget_s=self.budget_s):
            self.looked[tenant, "busy"] += 1
            return False
        return True

    def _judged(self, wanted: WantedAnswer, tenant: str, reply: SemanticReply | None, tell: Told) -> None:
        """Tell the answer that may be given; None, with a check noted where there was one to check."""
        asked = wanted.asked
        if asked is None or not isinstance(reply, FoundEntry):
            self._came(wanted, tenant, "late")
            tell(None)
            return
        self.refused.update(reply.refused)
        scope = self.scopes.get(wanted.scope)
        entry = scope.entries.get(reply.entry) if scope is not None else None
        if scope is None or entry is None or entry.frame != asked.frame:
            outcome = "long" if reply.long else "refused" if reply.refused else "unknown"
            self._came(wanted, tenant, outcome)
            tell(None)
            return
        scope.entries.move_to_end(reply.entry)
        self._turn(wanted.scope, scope, off=reply.off)
        rule = asked.rule
        if entry.answer.expires_ns <= self._clock():
            # Too old to be given; its next answer renews it, with all that was learned, if it is the same.
            self._came(wanted, tenant, "stale")
            asked.entry, asked.similarity = reply.entry, reply.similarity
            tell(None)
            return
        sampled = reply.within and self._chance.random() < rule.check_share
        if reply.within and not sampled and not reply.off:
            likely = 1.0 - reply.wrong
            if self.store is None:
                tell(self._hit(wanted, tenant, entry, likely))
                return

            def heard(kept: bool) -> None:
                if not kept:
                    self._came(wanted, tenant, "gone")
                tell(self._hit(wanted, tenant, entry, likely) if kept else None)

            # Others may have purged it.
            self.store.confirm(entry, heard)
            return
        outcome = "off" if reply.within and reply.off else "check" if reply.within else "unsure"
        self._came(wanted, tenant, outcome)
        asked.entry, asked.similarity, asked.would = reply.entry, reply.similarity, reply.within
        tell(None)

    def _hit(self, wanted: WantedAnswer, tenant: str, entry: SemanticEntry, likely: float) -> CachedAnswer:
        self._came(wanted, tenant, "hit")
        entry.answer.hits += 1
        return CachedAnswer(
            body=entry.answer.body(),
            stream=entry.answer.stream,
            age_s=max(0, self._clock() - entry.answer.made_ns) // 1_000_000_000,
            usage=entry.answer.usage,
            charge=wanted.charge,
            likely=likely,
            gpu_ms=entry.answer.gpu_ms,
        )

    def _came(self, wanted: WantedAnswer, tenant: str, outcome: str) -> None:
        """What came of a question."""
        self.looked[tenant, outcome] += 1
        if wanted.asked is not None:
            wanted.asked.outcome = outcome

    def filled(self, wanted: WantedAnswer, answer: KeptAnswer, body: bytes, *, begun_ns: int) -> None:
        """A question was answered by an engine: check it against what would have been given, and keep it.

        `begun_ns`: when its request went there.
        """
        asked = wanted.asked
        if asked is None or (self.store is not None and not self.store.connected):
            return
        come = said(body, wanted.kind, stream=wanted.stream)
        if not come.strip():
            return
        scope = self.scopes.get(wanted.scope)
        entry = scope.entries.get(asked.entry) if scope is not None and asked.entry else None
        if entry is None:
            self._keep(wanted, answer, come, begun_ns)
            return

        purges = self._purges

        def heard(reply: SemanticReply | None) -> None:
            if not isinstance(reply, CheckedEntry):
                self.checks["unmade"] += 1
                return
            self.checks["same" if reply.same else "differing"] += 1
            now = self.scopes.get(wanted.scope)
            if now is not None and asked.entry in now.entries:
                check = SemanticCheck(self._chance.getrandbits(64), asked.similarity, reply.same)
                self._noted(now, entry, check, would=asked.would)
                if self.store is not None:
                    self.store.checked(entry, check, would=asked.would)
                if reply.same:
                    self._renew(now, entry, answer, come, begun_ns)
            if not reply.same and self._purges == purges:
                self._keep(wanted, answer, come, begun_ns)

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

    def _keep(self, wanted: WantedAnswer, answer: KeptAnswer, come: str, begun_ns: int) -> None:
        """Keep an answered question; what is used least goes for it."""
        asked = wanted.asked
        if asked is None:
            return
        scope = self.scopes.setdefault(wanted.scope, SemanticScope())
        before = scope.keys.get(wanted.key)
        if before is not None:
            if plain(scope.entries[before].said) == plain(come):
                self._renew(scope, scope.entries[before], answer, come, begun_ns)
                scope.entries.move_to_end(before)
                return
            # Another answer now: what was checked was the older one.
            self._forget(wanted.scope, [before])
        version = self._chance.randbytes(VERSION_BYTES)
        entry = SemanticEntry(wanted.scope, asked.frame, wanted.key, asked.text, answer, come, version)
        if self._take(entry) and self.store is not None:
            self.store.keep(entry, begun_ns=begun_ns)

    def _renew(
        self, scope: SemanticScope, entry: SemanticEntry, answer: KeptAnswer, come: str, begun_ns: int
    ) -> None:
        """The same answer has come again: it is the younger one that is given from now on."""
        self._replace(scope, entry, answer, come)
        if self.store is not None:
            self.store.keep(entry, begun_ns=begun_ns)

    def step(self, *, now_ns: int) -> None:
        """Let time pass: what is too old goes, and what is untold is told."""
        for name, scope in list(self.scopes.items()):
            # Looked at from the least recently used.
            old = [
                number
                for number, entry in list(scope.entries.items())[:64]
                if entry.answer.made_ns + self.keep_ns <= now_ns
            ]
            if old and self.store is not None:
                self.store.drop(name, [scope.entries[number].key for number in old])
            self._forget(name, old)
        self.tell_on()

    def purge(self, orders: Sequence[PurgeOrder], *, elsewhere: bool = False) -> Awaitable[int] | None:
        """Forget what one of the orders means: here, and where they are not of another service in the store.

        That it is done there, and how many went; None where there is none.
        """
        now_ns = self._clock()

        def unwanted(scope: str, key: bytes, kept: KeptAnswer) -> bool:
            age_ns = max(0, now_ns - kept.made_ns)
            return meant(orders, scope, key, AnswerOrigin(kept.tenant, kept.model, kept.pool, age_ns))

        self._purges += 1
        for name, scope in list(self.scopes.items()):
            those = [
                number for number, entry in scope.entries.items() if unwanted(name, entry.key, entry.answer)
            ]
            self._forget(name, those)
        return None if self.store is None or elsewhere else self.store.purge(orders)

    def _turn(self, name: str, scope: SemanticScope, *, off: bool) -> None:
        if off != scope.off:
            scope.off = off
            self.turned(name, off, scope.sampled, scope.wrong)
