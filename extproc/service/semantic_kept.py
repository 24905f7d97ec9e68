"""The semantic cache's questions on this service's disk, over a restart: where there is no Redis for them.

Owns the file. Prompts and answers stand in it, so that it is there only where keys encrypt it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from extproc.cache.purging import AnswerOrigin
from extproc.cache.sealed import AnswerSeal, PoisonedError
from extproc.cache.semantic.books import QuestionBooks
from extproc.cache.semantic.entries import QuestionSeal, SemanticCheck, SemanticEntry
from extproc.config.model import Config
from extproc.config.secret import answer_keys
from extproc.state.whole_file import WholeFile

NAME: Final = "words.kept"
MAGIC: Final = b"steersman words 1\n"
#: How often what has changed is written.
WRITE_NS: Final = 60_000_000_000


class WrittenQuestion(msgspec.Struct, array_like=True):
    """One of them: sealed, how old its answer was when the file was written, and its checks."""

    scope: str
    key: bytes
    age_ns: int
    question: bytes
    checks: list[SemanticCheck]


class WrittenWords(msgspec.Struct):
    """The file."""

    unix_ns: int
    questions: list[WrittenQuestion]
    #: By scope, checks of answers that could have been given.
    windows: dict[str, list[bool]]


class KeptWords:
    """The file of one service's questions. `counts` are of what was read and refused."""

    def __init__(
        self,
        path: Path,
        keys: list[bytes],
        *,
        model_id: str,
        bytes_max: int,
        clock: Callable[[], int],
        unix: Callable[[], int] = time.time_ns,
    ) -> None:
        lost = "what was learned of questions in other words is learned anew"
        self._file = WholeFile(path, WrittenWords, magic=MAGIC, lost=lost, bytes_max=2 * bytes_max)
        self._seal = QuestionSeal(AnswerSeal(keys), model_id=model_id)
        self._clock, self._unix = clock, unix
        self._changes, self._next_ns = 0, 0
        self._to_write: list[tuple[list[SemanticEntry], list[bool]]] | None = None
        self.counts = {"taken": 0, "refused": 0}

    def load(self, books: QuestionBooks, unwanted: Callable[[str, AnswerOrigin], bool]) -> None:
        """Take what another process left, but for what nobody may be given."""
        written = self._file.load()
        if written is None:
            return
        now_ns = self._clock()
        # A clock that was set back makes nothing younger than it was.
        since_ns = max(0, self._unix() - written.unix_ns)
        for each in written.questions:
            made_ns = now_ns - each.age_ns - since_ns
            try:
                entry = self._seal.read(each.scope, each.key, each.question, made_ns=made_ns)
            except PoisonedError:
                self.counts["refused"] += 1
                continue
            answer = entry.answer
            if not unwanted(entry.scope, AnswerOrigin(answer.tenant, answer.model, answer.pool)):
                entry.checks = each.checks
                books.take(entry)
                self.counts["taken"] += 1
        for name, window in written.windows.items():
            books.take_window(name, window)
        self._changes = books.changes

    def step(self, books: QuestionBooks, *, now_ns: int) -> None:
        """Note what is to be written, where something has changed."""
        if now_ns < self._next_ns or books.changes == self._changes:
            return
        self._changes, self._next_ns = books.changes, now_ns + WRITE_NS
        self._to_write = [
            (list(scope.entries.values()), list(scope.window)) for scope in books.scopes.values()
        ]

    def last(self, books: QuestionBooks) -> None:
        """Write what has changed now."""
        self._next_ns = 0
        self.step(books, now_ns=self._clock())
        self.write()

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return self._to_write is not None

    def write(self) -> None:
        """Write it; in a thread: it encrypts all of it, and waits for the disk."""
        scopes, self._to_write = self._to_write, None
        if scopes is None:
            return
        now_ns = self._clock()
        questions = [
            WrittenQuestion(
                entry.scope,
                entry.key,
                max(0, now_ns - entry.answer.made_ns),
                self._seal.write(entry),
                entry.checks,
            )
            for entries, _ in scopes
            for entry in entries
        ]
        windows = {entries[0].scope: window for entries, window in scopes if entries}
        self._file.write(WrittenWords(self._unix(), questions, windows))


def kept_words(config: Config, *, model_id: str, clock: Callable[[], int]) -> KeptWords | None:
    """The file, where questions are in memory, there is a place for what is kept, and keys to encrypt it."""
    section, state = config.cache, config.state
    if section is None or section.store == "redis" or not state.enabled or state.dir is None:
        return None
    keys = answer_keys(section)
    if not keys:
        return None
    path = Path(state.dir) / NAME
    return KeptWords(path, keys, model_id=model_id, bytes_max=section.semantic.bytes_max, clock=clock)
