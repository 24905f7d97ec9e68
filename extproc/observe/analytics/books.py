"""The figures of the spans under way: events come in, rows that have changed go to the store.

Owns how many rows a span has, and what waits to be written. A minute's rows collect what is new; `changes`
adds that to the minute's, the hour's and the day's rows as they were last written, so each span is whole by
itself and nothing is rolled up later. Rows stay here until their span is over and they are written. No I/O.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from extproc.observe.analytics.row import ALL_OTHER, OTHER, AnalyticsRow, RowKey, decoded
from extproc.observe.analytics.spans import DAY, LENGTHS, MINUTE, TimeSpan, span_of
from extproc.observe.analytics.store import StoredRow

#: Keys with a row of their own, in a minute and an hour, and in a day.
ROWS_MAX, DAY_ROWS_MAX = 2_000, 20_000
#: Rows for what has none, by pool, model and strategy; beyond those there is one.
OTHER_ROWS_MAX = 256
#: The share of a span's rows from which on places have none of their own: tenants are charged by theirs.
PLACED_SHARE = 0.5
#: Rows that collect what is new; above it they are added up early.
FRESH_MAX = 5_000
#: Rows that wait for a store that cannot be written; the oldest minutes are given up above it, then hours.
UNWRITTEN_MAX = 50_000
#: A span is let go of so long after its end: what ended in it may still wait for the thread.
LATE_S = 5
#: Done in one go: the event loop's thread gets its turn between.
AT_ONCE, PAUSE_S = 16, 0.0005


@dataclass(slots=True)
class _Open:
    """A span's rows as they were last written, and which of them are newer than the store's."""

    writer: str
    rows: dict[RowKey, bytes] = field(default_factory=dict)
    unwritten: dict[RowKey, None] = field(default_factory=dict)


class OpenSpans:
    """One service's spans under way. `writer` is unique to this process's life."""

    def __init__(
        self,
        writer: str,
        *,
        rows_max: int = ROWS_MAX,
        day_rows_max: int = DAY_ROWS_MAX,
        unwritten_max: int = UNWRITTEN_MAX,
        pause_s: float = 0.0,
    ) -> None:
        self.rows_max, self.day_rows_max, self.unwritten_max = rows_max, day_rows_max, unwritten_max
        self.counts: Counter[str] = Counter()
        self._writer, self._pause_s = writer, pause_s
        self._fresh: dict[tuple[int, RowKey], AnalyticsRow] = {}
        self._open: dict[TimeSpan, _Open] = {}
        #: The newest span of each length that was let go of, and how often an older one came back.
        self._gone_s = dict.fromkeys(LENGTHS, -1)
        self._returned = 0

    @property
    def rows(self) -> int:
        """Rows that are held."""
        return sum(len(each.rows) for each in self._open.values())

    @property
    def unwritten(self) -> int:
        """Rows of which the store does not know the newest."""
        return sum(len(each.unwritten) for each in self._open.values())

    def fold(self, events: Iterable[tuple[int, RowKey, Any, tuple[Any, ...]]]) -> None:
        """Take events: (when in unix seconds, whose, how it counts, and with what)."""
        for number, (at_s, key, how, what) in enumerate(events, start=1):
            minute = at_s - at_s % MINUTE
            row = self._fresh.get((minute, key))
            if row is None:
                if len(self._fresh) >= FRESH_MAX:
                    self._add_up()
                row = self._fresh[minute, key] = AnalyticsRow()
            how(row, *what)
            if number % AT_ONCE == 0:
                self._rest()

    def changes(self) -> list[StoredRow]:
        """All rows of which the store does not know the newest: the same again until they are
        `written`."""
        self._add_up()
        self._give_up()
        found: list[StoredRow] = []
        for span, each in self._open.items():
            for key in each.unwritten:
                found.append(
                    StoredRow(span.length_s, span.begin_s, each.writer, encoded(key), each.rows[key])
                )
                if len(found) % (AT_ONCE * AT_ONCE) == 0:
                    self._rest()
        return found

    def written(self, *, now_s: int) -> None:
        """The store has all that `changes` said; spans that are over are let go of."""
        for span, each in list(self._open.items()):
            each.unwritten.clear()
            if span.end_s + LATE_S <= now_s:
                del self._open[span]
                self._gone_s[span.length_s] = max(self._gone_s[span.length_s], span.begin_s)

    def held(self) -> Iterator[StoredRow]:
        """All rows that are held."""
        for span, each in self._open.items():
            for key, data in each.rows.items():
                yield StoredRow(span.length_s, span.begin_s, each.writer, encoded(key), data)

    def _add_up(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for number, ((minute, key), row) in enumerate(fresh.items(), start=1):
            for length_s in LENGTHS:
                self._add(self._span(span_of(minute, length_s)), length_s, key, row)
            if number % AT_ONCE == 0:
                self._rest()

    def _span(self, span: TimeSpan) -> _Open:
        found = self._open.get(span)
        if found is None:
            writer = self._writer
            if span.begin_s <= self._gone_s[span.length_s]:
                # The wall clock was set back. What was written of this span is no longer known here: its rows
                # must not be overwritten.
                self._returned += 1
                writer = f"{writer}.{self._returned}"
            found = self._open[span] = _Open(writer)
        return found

    def _add(self, to: _Open, length_s: int, key: RowKey, row: AnalyticsRow) -> None:
        rows_max = self.day_rows_max if length_s == DAY else self.rows_max
        if key.place and key not in to.rows and len(to.rows) >= rows_max * PLACED_SHARE:
            self.counts["places_merged"] += 1
            key = key._replace(place=OTHER)
        if key not in to.rows and len(to.rows) >= rows_max:
            self.counts["overflowed"] += 1
            key = key.other()
            if key not in to.rows and len(to.rows) >= rows_max + OTHER_ROWS_MAX:
                key = ALL_OTHER
        before = to.rows.get(key)
        if before is None:
            to.rows[key] = row.encoded()
        else:
            whole = decoded(before)
            whole.merge(row)
            to.rows[key] = whole.encoded()
        to.unwritten[key] = None

    def _give_up(self) -> None:
        """Let the oldest go when too much waits: minutes first, days last, and never the newest."""
        waiting = self.unwritten
        for length_s in LENGTHS:
            spans = sorted(span for span in self._open if span.length_s == length_s)
            for span in spans[:-1]:
                if waiting <= self.unwritten_max:
                    return
                lost = len(self._open.pop(span).unwritten)
                waiting -= lost
                self.counts["lost"] += lost
                self._gone_s[length_s] = max(self._gone_s[length_s], span.begin_s)

    def _rest(self) -> None:
        if self._pause_s:
            time.sleep(self._pause_s)


def encoded(key: RowKey) -> bytes:
    """A key as the store keeps it; without a place as services before there were places write and read it."""
    return msgspec.json.encode(key if key.place else key[:-1])
