"""Reports: what a query may ask, and that its figures are those of the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from extproc.observe.analytics import (
    AnalyticsRow,
    MemoryStore,
    OpenSpans,
    Query,
    QueryResult,
    Retention,
    RowKey,
    StoredRow,
    report,
    reporting,
)
from extproc.observe.analytics.query import WHO, dimensions, query_of, shown, time_of
from extproc.observe.analytics.spans import DAY, HOUR, Stretch

#: 2026-11-27, 15:10:30.
NOW = 1_795_792_230
MIDNIGHT = NOW - NOW % DAY
KEPT = Retention()


def row(**figures: int) -> AnalyticsRow:
    made = AnalyticsRow(**{"ok": 1, **figures})
    for name in ("ttft_ms", "total_ms"):
        getattr(made, name).add(100.0 * made.output_tokens)
    return made


def asked(
    events: list[tuple[int, RowKey, AnalyticsRow]],
    *,
    now_s: int = NOW,
    retention: Retention = KEPT,
    **query: Any,
) -> QueryResult:
    books, store = OpenSpans("w"), MemoryStore()
    books.fold((at_s, key, AnalyticsRow.merge, (each,)) for at_s, key, each in events)
    store.write(books.changes(), retention)
    store.prune(retention, now_s=now_s)
    return report(query_of(query), store.read, retention, now_s=now_s, store="memory")


ACME = RowKey("acme", "chat", "m", "steer")
GLOBEX = RowKey("globex", "chat", "m", "steer")
CODE = RowKey("acme", "code", "c", "least_work", "trial/b", "eu")
EVENTS = [
    (NOW - 60, ACME, row(output_tokens=3, input_tokens=10, cost_nano=5, gpu_us=2_000_000)),
    (NOW - 2 * HOUR, ACME, row(output_tokens=1, slo_met=1)),
    (NOW - 2 * HOUR, GLOBEX, row(output_tokens=9, slo_missed=1)),
    (NOW - 3 * HOUR, CODE, row(output_tokens=4, ok=0, error=1)),
    (NOW - 26 * HOUR, GLOBEX, row(output_tokens=100)),
]


def test_by_tenant_the_last_day() -> None:
    """The most requests first; what is older is not in it; the total is of all."""
    found = asked(EVENTS)
    assert [(line.group["tenant"], line.requests, line.ok) for line in found.lines] == [
        ("acme", 3, 2),
        ("globex", 1, 1),
    ]
    acme = found.lines[0]
    assert (acme.output_tokens, acme.input_tokens, acme.error, acme.cost, acme.gpu_seconds) == (
        8,
        10,
        1,
        5e-9,
        2.0,
    )
    assert (acme.attainment, found.lines[1].attainment) == (1.0, 0.0)
    assert acme.served == {"m": 2, "c": 1}
    assert (acme.ttft_ms.count, acme.ttft_ms.max) == (3, 400.0)
    assert acme.ttft_ms.p50 == pytest.approx(300.0, rel=0.01)
    assert acme.ttft_ms.mean == pytest.approx(266.667, rel=1e-4)
    assert acme.requests_per_s == round(3 / acme.seconds, 4)
    assert found.total is not None
    assert (found.total.requests, found.total.output_tokens) == (4, 17)
    assert (found.since, found.until) == ("2026-11-26T15:10Z", "2026-11-27T15:10Z")
    assert found.notes == []


@pytest.mark.parametrize("name", WHO)
def test_by_and_only_each_part_of_a_key(name: str) -> None:
    """Lines of a part's values add up to the total, and asking for one value alone gives its line."""
    found = asked(EVENTS, by=name)
    assert found.total is not None
    assert sum(line.requests for line in found.lines) == found.total.requests == 4
    for line in found.lines:
        if line.group[name]:
            alone = asked(EVENTS, by=name, **{name: line.group[name]})
            assert alone.lines == [line]


def test_rows_of_services_that_know_less_or_more_of_a_request() -> None:
    """Before there were places and after there is something else: each counts, by what both know."""
    data = row().encoded()

    def read(stretch: Stretch) -> Iterator[StoredRow]:
        for key in (
            ["a", "p", "m", "s", ""],
            ["a", "p", "m", "s", "", "eu"],
            ["a", "p", "m", "s", "", "eu", "new"],
        ):
            yield StoredRow(stretch.length_s, stretch.begin_s, "w", json.dumps(key).encode(), data)

    found = report(query_of({"by": "place", "since": "1m"}), read, KEPT, now_s=NOW, store="memory")
    counts = {line.group["place"]: line.ok for line in found.lines}
    assert counts["eu"] == 2 * counts[""] > 0


@pytest.mark.parametrize("by", ["minute", "hour", "day"])
def test_by_time(by: str) -> None:
    """In order of time, each with its beginning; rates are over the part of it that has passed."""
    found = asked(EVENTS, by=f"{by},tenant", since="today")
    starts = [line.group[by] for line in found.lines]
    assert starts == sorted(starts)
    assert sum(line.requests for line in found.lines) == 4
    if by == "day":
        assert set(starts) == {"2026-11-27"}
        assert {line.seconds for line in found.lines} == {NOW - MIDNIGHT}
    if by == "hour":
        assert starts == ["2026-11-27T12:00Z", "2026-11-27T13:00Z", "2026-11-27T13:00Z", "2026-11-27T15:00Z"]
        assert [line.seconds for line in found.lines] == [HOUR, HOUR, HOUR, NOW % HOUR]


