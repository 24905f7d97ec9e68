"""What the service asks of the process that embeds, and what it answers: frames of four bytes of length and
msgpack, on standard input and output."""

from __future__ import annotations

from typing import Final

import msgspec

#: A frame is no longer.
FRAME_MAX: Final = 1024 * 1024


class FindJob(msgspec.Struct, frozen=True, kw_only=True, tag="find"):
    """Which kept question asks the same? Not answered after `until_ns` (the machine's monotonic clock)."""

    job: int
    scope: str
    frame: bytes
    text: str
    least: float
    bound: float
    confidence: float
    until_ns: int


class AddJob(msgspec.Struct, frozen=True, kw_only=True, tag="add"):
    """Keep a question as `entry`; `checks` are what was observed of it before: (similarity, same)."""

    scope: str
    frame: bytes
    entry: int
    text: str
    checks: list[tuple[float, bool]] = []


class DropJob(msgspec.Struct, frozen=True, kw_only=True, tag="drop"):
    """Forget entries of a scope."""

    scope: str
    entries: list[int]


class CompareJob(msgspec.Struct, frozen=True, kw_only=True, tag="check"):
    """Two answers to questions that are `similarity` alike: are they the same? Learn from it.

    `would`: the kept one would have been given. `alike`: the least similarity of two answers that are said in
    other words.
    """

    job: int
    scope: str
    entry: int
    similarity: float
    would: bool
    kept: str
    come: str
    alike: float


class LearnJob(msgspec.Struct, frozen=True, kw_only=True, tag="learn"):
    """Two answers were compared elsewhere: learn from it, as of `CompareJob`."""

    scope: str
    entry: int
    similarity: float
    same: bool
    would: bool


class WindowJob(msgspec.Struct, frozen=True, kw_only=True, tag="window"):
    """The checks of a scope's answers that could have been given, the oldest first; they stand for all
    before."""

    scope: str
    same: list[bool]


class ReadyReply(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded: the first that a process says. It answers no job."""

    job: int = 0


class FoundEntry(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """What was found: `entry` 0 where nothing passed. `wrong` is how likely its answer is another one."""

    job: int
    entry: int = 0
    similarity: float = 0.0
    wrong: float = 1.0
    within: bool = False
    off: bool = False
    #: By kind of guard, how many that were alike enough it refused.
    refused: dict[str, int] = {}
    #: The question is longer than the model reads.
    long: bool = False


class CheckedEntry(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """Whether two answers are the same."""

    job: int
    same: bool


SemanticJob = FindJob | AddJob | DropJob | CompareJob | LearnJob | WindowJob
#: Of those, what is told and not answered.
ToldJob = AddJob | DropJob | LearnJob | WindowJob
SemanticReply = FoundEntry | CheckedEntry | ReadyReply
