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
    """Whether two answers are the same; and of the scope, checks of answers that would have been given, and
    how many of those were wrong."""

    job: int
    same: bool
    sampled: int = 0
    wrong: int = 0


SemanticJob = FindJob | AddJob | DropJob | CompareJob
SemanticReply = FoundEntry | CheckedEntry | ReadyReply