def test_what_is_longer_ago_is_known_in_longer_spans() -> None:
    """The total stays the same; finer lines than are kept are refused with what is kept."""
    assert asked(EVENTS, since="2d").total.requests == 5  # type: ignore[union-attr]  # never None without chargeback
    retention = Retention(minutes_s=HOUR, hours_s=10 * HOUR, days_s=3 * DAY)
    found = asked(EVENTS, retention=retention, since="2d")
    assert found.total is not None
    assert found.total.requests == 5
    with pytest.raises(ValueError, match="hours are kept for 10 hours; ask for a later since, or by day"):
        asked(EVENTS, retention=retention, by="hour", since="2d")
    with pytest.raises(ValueError, match="minutes are kept for 1 hour; ask"):
        asked(EVENTS, retention=retention, by="minute", since="3h")
    found = asked(EVENTS, since="90d")
    assert found.notes == ["nothing before 2026-10-28T00:00Z is kept"]


def test_charges_of_a_day() -> None:
    """By tenant and model, whole days of UTC, what was sent to an endpoint alone."""
    events = [
        *EVENTS,
        (MIDNIGHT - 1, ACME, row(input_tokens=7, output_tokens=2, cost_nano=1_500_000_000)),
        (MIDNIGHT, ACME, AnalyticsRow(rejected=5)),
        (NOW, RowKey("(unknown)"), AnalyticsRow(rejected=1)),
    ]
    found = asked(events, chargeback="true", day="2026-11-26")
    assert [(each.tenant, each.model, each.requests, each.cost) for each in found.charges] == [
        ("acme", "m", 1, 1.5),
        ("globex", "m", 1, 0.0),
    ]
    assert asked(events, chargeback=True, day="yesterday").charges == found.charges
    today = asked(events, chargeback=True, day="today").charges
    assert [(each.day, each.tenant, each.model, each.requests) for each in today] == [
        ("2026-11-27", "acme", "c", 1),
        ("2026-11-27", "acme", "m", 2),
        ("2026-11-27", "globex", "m", 1),
    ]
    both = asked(events, chargeback=True, since="2026-11-26", until="now")
    assert both.charges == [*found.charges, *today]


def test_a_limit_leaves_out_and_says_how_many() -> None:
    """The ones with fewest requests; the total is still of all."""
    found = asked(EVENTS, limit="1")
    assert [line.group["tenant"] for line in found.lines] == ["acme"]
    assert found.left_out == 1
    assert found.total is not None
    assert found.total.requests == 4


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            {"by": "tenant,what"},
            "by: 'what' is none of tenant, pool, model, strategy, arm, place, minute, hour, day",
        ),
        ({"by": "hour,day"}, "by: name one of minute, hour, day"),
        ({"since": "soon"}, "since: 'soon' is no time; write 24h"),
        ({"until": "2026-13-01"}, "until: '2026-13-01' is no time"),
        ({"since": "1h", "until": "2h"}, r"since \(2026-11-27T14:10Z\) must be before until"),
        ({"chargeback": True, "day": "2026-11-26T12:00"}, "is no day; write 2026-11-26"),
        ({"day": "2026-11-26"}, "day: goes with chargeback"),
        ({"limit": 0}, "limit: must be 1 or more"),
        ({"limit": "many"}, "Expected `int`"),
        ({"tenants": "a"}, "'tenants' is no part of a query; there are by, since"),
    ],
)
def test_a_query_that_makes_no_sense(query: dict[str, Any], message: str) -> None:
    """Is refused, and it is said what to write."""
    with pytest.raises(ValueError, match=message):
        asked(EVENTS, **query)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows read and lines told have bounds."""

    def endless(stretch: Stretch) -> Iterator[StoredRow]:
        for i in range(10**9):
            yield StoredRow(
                stretch.length_s, stretch.begin_s, "w", b'["t%d","","","",""]' % i, AnalyticsRow().encoded()
            )

    with pytest.raises(ValueError, match="gives more than 50,000 lines"):
        report(Query(), endless, KEPT, now_s=NOW, store="memory")
    monkeypatch.setattr(reporting, "ROWS_READ_MAX", 1_000)
    with pytest.raises(ValueError, match="more than 1,000 rows would be read"):
        report(Query(), endless, KEPT, now_s=NOW, store="memory")


def test_times() -> None:
    """So long ago, dates and times (UTC where they name no zone), words, and seconds."""
    read = {
        "30m": NOW - 1_800,
        "1w": NOW - 7 * DAY,
        "now": NOW,
        "today": MIDNIGHT,
        "yesterday": MIDNIGHT - DAY,
        "2026-11-27": MIDNIGHT,
        "2026-11-27T01:00Z": MIDNIGHT + HOUR,
        "2026-11-27T01:00+01:00": MIDNIGHT,
        str(NOW): NOW,
        float(NOW): NOW,
    }
    assert {given: time_of(given, now_s=NOW, name="since") for given in read} == read
    assert (shown(NOW), shown(NOW, DAY)) == ("2026-11-27T15:10Z", "2026-11-27")
    assert dimensions(" tenant, day,tenant") == ["tenant", "day"]
