"""The journal of quotas as lines: what a file says, line by line, and what of it is believed.

A line is eight hexadecimal digits of CRC-32, a space and one batch as JSON, so that a batch holds whole or
not at all; the first line says whose clock the times are of. Reads a file; writes none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from extproc.core.quota.kept import JournalBatch, JournalState, KeptScope
from extproc.core.quota.values import KINDS

VERSION = 1
#: A longer line is none of ours. Records of one line; a batch with more becomes several.
LINE_BYTES_MAX, RECORDS_MAX = 64 * 1024 * 1024, 20_000
#: Who reads beside other work lets it have the interpreter after so many lines.
LINES_AT_ONCE = 8


class Stamped(NamedTuple):
    """A batch as it stands in the file, with the times at which it was written, by both clocks."""

    at_ns: int
    wall_ns: int
    batch: JournalBatch


class Head(msgspec.Struct):
    """The first line."""

    version: int
    #: The machine's run: while it is the same, monotonic times go on.
    boot: str
    kinds: list[str]


@dataclass(slots=True)
class FileLines:
    """What a file held. `torn` says that its end was no whole line, `damaged` counts others like that."""

    state: JournalState = field(default_factory=JournalState)
    boot: str = ""
    at_ns: int = 0
    wall_ns: int = 0
    lines: int = 0
    torn: bool = False
    damaged: int = 0

    def move(self, *, boot: str, now_ns: int, wall_ns: int) -> Callable[[int], int]:
        """How its times become times of a clock that reads `now_ns`.

        On the same run of the machine they are already; else by the wall clock, of which no more is believed
        than that it does not run backwards.
        """
        if boot and self.boot == boot and self.at_ns <= now_ns:
            return lambda at_ns: at_ns
        shift_ns = now_ns - self.at_ns - max(0, wall_ns - self.wall_ns)
        return lambda at_ns: at_ns + shift_ns


_decoder = msgspec.json.Decoder(Stamped)
_head_decoder = msgspec.json.Decoder(Head)
_encoder = msgspec.json.Encoder()


def line(value: Stamped | Head) -> bytes:
    """A value as a line."""
    body = _encoder.encode(value)
    return b"%08x %s\n" % (crc32(body), body)


def read(path: Path, *, most: int | None = None, pause_s: float = 0.0) -> FileLines:
    """What a file says (its first `most` bytes); nothing where there is none. Raises OSError.

    A line that is not whole, or is no batch, is passed over: each batch is absolute, so the next ones hold.
    """
    found = FileLines()
    kinds = list(range(len(KINDS)))
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    left = most if most is not None else 1 << 62
    with file:
        while left > 0 and (data := file.readline(min(left, LINE_BYTES_MAX))):
            left -= len(data)
            found.lines += 1
            body = _body(data)
            found.torn = not data.endswith(b"\n")
            value = _value(body, first=found.lines == 1) if body is not None else None
            if isinstance(value, Head) and value.version == VERSION:
                found.boot, kinds = value.boot, _kinds(value.kinds)
            elif isinstance(value, Stamped):
                found.at_ns, found.wall_ns = value.at_ns, value.wall_ns
                found.state.fold(_with_kinds(value.batch, kinds))
            elif not found.torn:
                found.damaged += 1
            if pause_s and found.lines % LINES_AT_ONCE == 0:
                time.sleep(pause_s)
    return found


def _body(data: bytes) -> bytes | None:
    """What a line holds; None where it does not hold together."""
    sum_, space, body = data[:8], data[8:9], data[9:-1]
    if space != b" " or not data.endswith(b"\n"):
        return None
    try:
        return body if int(sum_, 16) == crc32(body) else None
    except ValueError:
        return None


def _value(body: bytes, *, first: bool) -> Stamped | Head | None:
    """A line's value; None where it is none of ours (another version's)."""
    try:
        if first and body.startswith(b"{"):
            return _head_decoder.decode(body)
        value = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    accounts = len(value.batch.accounts)
    return value if all(0 <= each.account < accounts for each in value.batch.held) else None


def _kinds(names: list[str]) -> list[int]:
    """This version's number of each of the file's kinds; −1 for one that is no more."""
    known = {kind.name: number for number, kind in enumerate(KINDS)}
    return [known.get(name, -1) for name in names]


def _with_kinds(batch: JournalBatch, kinds: list[int]) -> JournalBatch:
    """The batch in this version's kinds; reservations of accounts that have others are dropped as unknown."""
    if kinds == list(range(len(KINDS))):
        return batch
    mapped = dict(enumerate(kinds))

    def tats(words: dict[int, int]) -> dict[int, int]:
        return {mapped[kind]: tat for kind, tat in words.items() if mapped.get(kind, -1) >= 0}

    accounts = []
    known = set()
    for number, account in enumerate(batch.accounts):
        shaped: Any = [
            (name, [(mapped.get(kind, -1), *rest) for kind, *rest in buckets], *places)
            for name, buckets, *places in account.scopes
        ]
        accounts.append(account._replace(scopes=shaped))
        if all(bucket[0] >= 0 for _, buckets, *_ in shaped for bucket in buckets):
            known.add(number)
    return batch._replace(
        accounts=accounts,
        held=[each for each in batch.held if each.account in known],
        scopes=[
            KeptScope(each.tenant, each.name, tats(each.tats), tats(each.extra)) for each in batch.scopes
        ],
    )


def parts(batch: JournalBatch) -> list[JournalBatch]:
    """A batch in pieces that make lines of a bearable length; one where it can be."""
    most = max(len(batch.held), len(batch.ended), len(batch.gone), len(batch.scopes))
    if most <= RECORDS_MAX:
        return [batch]
    found = []
    for begin in range(0, most, RECORDS_MAX):
        cut = slice(begin, begin + RECORDS_MAX)
        found.append(
            JournalBatch(
                batch.accounts,
                batch.held[cut],
                batch.ended[cut],
                batch.gone[cut],
                batch.scopes[cut],
                {} if begin else batch.histories,
            )
        )
    return found
