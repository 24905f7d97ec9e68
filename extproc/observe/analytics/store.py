"""Where figures are kept: the port, and the one in memory.

Owns what a store is asked to do. It keeps opaque rows by span, writer and key; a writer's row is written
whole each time, so that writing it twice does no harm, and the same span's rows of several writers add up.
All calls come from one thread, and may wait for a disk or a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from extproc.observe.analytics.spans import LENGTHS, Retention, Stretch

#: Rows that memory holds; above it the oldest minutes go first, then the oldest hours, then days.
MEMORY_ROWS_MAX = 50_000


class StoreError(Exception):
    """It could not be read or written; in one line, why."""


class StoredRow(NamedTuple):
    """One row of a span: who wrote it, its key, its figures as written."""

    length_s: int
    begin_s: int
    writer: str
    key: bytes
    data: bytes


class AnalyticsStore(Protocol):
    """The port. Every method but `close` may raise StoreError, after which it may be called again."""

    #: What it is, for people.
    name: str
    #: Rows that it gave up before their time, for want of room.
    early: int

    def write(self, entries: Sequence[StoredRow], retention: Retention) -> None:
        """Keep rows, in the place of those with the same span, writer and key: all of them or none."""

    def read(self, stretch: Stretch) -> Iterator[StoredRow]:
        """The rows of whole spans, in no order."""

    def prune(self, retention: Retention, *, now_s: int) -> None:
        """Forget what has been kept for long enough."""

    def claim(self, names: Sequence[str]) -> list[bool]:
        """For each name whether it was claimed now, for the first time by anybody within an hour."""

    def close(self) -> None:
        """Let go of files and connections."""


class MemoryStore:
    """Rows of this process, for as long as it lives."""

    name = "memory"

    def __init__(self, *, rows_max: int = MEMORY_ROWS_MAX) -> None:
        self.rows_max = rows_max
        self.early = 0
        self._rows: dict[int, dict[int, dict[tuple[str, bytes], bytes]]] = {each: {} for each in LENGTHS}
        self._count = 0

    def write(self, entries: Sequence[StoredRow], retention: Retention) -> None:  # noqa: ARG002 (the port's)
        """Keep rows; the oldest go when there are too many."""
        for length_s, begin_s, writer, key, data in entries:
            rows = self._rows[length_s].setdefault(begin_s, {})
            self._count += (writer, key) not in rows
            rows[writer, key] = data
        while self._count > self.rows_max:
            # One span of each length stays, however large: it is being written.
            several = [each for each in LENGTHS if len(self._rows[each]) > 1]
            if not several:
                break
            self.early += self._drop(several[0], min(self._rows[several[0]]))

    def read(self, stretch: Stretch) -> Iterator[StoredRow]:
        """The rows of whole spans."""
        spans = self._rows[stretch.length_s]
        for begin_s in [each for each in spans if stretch.begin_s <= each < stretch.end_s]:
            for (writer, key), data in list(spans[begin_s].items()):
                yield StoredRow(stretch.length_s, begin_s, writer, key, data)

    def prune(self, retention: Retention, *, now_s: int) -> None:
        """Forget what has been kept for long enough."""
        for length_s, spans in self._rows.items():
            oldest_s = retention.since_s(length_s, now_s=now_s)
            for begin_s in [each for each in spans if each < oldest_s]:
                self._drop(length_s, begin_s)

    def claim(self, names: Sequence[str]) -> list[bool]:
        """There is nobody else."""
        return [True] * len(names)

    def close(self) -> None:
        """Nothing to let go of."""

    def _drop(self, length_s: int, begin_s: int) -> int:
        gone = len(self._rows[length_s].pop(begin_s))
        self._count -= gone
        return gone
