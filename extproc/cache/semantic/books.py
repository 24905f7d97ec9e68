"""The kept questions of all scopes: what is known of each, within bounds, and that the process knows it too.

Owns the books. What of them is given, checked and kept on a request's way is questions.py's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from extproc.cache.semantic.entries import SemanticCheck, SemanticEntry, SemanticScope
from extproc.cache.semantic.errors import upper
from extproc.cache.semantic.jobs import (
    AddJob,
    CompareJob,
    DropJob,
    FindJob,
    LearnJob,
    SemanticReply,
    ToldJob,
    WindowJob,
)
from extproc.cache.store import KeptAnswer

#: Entries told to a new process in a quarter of a second.
TOLD_PER_STEP: Final = 20


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

    def tell(self, job: ToldJob) -> bool:
        """Have something kept, learned or forgotten; False where it cannot be done."""


class QuestionBooks:
    """Entries by scope. `changes` counts those of what is kept and learned, `evicted` what went for room."""

    def __init__(self, port: SemanticPort, *, entries_max: int, bytes_max: int) -> None:
        self._port = port
        self.entries_max, self.bytes_max = entries_max, bytes_max
        self.scopes: dict[str, SemanticScope] = {}
        self.size = self.changes = self.evicted = 0
        #: What was purged while an answer is compared is not kept after all.
        self._purges = 0
        self._number = 0
        #: Entries that a new process has not been told of, by number and scope.
        self._untold: OrderedDict[int, str] = OrderedDict()
        #: Entries that are gone, and that the process could not be told of.
        self._undropped: list[tuple[str, int]] = []

    def begun(self) -> None:
        """A new process knows nothing: it is told again, some at each step."""
        self._undropped.clear()
        for name, scope in self.scopes.items():
            if scope.window:
                self._port.tell(WindowJob(scope=name, same=list(scope.window)))
        self._untold = OrderedDict(
            (number, name) for name, scope in self.scopes.items() for number in scope.entries
        )

    def tell_on(self) -> None:
        """Tell the process some of what it has not been told."""
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

    def clear(self) -> None:
        """Forget everything that is known here; the store has it still."""
        self._purges += 1
        for name, scope in list(self.scopes.items()):
            self._forget(name, list(scope.entries))

    def take(self, entry: SemanticEntry) -> None:
        """The store keeps this entry, with its checks; of the same version its answer is younger."""
        scope = self.scopes.get(entry.scope)
        number = scope.keys.get(entry.key) if scope is not None else None
        if scope is not None and number is not None:
            ours = scope.entries[number]
            if ours.version == entry.version:
                self._replace(scope, ours, entry.answer, entry.said)
                return
            self._forget(entry.scope, [number])
        self._take(entry)

    def take_window(self, name: str, window: Sequence[bool]) -> None:
        """What was checked of a scope's answers that could have been given, the oldest first."""
        scope = self.scopes.get(name)
        if scope is not None:
            scope.window.clear()
            scope.window.extend(window)
            self._port.tell(WindowJob(scope=name, same=list(scope.window)))

    def entry(self, name: str, key: bytes, version: bytes) -> SemanticEntry | None:
        """The one of this version."""
        scope = self.scopes.get(name)
        number = scope.keys.get(key) if scope is not None else None
        found = scope.entries[number] if scope is not None and number is not None else None
        return found if found is not None and found.version == version else None

    def learn(self, entry: SemanticEntry, check: SemanticCheck, *, would: bool) -> None:
        """Another service has checked an answer of an entry."""
        scope = self.scopes[entry.scope]
        if self._noted(scope, entry, check, would=would):
            number = scope.keys[entry.key]
            similarity, same = check.similarity, check.same
            self._port.tell(
                LearnJob(scope=entry.scope, entry=number, similarity=similarity, same=same, would=would)
            )

    def lose(self, name: str, key: bytes, version: bytes) -> None:
        """The store keeps it no more."""
        if self.entry(name, key, version) is not None:
            self._forget(name, [self.scopes[name].keys[key]])

    def _take(self, entry: SemanticEntry) -> bool:
        """Keep an entry that is not there; what is used least goes for it."""
        if entry.size > self.bytes_max:
            return False
        scope = self.scopes.setdefault(entry.scope, SemanticScope())
        self._number += 1
        self.changes += 1
        scope.entries[self._number] = entry
        scope.keys[entry.key] = self._number
        scope.size += entry.size
        self.size += entry.size
        if not self._told(self._number, entry):
            self._untold[self._number] = entry.scope
        if len(scope.entries) > self.entries_max:
            self._evict(entry.scope)
        while self.size > self.bytes_max:
            self._evict(max(self.scopes, key=lambda name: self.scopes[name].size))
        return True

    def _replace(self, scope: SemanticScope, entry: SemanticEntry, answer: KeptAnswer, come: str) -> None:
        before = entry.size
        entry.answer, entry.said = answer, come
        self.changes += 1
        scope.size += entry.size - before
        self.size += entry.size - before

    def _noted(
        self, scope: SemanticScope, entry: SemanticEntry, check: SemanticCheck, *, would: bool
    ) -> bool:
        """Keep a check; False where it is known."""
        if not entry.note(check):
            return False
        self.changes += 1
        if would:
            scope.window.append(check.same)
        return True

    def _told(self, number: int, entry: SemanticEntry) -> bool:
        return self._port.tell(
            AddJob(
                scope=entry.scope,
                frame=entry.frame,
                entry=number,
                text=entry.text,
                checks=[(each.similarity, each.same) for each in entry.checks],
            )
        )

    def _evict(self, name: str) -> None:
        self.evicted += 1
        self._forget(name, [next(iter(self.scopes[name].entries))])

    def _forget(self, name: str, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        self.changes += 1
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

    def framed(self, name: str, frame: bytes) -> int:
        """Kept questions that differ in the words alone."""
        scope = self.scopes.get(name)
        return 0 if scope is None else sum(entry.frame == frame for entry in scope.entries.values())

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
