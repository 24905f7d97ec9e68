"""Reports that wait: the oldest go first, and are the first to be forgotten."""

from __future__ import annotations

from collections import Counter

from extproc.state.messages import REPORTS_PER_FRAME_MAX
from extproc.state.outbox import BATCH_BYTES_MAX, REPORT_AGE_NS_MAX, REPORTS_BYTES_MAX, REPORTS_MAX, Outbox


def test_the_oldest_are_dropped_above_the_bound_of_number() -> None:
    """And counted."""
    counts: Counter[str] = Counter()
    outbox = Outbox(counts)
    for number in range(REPORTS_MAX + 5):
        outbox.put(str(number), b"", now_ns=0)
    assert len(outbox) == REPORTS_MAX
    assert outbox.batch(now_ns=0)[0] == ("5", b"")
    assert counts["reports_dropped"] == 5


def test_the_oldest_are_dropped_above_the_bound_of_bytes() -> None:
    """A few large ones fill it as well."""
    counts: Counter[str] = Counter()
    outbox = Outbox(counts)
    for _ in range(5):
        outbox.put("n", b"x" * (REPORTS_BYTES_MAX // 4), now_ns=0)
    assert len(outbox) == 4
    assert counts["reports_dropped"] == 1


def test_a_batch_is_bounded_but_never_empty_handed() -> None:
    """One larger than a batch goes alone."""
    outbox = Outbox(Counter())
    for size in (BATCH_BYTES_MAX + 1, BATCH_BYTES_MAX - 1, 1, 1):
        outbox.put("n", b"x" * size, now_ns=0)
    assert [len(outbox.batch(now_ns=0)) for _ in range(4)] == [1, 2, 1, 0]
    assert outbox._bytes == 0
    for _ in range(REPORTS_PER_FRAME_MAX + 1):
        outbox.put("n", b"", now_ns=0)
    assert [len(outbox.batch(now_ns=0)) for _ in range(2)] == [REPORTS_PER_FRAME_MAX, 1]


def test_what_has_waited_too_long_is_not_sent() -> None:
    """A newer one of the same node has been pushed since."""
    outbox = Outbox(Counter())
    outbox.put("old", b"", now_ns=0)
    outbox.put("new", b"", now_ns=1)
    assert outbox.batch(now_ns=REPORT_AGE_NS_MAX + 1) == [("new", b"")]
