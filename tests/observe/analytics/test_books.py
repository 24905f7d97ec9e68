"""Books of the spans under way: what goes in comes out whole in every length, once, bounded."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.analytics import AnalyticsRow, OpenSpans, RowKey, StoredRow, fold
from extproc.observe.analytics.books import encoded
from extproc.observe.analytics.row import ALL_OTHER, NAMES_MAX, OTHER, count_in, decoded
from extproc.observe.analytics.spans import DAY, HOUR, LENGTHS, MINUTE, Retention, Stretch
from extproc.observe.analytics.store import MemoryStore

NOW = 1_795_792_230
FOREVER = Stretch(0, 0, 10**12)

keys = st.builds(RowKey, st.sampled_from("abc"), st.just("p"), st.sampled_from("mn"), st.sampled_from("st"))
times = st.integers(NOW - 3 * HOUR, NOW + DAY)


def seen(ms: float, tokens: int) -> AnalyticsRow:
    """One request."""
    row = AnalyticsRow(ok=1, output_tokens=tokens, gpu_us=tokens * 7, cost_nano=3)
    row.total_ms.add(ms)
    count_in(row.codes, f"c{tokens % 5}", 1)
    return row


def event(at_s: int, key: RowKey, row: AnalyticsRow) -> tuple[int, RowKey, Any, tuple[Any, ...]]:
    return at_s, key, AnalyticsRow.merge, (row,)


def total(entries: list[StoredRow], length_s: int) -> AnalyticsRow:
    whole = AnalyticsRow()
    for each in entries:
        if each.length_s == length_s:
            whole.merge(decoded(each.data))
    return whole


def kept(store: MemoryStore) -> list[StoredRow]:
    return [each for length_s in LENGTHS for each in store.read(FOREVER._replace(length_s=length_s))]


rows = st.builds(seen, st.floats(0.0, 1e6), st.integers(0, 5_000))


@given(st.lists(st.tuples(times, keys, rows), max_size=40), st.lists(st.integers(0, 39), max_size=6))
def test_totals_are_the_same_in_every_length(
    events: list[tuple[int, RowKey, AnalyticsRow]], flushes: list[int]
) -> None:
    """Minutes, hours and days each hold all there was, whenever it is written, in whatever order it came."""
    books, store, exact = OpenSpans("w"), MemoryStore(), AnalyticsRow()
    by_day: dict[tuple[int, RowKey], int] = defaultdict(int)
    for number, (at_s, key, row) in enumerate(events):
        exact.merge(row)
        by_day[at_s - at_s % DAY, key] += 1
        books.fold([event(at_s, key, row)])
        if number in flushes:
            store.write(books.changes(), Retention())
            books.written(now_s=at_s + 1)
    store.write(books.changes(), Retention())
    books.written(now_s=NOW + 3 * DAY)
    assert [total(kept(store), length_s) for length_s in LENGTHS] == [exact] * 3
    found: dict[tuple[int, RowKey], int] = defaultdict(int)
    for each in kept(store):
        if each.length_s == DAY:
            key = RowKey(*json.loads(each.key))
            found[each.begin_s, key] += decoded(each.data).ok
    assert found == by_day
    assert (books.rows, books.unwritten) == (0, 0)


@given(st.lists(rows, max_size=12), st.randoms(use_true_random=False))
def test_rows_merged_in_any_order_are_the_same(some: list[AnalyticsRow], random: Any) -> None:
    """Each count, table and sketch, to the last digit."""
    one, other = AnalyticsRow(), AnalyticsRow()
    for row in some:
        one.merge(row)
    random.shuffle(some)
    for row in some:
        other.merge(decoded(row.encoded()))
    assert one.encoded() == decoded(one.encoded()).encoded()
    assert one == other


def test_written_twice_counts_once() -> None:
    """A write whose answer was lost is sent again with the same rows."""
    books, store = OpenSpans("w"), MemoryStore()
    books.fold([event(NOW, RowKey("a"), seen(1.0, 1))])
    for _ in range(3):
        store.write(books.changes(), Retention())
    books.fold([event(NOW, RowKey("a"), seen(1.0, 1))])
    store.write(books.changes(), Retention())
    assert total(kept(store), DAY).ok == 2


def test_a_clock_set_back_overwrites_nothing() -> None:
    """A minute that was let go of and comes again is another writer's."""
    books, store = OpenSpans("w"), MemoryStore()
    for at_s in (NOW, NOW + HOUR, NOW):
        books.fold([event(at_s, RowKey("a"), seen(1.0, 1))])
        store.write(books.changes(), Retention())
        books.written(now_s=at_s + 2 * HOUR)
    assert [total(kept(store), length_s).ok for length_s in LENGTHS] == [3, 3, 3]


