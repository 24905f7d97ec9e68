"""An answer from rows: which spans, which rows, added up by what was asked for.

Owns the adding up and the figures of a line. Reads a store; runs in the analytics' thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from extproc.core.series import SUM_SCALE, Sketch
from extproc.observe.analytics.query import (
    LINES_MAX,
    WHEN,
    WHO,
    Charge,
    Quantiles,
    Query,
    QueryLine,
    QueryResult,
    day_of,
    dimensions,
    shown,
    time_of,
)
from extproc.observe.analytics.row import AnalyticsRow, RowKey, count_in, decoded
from extproc.observe.analytics.spans import DAY, HOUR, Retention, Stretch, stretches
from extproc.observe.analytics.store import StoredRow

#: Rows read for one answer; a query that needs more is refused.
ROWS_READ_MAX = 500_000
#: Groups that are added up apart; a query that needs more is refused.
GROUPS_MAX = 50_000
#: Read in one go: the event loop's thread gets its turn between.
AT_ONCE, PAUSE_S = 64, 0.0005

CHARGEBACK = ("day", "tenant", "model")
_SHARES = (0.5, 0.9, 0.95, 0.99)

#: A group: its key's parts by the query's `by`, and its span's beginning (0 where time does not matter).
_Group = tuple[tuple[str, ...], int]


@dataclass(slots=True)
class _Sum:
    """What one group adds up to."""

    row: AnalyticsRow = field(default_factory=AnalyticsRow)
    served: dict[str, int] = field(default_factory=dict)

    def add(self, key: RowKey, row: AnalyticsRow) -> None:
        self.row.merge(row)
        if row.served:
            count_in(self.served, key.model, row.served)

    def merge(self, other: _Sum) -> None:
        self.row.merge(other.row)
        for model, count in other.served.items():
            count_in(self.served, model, count)


def report(
    query: Query,
    read: Callable[[Stretch], Iterator[StoredRow]],
    retention: Retention,
    *,
    now_s: int,
    store: str,
    notes: Iterable[str] = (),
    pause_s: float = 0.0,
) -> QueryResult:
    """Answer a query. Raises ValueError for one that cannot be answered, and what `read` raises."""
    by = list(CHARGEBACK) if query.chargeback else dimensions(query.by)
    since_s, until_s = _times(query, now_s)
    length_s = next((WHEN[name] for name in by if name in WHEN), 0)
    pieces = _pieces(since_s, until_s, retention, now_s, length_s)
    who = [name for name in by if name in WHO]
    wanted = {name: value for name in WHO if (value := getattr(query, name))}
    sums: dict[_Group, _Sum] = {}
    writers: set[str] = set()
    for number, entry in enumerate(_entries(pieces, read), start=1):
        if number > ROWS_READ_MAX:
            raise ValueError(f"more than {ROWS_READ_MAX:,} rows would be read; ask for less time, or by day")
        if number % AT_ONCE == 0 and pause_s:
            time.sleep(pause_s)
        writers.add(entry.writer.partition(".")[0])
        key = _key(entry.key)
        if any(getattr(key, name) != value for name, value in wanted.items()):
            continue
        group = (
            tuple(getattr(key, name) for name in who),
            entry.begin_s - entry.begin_s % length_s if length_s else 0,
        )
        if group not in sums and len(sums) >= GROUPS_MAX:
            raise ValueError(f"by {','.join(by)} gives more than {GROUPS_MAX:,} lines; ask for less")
        sums.setdefault(group, _Sum()).add(key, decoded(entry.data))
    begin_s = pieces[0].begin_s if pieces else since_s
    end_s = min(pieces[-1].end_s, now_s) if pieces else until_s
    ordered = sorted(
        sums.items(),
        # Charges by name: an export of the same day is the same file.
        key=lambda each: (each[0][1], 0 if query.chargeback else -each[1].row.requests, each[0][0]),
    )
    limit = min(query.limit, LINES_MAX)
    answer = QueryResult(
        since=shown(begin_s),
        until=shown(end_s),
        by=by,
        lines=[],
        charges=[],
        total=None,
        left_out=0,
        store=store,
        writers=len(writers),
        notes=[*notes, *_missing(since_s, begin_s)],
    )
    if query.chargeback:
        charges = [_charge(group, each.row) for group, each in ordered if each.row.served]
        answer.charges, answer.left_out = charges[:limit], max(0, len(charges) - limit)
        return answer
    seconds = max(1, end_s - begin_s)
    for (parts, at_s), each in ordered[:limit]:
        took_s = seconds
        if length_s:
            took_s = max(1, min(at_s + length_s, end_s) - max(at_s, begin_s))
        named = dict(zip(who, parts, strict=True))
        group_named = {name: shown(at_s, length_s) if name in WHEN else named[name] for name in by}
        answer.lines.append(_line(group_named, each, took_s))
    answer.left_out = max(0, len(ordered) - limit)
    total = _Sum()
    for _, each in ordered:
        total.merge(each)
    answer.total = _line({}, total, seconds)
    return answer


def _times(query: Query, now_s: int) -> tuple[int, int]:
    """From when to when."""
    if query.day:
        if not query.chargeback:
            raise ValueError("day: goes with chargeback; else give since and until")
        since_s = day_of(query.day, now_s=now_s)
        return since_s, since_s + DAY
    since_s = time_of(query.since, now_s=now_s, name="since")
    until_s = time_of(query.until, now_s=now_s, name="until")
    if since_s >= until_s:
        raise ValueError(f"since ({shown(since_s)}) must be before until ({shown(until_s)})")
    if query.chargeback:
        # Days, whole.
        return since_s - since_s % DAY, -(-until_s // DAY) * DAY
    return since_s, until_s


def _pieces(since_s: int, until_s: int, retention: Retention, now_s: int, length_s: int) -> list[Stretch]:
    coarsest_s = length_s or DAY
    # What is told by the hour begins at a whole hour as far as that is known.
    since_s = max(since_s, retention.since_s(DAY, now_s=now_s))
    finest_s = retention.finest(since_s, now_s=now_s)
    if finest_s > coarsest_s:
        kept = {name: retention.keeps_s(each) for name, each in WHEN.items()}
        name = next(name for name, each in WHEN.items() if each == coarsest_s)
        longer = next(name for name, each in WHEN.items() if each == finest_s)
        raise ValueError(
            f"by: {name}s are kept for {_long(kept[name])}; ask for a later since, or by {longer}"
        )
    return stretches(since_s, until_s, retention, now_s=now_s, coarsest_s=coarsest_s)


def _long(seconds: int) -> str:
    count, unit = (seconds // DAY, "day") if seconds % DAY == 0 else (seconds // HOUR, "hour")
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def _entries(
    pieces: Iterable[Stretch], read: Callable[[Stretch], Iterator[StoredRow]]
) -> Iterator[StoredRow]:
    for piece in pieces:
        yield from read(piece)


def _missing(since_s: int, begin_s: int) -> list[str]:
    """What is said when the beginning that was asked for is no longer kept."""
    return [f"nothing before {shown(begin_s)} is kept"] if begin_s > since_s else []


@lru_cache(maxsize=20_000)
def _key(data: bytes) -> RowKey:
    # Of another version, where services are replaced one by one: what it tells apart besides is added up.
    return RowKey(*msgspec.json.decode(data, type=tuple[str, ...])[: len(RowKey._fields)])


def _charge(group: _Group, row: AnalyticsRow) -> Charge:
    (tenant, model), at_s = group
    return Charge(
        day=shown(at_s, DAY),
        tenant=tenant,
        model=model,
        requests=row.served,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        gpu_seconds=row.gpu_us / 1e6,
        cost=row.cost_nano / 1e9,
    )


def _line(group: dict[str, str], found: _Sum, seconds: int) -> QueryLine:
    row = found.row
    judged = row.slo_met + row.slo_missed
    return QueryLine(
        group=group,
        seconds=seconds,
        requests=row.requests,
        ok=row.ok,
        refused=row.refused,
        error=row.error,
        client_gone=row.client_gone,
        expired=row.expired,
        rejected=row.rejected,
        left=row.left,
        codes=_most(row.codes),
        requests_per_s=round(row.requests / seconds, 4),
        output_tokens_per_s=round(row.output_tokens / seconds, 2),
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_tokens=row.cached_tokens,
        gpu_seconds=row.gpu_us / 1e6,
        cost=row.cost_nano / 1e9,
        slo_met=row.slo_met,
        slo_missed=row.slo_missed,
        attainment=round(row.slo_met / judged, 6) if judged else None,
        ttft_ms=_spread(row.ttft_ms),
        tpot_ms=_spread(row.tpot_ms),
        total_ms=_spread(row.total_ms),
        held_ms=_spread(row.held_ms),
        prompt_tokens=_spread(row.prompt_tokens),
        answer_tokens=_spread(row.answer_tokens),
        served=_most(found.served),
        families=_most(row.families),
    )


def _most(table: dict[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(table.items(), key=lambda each: (-each[1], each[0])))


def _spread(sketch: Sketch) -> Quantiles:
    count = sketch.count
    if not count:
        return Quantiles()
    mean = sketch.total / SUM_SCALE / count
    p50, p90, p95, p99 = sketch.quantiles(_SHARES)
    return Quantiles(count, round(mean, 3), p50, p90, p95, p99, sketch.most / SUM_SCALE)
