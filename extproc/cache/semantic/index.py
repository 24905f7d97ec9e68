"""The kept questions of all scopes by their embeddings: which one asks the same as another.

Lives in the process that embeds. Owns one key space a scope and frame: there is no list that holds two
scopes' questions, and so no filter that could let one through. Brute force: a scope has a few thousand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

import msgspec
import numpy as np

from extproc.cache.semantic.jobs import (
    AddJob,
    CheckedEntry,
    CompareJob,
    DropJob,
    FindJob,
    FoundEntry,
    LearnJob,
    WindowJob,
)
from extproc.cache.semantic.learned import EntryChecks, ThresholdLearner
from extproc.core.cachekeys.asked import plain
from extproc.core.cachekeys.guards import GuardSignature, differs, signature

#: The nearest ones whose guards are looked at.
LOOKED_AT: Final = 8
#: Embeddings and signatures kept by the hash of the text: what is looked for is kept a moment later.
REMEMBERED_MAX: Final = 4_096

#: A text's embedding, of length 1; None where it is longer than the model reads.
Embed = Callable[[str], "np.ndarray[Any, np.dtype[np.float32]] | None"]


class KeptQuestion(msgspec.Struct):
    """One question of a frame."""

    entry: int
    vector: Any
    signature: GuardSignature
    checks: EntryChecks | None = None


class ScopeIndex:
    """The questions of one scope, by frame, and what it has learned."""

    def __init__(self) -> None:
        self.frames: dict[bytes, dict[int, KeptQuestion]] = {}
        self.where: dict[int, bytes] = {}
        self.learner = ThresholdLearner()


class SemanticIndex:
    """All scopes."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._remembered: OrderedDict[bytes, tuple[Any, GuardSignature | None]] = OrderedDict()
        self.scopes: dict[str, ScopeIndex] = {}

    def find(self, job: FindJob) -> FoundEntry:
        """The kept question most like this one that passes the guards."""
        vector, mark = self._read(job.text)
        if vector is None or mark is None:
            return FoundEntry(job=job.job, long=True)
        scope = self.scopes.get(job.scope)
        kept = list(scope.frames.get(job.frame, {}).values()) if scope is not None else []
        if scope is None or not kept:
            return FoundEntry(job=job.job)
        alike = np.stack([each.vector for each in kept]) @ vector
        refused: dict[str, int] = {}
        for at in np.argsort(-alike)[:LOOKED_AT]:
            similarity, entry = float(alike[at]), kept[int(at)]
            if similarity < job.least:
                break
            kind = differs(entry.signature, mark)
            if kind:
                refused[kind] = refused.get(kind, 0) + 1
                continue
            judged = scope.learner.judge(entry.checks, similarity, bound=job.bound, confidence=job.confidence)
            return FoundEntry(
                job=job.job,
                entry=entry.entry,
                similarity=similarity,
                wrong=judged.wrong,
                within=judged.within,
                off=scope.learner.off(job.bound),
                refused=refused,
            )
        return FoundEntry(job=job.job, refused=refused)

    def add(self, job: AddJob) -> None:
        """Keep a question; nothing where it cannot be compared."""
        vector, mark = self._read(job.text)
        if vector is None or mark is None:
            return
        scope = self.scopes.setdefault(job.scope, ScopeIndex())
        kept = KeptQuestion(job.entry, vector, mark)
        scope.frames.setdefault(job.frame, {})[job.entry] = kept
        scope.where[job.entry] = job.frame
        for similarity, same in job.checks:
            kept.checks = scope.learner.observe(kept.checks, similarity, same=same)

    def drop(self, job: DropJob) -> None:
        """Forget entries."""
        scope = self.scopes.get(job.scope)
        if scope is None:
            return
        for entry in job.entries:
            frame = scope.where.pop(entry, None)
            if frame is None:
                continue
            kept = scope.frames[frame].pop(entry)
            if kept.checks is not None:
                scope.learner.forget(kept.checks)
            if not scope.frames[frame]:
                del scope.frames[frame]
        if not scope.where:
            # What was learned goes with the last of them: a tenant that is removed leaves nothing.
            del self.scopes[job.scope]

    def check(self, job: CompareJob) -> CheckedEntry:
        """Compare two answers, and learn from it."""
        same = self.same_answer(job.kept, job.come, alike=job.alike)
        self.learn(
            LearnJob(scope=job.scope, entry=job.entry, similarity=job.similarity, same=same, would=job.would)
        )
        return CheckedEntry(job=job.job, same=same)

    def learn(self, job: LearnJob) -> None:
        """Learn from a check."""
        scope = self.scopes.get(job.scope)
        frame = scope.where.get(job.entry) if scope is not None else None
        if scope is None or frame is None:
            return
        kept = scope.frames[frame][job.entry]
        kept.checks = scope.learner.observe(kept.checks, job.similarity, same=job.same)
        if job.would:
            scope.learner.checked(same=job.same)

    def window(self, job: WindowJob) -> None:
        """Know a scope's checks of what could have been given."""
        learner = self.scopes.setdefault(job.scope, ScopeIndex()).learner
        learner.forget_checked()
        for same in job.same:
            learner.checked(same=same)

    def same_answer(self, one: str, other: str, *, alike: float) -> bool:
        """Whether two answers say the same. What cannot be told is no.

        Equal but for blanks, case and what stands at their ends; or alike, with the same numbers, units,
        negations, names and code, each as often.
        """
        if plain(one) == plain(other):
            return True
        (here, first), (there, second) = self._read(one), self._read(other)
        if first is None or second is None or first.language != "en" or second.language != "en":
            return False
        if any(getattr(first, kind) != getattr(second, kind) for kind in _TOLD_APART):
            return False
        return here is not None and there is not None and float(here @ there) >= alike

    def _read(self, text: str) -> tuple[Any, GuardSignature | None]:
        """A text's embedding and signature; remembered, as what is looked for is kept a moment later."""
        key = sha256(text.encode("utf-8", "surrogatepass")).digest()
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        read = self._remembered[key] = self._embed(text), signature(text)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return read


_TOLD_APART: Final = ("numbers", "units", "negation", "names", "code")