def test_rows_have_a_bound() -> None:
    """Beyond it tenants are summed up by pool and model, and nothing is lost; a day takes more."""
    books = OpenSpans("w", rows_max=3, day_rows_max=5)
    books.fold([event(NOW, RowKey(f"t{i}", "p", "m"), seen(1.0, 1)) for i in range(8)])
    entries = books.changes()
    minutes = [each for each in entries if each.length_s == MINUTE]
    assert len(minutes) == 4
    assert {each.key.split(b'"')[1].decode() for each in minutes} == {"t0", "t1", "t2", OTHER}
    assert len([each for each in entries if each.length_s == DAY]) == 6
    assert [total(entries, length_s).ok for length_s in LENGTHS] == [8, 8, 8]
    assert books.counts["overflowed"] == 5 + 5 + 3
    books.fold([event(NOW, RowKey(f"t{i}", f"p{i}", "m"), seen(1.0, 1)) for i in range(400)])
    minutes = [each for each in books.changes() if each.length_s == MINUTE]
    assert len(minutes) == 3 + 256 + 1
    assert ALL_OTHER.pool.encode() in minutes[-1].key
    assert total(minutes, MINUTE).ok == 408


def test_places_crowd_out_no_tenant() -> None:
    """From half of the rows on they are one, of each tenant; a tenant's own sum is whole."""
    books = OpenSpans("w", rows_max=8, day_rows_max=8)
    keys = [RowKey(tenant, "p", "m", place=f"c{i}") for tenant in "ab" for i in range(60)]
    books.fold([event(NOW, key, seen(1.0, 1)) for key in keys])
    entries = [each for each in books.changes() if each.length_s == DAY]
    found = Counter(
        {tuple(json.loads(each.key)[i] for i in (0, 5)): decoded(each.data).ok for each in entries}
    )
    assert found == {**{("a", f"c{i}"): 1 for i in range(4)}, ("a", OTHER): 56, ("b", OTHER): 60}
    assert (books.counts["places_merged"], books.counts["overflowed"]) == (3 * (56 + 60), 0)


def test_a_row_without_a_place_is_kept_as_before_there_were_places() -> None:
    """What an older service wrote, or reads, is the same row."""
    assert json.loads(encoded(RowKey("a", "p", "m", "s", "x/y"))) == ["a", "p", "m", "s", "x/y"]
    assert json.loads(encoded(RowKey("a", place="eu"))) == ["a", "", "", "", "", "eu"]


def test_names_in_a_row_have_a_bound() -> None:
    """Codes beyond it are one."""
    table: dict[str, int] = {}
    for number in range(NAMES_MAX + 10):
        count_in(table, f"c{number}", 1)
    assert len(table) == NAMES_MAX + 1
    assert table[OTHER] == 10


def test_what_cannot_be_written_has_a_bound() -> None:
    """The oldest minutes are given up first, and counted; hours and the day still hold everything."""
    books = OpenSpans("w", unwritten_max=12)
    for minute in range(30):
        books.fold([event(NOW + 60 * minute, RowKey("a"), seen(1.0, 1))])
        entries = books.changes()
    assert books.unwritten <= 12
    assert books.counts["lost"] == 30 - sum(each.length_s == MINUTE for each in entries)
    assert [total(entries, length_s).ok for length_s in (HOUR, DAY)] == [30, 30]


def test_a_tenant_fold() -> None:
    """Refusals by code; for want of room they have missed their target, for a spent quota they have not."""
    row = AnalyticsRow()
    fold.rejected(row, "overloaded", 1_500.0, missed=True)
    fold.rejected(row, "quota_exceeded", 0.0, missed=False)
    fold.rejected(row, "unauthorized", None, missed=False)
    fold.left(row, 20.0, gave_up=False)
    fold.left(row, None, gave_up=False)
    fold.expired(row)
    fold.asked(row, "auto")
    assert (row.rejected, row.left, row.expired, row.requests) == (3, 2, 1, 6)
    assert row.codes == {"overloaded": 1, "quota_exceeded": 1, "unauthorized": 1}
    assert (row.slo_missed, row.held_ms.count, row.families) == (1, 2, {"auto": 1})
