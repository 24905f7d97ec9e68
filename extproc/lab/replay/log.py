"""Reads a record (extproc.observe.record): requests, what the fleet was, and what could not be read.

Owns tolerance: a line cut off by a kill is counted and skipped, a request that two services recorded counts
once, fields that a later version added are ignored. A record of another version is refused. Pure but for the
files it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.observe.record import MARK, PREFIX_DIGITS, VERSION
from extproc.observe.spool import FILES_KEPT, aside

#: Requests that are read at most; the rest is counted.
ROWS_MAX: Final = 2_000_000
#: A line above this is no line of ours.
LINE_BYTES_MAX: Final = 64 * 1024 * 1024


class LogError(ValueError):
    """A record that cannot be used; the message names the file and the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """One request, as FIELDS of the record. Times in ms, `at_ms` unix; None where not seen."""

    at_ms: float
    id: str
    pool: str
    outcome: str
    model: str = ""
    tenant: str = "anonymous"
    service_class: str = "standard"
    code: str = ""
    status: int = 0
    endpoint: str = ""
    strategy: str = ""
    arm: str = ""
    stream: bool = False
    sequences: int = 1
    max_new_tokens: int | None = None
    expected_input_tokens: int = 0
    expected_output_tokens: int = 0
    cached_tokens: int = 0
    expected_ttft_ms: float = 0.0
    held_ms: float = 0.0
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    block_tokens: float = 0.0
    prefix: str = ""
    question: str = ""
    unfit: str = ""
    answer_bytes: int = 0
    place: str = ""


#: What each field may be, so that a damaged line does not surface later.
_NUMBER, _COUNT = (int, float), (int,)
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("at_ms", "expected_ttft_ms", "held_ms", "duration_ms", "block_tokens"), _NUMBER),
    **dict.fromkeys(("status", "sequences", "cached_tokens", "answer_bytes"), _COUNT),
    **dict.fromkeys(("expected_input_tokens", "expected_output_tokens"), _COUNT),
    **dict.fromkeys(("max_new_tokens", "input_tokens", "output_tokens"), (int, type(None))),
    "ttft_ms": (int, float, type(None)),
    "stream": (bool,),
}
_NAMES: Final = tuple(each.name for each in fields(RecordRow))
_HEX: Final = frozenset("0123456789abcdef")
_NEEDED: Final = ("at_ms", "id", "pool", "outcome")


@dataclass(frozen=True, slots=True)
class FleetLine:
    """What the fleet was from a time on, as `observe.record.fleet_of` writes it."""

    at_ms: float
    fleet: dict[str, Any]


@dataclass(slots=True)
class Log:
    """A record as it was read: requests by arrival, fleets by time, and what is wrong with it.

    `torn` lines could not be read, `dropped` were never written, `twice` were recorded by two services,
    `beyond` were left out above ROWS_MAX.
    """

    rows: list[RecordRow] = field(default_factory=list)
    fleets: list[FleetLine] = field(default_factory=list)
    torn: int = 0
    dropped: int = 0
    twice: int = 0
    beyond: int = 0
    files: int = 0

    def between(self, from_ms: float | None, to_ms: float | None) -> Log:
        """The requests that arrived in a time; fleets stay, for the one before may be the one in force."""
        rows = [
            row
            for row in self.rows
            if (from_ms is None or row.at_ms >= from_ms) and (to_ms is None or row.at_ms < to_ms)
        ]
        return replace(self, rows=rows)


def read(path: Path) -> Log:
    """A record with the files that were put aside beside it, oldest first. Raises LogError."""
    paths = [each for number in range(FILES_KEPT, 0, -1) if (each := aside(path, number)).exists()]
    if path.exists() or not paths:
        paths.append(path)
    log = Log(files=len(paths))
    seen: dict[str, int] = {}
    headed = False
    for each in paths:
        try:
            with each.open("rb") as lines:
                headed |= _read(each, lines, log, seen)
        except OSError as error:
            raise LogError(f"{each}: cannot be read: {error.strerror}") from error
    if not headed:
        raise LogError(f"{path}: holds no header of a record; write one with 'record: {{file: …}}'")
    log.rows.sort(key=lambda row: row.at_ms)
    log.fleets.sort(key=lambda line: line.at_ms)
    return log


def _read(path: Path, lines: Any, log: Log, seen: dict[str, int]) -> bool:
    """Take one file in; whether it had a header. A file whose beginning is gone is read from its next one."""
    names: list[str] | None = None
    for number, line in enumerate(_lines(lines), start=1):
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            log.torn += 1
            continue
        if isinstance(value, dict):
            if MARK in value:
                names = _header(path, number, value)
            elif not _aside(value, log):
                log.torn += 1
            continue
        row = _row(names, value) if names is not None and isinstance(value, list) else None
        if row is None:
            log.torn += 1
        else:
            _add(log, row, seen)
    return names is not None


def _lines(lines: Any) -> Iterator[bytes]:
    while line := lines.readline(LINE_BYTES_MAX):
        if line.strip():
            yield line


def _header(path: Path, number: int, header: dict[str, Any]) -> list[str]:
    version = header[MARK]
    if version != VERSION:
        raise LogError(
            f"{path}:{number}: is a record of version {version!r}; this steersman reads version {VERSION}"
        )
    names = header.get("fields")
    if not isinstance(names, list) or not set(_NEEDED) <= set(map(str, names)):
        raise LogError(f"{path}:{number}: the header lacks the fields {', '.join(_NEEDED)}")
    return [str(name) for name in names]


def _aside(value: dict[str, Any], log: Log) -> bool:
    """A line that is no request; false when it is none that we know."""
    if isinstance(value.get("fleet"), dict) and isinstance(value.get("at_ms"), int | float):
        log.fleets.append(FleetLine(float(value["at_ms"]), value["fleet"]))
        return True
    if isinstance(value.get("dropped"), int):
        log.dropped += value["dropped"]
        return True
    return False


def _row(names: list[str], values: list[Any]) -> RecordRow | None:
    if len(values) != len(names):
        return None
    given = dict(zip(names, values, strict=True))
    known = {name: given[name] for name in _NAMES if name in given}
    for name, value in known.items():
        if type(value) not in _KINDS.get(name, (str,)):
            return None
    if not _hex(known.get("prefix", "")):
        return None
    return RecordRow(**known)


def _hex(prefix: str) -> bool:
    return len(prefix) % PREFIX_DIGITS == 0 and set(prefix) <= _HEX


def _add(log: Log, row: RecordRow, seen: dict[str, int]) -> None:
    at = seen.get(row.id)
    if at is None:
        if len(log.rows) >= ROWS_MAX:
            log.beyond += 1
            return
        seen[row.id] = len(log.rows)
        log.rows.append(row)
        return
    # Who decided knows the arrival and the prefix; who got Envoy's record knows the end.
    log.twice += 1
    first = log.rows[at]
    ended, other = (row, first) if first.outcome == "expired" else (first, row)
    if other.prefix and not ended.prefix:
        ended = replace(ended, at_ms=other.at_ms, prefix=other.prefix, block_tokens=other.block_tokens)
    if other.question and not ended.question:
        ended = replace(ended, question=other.question, unfit=other.unfit)
    log.rows[at] = ended
