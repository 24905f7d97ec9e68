"""One contract over every store: memory, a SQLite file, real Redis."""

from __future__ import annotations

from extproc.observe.analytics import AnalyticsStore, MemoryStore, Retention, StoredRow
from extproc.observe.analytics.spans import DAY, HOUR, LENGTHS, MINUTE, Stretch

NOW = 1_795_792_230
#: Redis expires by its own clock, which must not be past what a test keeps.
LONG = Retention(minutes_s=30_000 * DAY, hours_s=30_000 * DAY, days_s=30_000 * DAY)


def all_of(
    store: AnalyticsStore, length_s: int = MINUTE, begin_s: int = 0, end_s: int = 10**11
) -> list[StoredRow]:
    return sorted(store.read(Stretch(length_s, begin_s, end_s)))


def entry(
    begin_s: int, data: bytes, *, writer: str = "w", key: bytes = b"k", length_s: int = MINUTE
) -> StoredRow:
    return StoredRow(length_s, begin_s, writer, key, data)


def test_what_is_written_is_read(store: AnalyticsStore) -> None:
    """Bytes as they were, whatever they are; each stretch its own spans and length."""
    entries = [
        entry(60, b"\x00\xff\n"),
        entry(60, b"2", key=b'["\xc3\xa9","\\u0000"]'),
        entry(120, b"3"),
        entry(0, b"4", length_s=HOUR),
    ]
    store.write(entries, LONG)
    assert all_of(store) == sorted(entries[:3])
    assert all_of(store, begin_s=60, end_s=120) == sorted(entries[:2])
    assert all_of(store, HOUR) == entries[3:]
    assert all_of(store, DAY) == []


def test_a_row_is_replaced_by_its_writer_alone(store: AnalyticsStore) -> None:
    """The same span and key of another writer stands beside it."""
    store.write([entry(60, b"1"), entry(60, b"1", writer="v:1")], LONG)
    store.write([entry(60, b"2")], LONG)
    assert all_of(store) == [entry(60, b"1", writer="v:1"), entry(60, b"2")]


def test_many_rows(store: AnalyticsStore) -> None:
    """More than go into one round trip."""
    entries = [entry(60 * (i % 50), b"%d" % i, key=b"k%d" % i) for i in range(2_500)]
    store.write(entries, LONG)
    assert all_of(store) == sorted(entries)


def test_old_spans_are_forgotten(store: AnalyticsStore) -> None:
    """Each length after its own time, to the span."""
    retention = Retention(minutes_s=HOUR, hours_s=DAY, days_s=3 * DAY)
    entries = [
        entry(span, b"x", length_s=length_s)
        for length_s in LENGTHS
        for span in range(NOW - 6 * DAY - (NOW - 6 * DAY) % DAY, NOW, max(length_s, HOUR))
    ]
    store.write(entries, LONG)
    store.prune(retention, now_s=NOW)
    for length_s in LENGTHS:
        oldest_s = retention.since_s(length_s, now_s=NOW)
        found = [each.begin_s for each in all_of(store, length_s)]
        kept = [each.begin_s for each in entries if each.length_s == length_s and each.begin_s >= oldest_s]
        assert found == sorted(kept)
        assert kept


def test_a_claim_is_given_once(store: AnalyticsStore) -> None:
    """To the first that asks; memory has nobody else to give it to."""
    assert store.claim(["a-1", "a-2"]) == [True, True]
    again = [True, True] if isinstance(store, MemoryStore) else [False, True]
    assert store.claim(["a-1", "a-3"]) == again


def test_memory_is_bounded() -> None:
    """The oldest minutes go first, then hours; the newest span of each length stays."""
    store = MemoryStore(rows_max=4)
    for i in range(6):
        store.write([entry(60 * i, b"x"), entry(3_600 * (i // 3), b"x", length_s=HOUR)], LONG)
    assert [each.begin_s for each in all_of(store)] == [240, 300]
    assert [each.begin_s for each in all_of(store, HOUR)] == [0, 3_600]
    assert store.early == 4
    store.write([entry(300, b"x", key=b"%d" % i) for i in range(9)], LONG)
    assert len(all_of(store)) == 10
    assert [each.begin_s for each in all_of(store, HOUR)] == [3_600]
