"""Spans: which are kept, and which make up a time."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extproc.observe.analytics.spans import (
    DAY,
    HOUR,
    LENGTHS,
    MINUTE,
    Retention,
    Stretch,
    span_of,
    stretches,
)

#: Friday, 2026-11-27, 15:10:30.
NOW = 1_795_792_230
MIDNIGHT = NOW - NOW % DAY


def test_a_day_up_to_now() -> None:
    """Minutes to the full hour, hours to midnight, then the day that is running."""
    assert stretches(NOW - DAY, NOW, Retention(), now_s=NOW) == [
        Stretch(MINUTE, NOW - DAY - 30, NOW - NOW % HOUR - DAY + HOUR),
        Stretch(HOUR, NOW - NOW % HOUR - DAY + HOUR, MIDNIGHT),
        Stretch(DAY, MIDNIGHT, MIDNIGHT + DAY),
    ]


def test_none_is_longer_than_asked_for() -> None:
    """By the hour a running day is told in hours."""
    found = stretches(MIDNIGHT, NOW, Retention(), now_s=NOW, coarsest_s=HOUR)
    assert found == [Stretch(HOUR, MIDNIGHT, MIDNIGHT + 16 * HOUR)]
    with pytest.raises(ValueError, match="only spans of 86400 s are kept"):
        stretches(NOW - 20 * DAY, NOW, Retention(), now_s=NOW, coarsest_s=HOUR)


def test_what_is_forgotten_and_what_is_to_come_is_left_out() -> None:
    """A year back begins with the oldest day that is kept; the future has nothing."""
    found = stretches(NOW - 365 * DAY, NOW + DAY, Retention(), now_s=NOW)
    assert found == [Stretch(DAY, MIDNIGHT - 30 * DAY, MIDNIGHT + DAY)]
    assert stretches(NOW + HOUR, NOW + DAY, Retention(), now_s=NOW) == []


retentions = st.tuples(st.integers(1, 72), st.integers(1, 30), st.integers(1, 60)).map(
    lambda t: Retention(
        minutes_s=min(t[0] * HOUR, t[1] * DAY), hours_s=t[1] * DAY, days_s=(t[1] + t[2]) * DAY
    )
)


@given(
    st.integers(0, 100 * DAY),
    st.integers(1, 100 * DAY),
    retentions,
    st.integers(0, DAY),
    st.sampled_from(LENGTHS),
)
def test_each_moment_once(back_s: int, long_s: int, retention: Retention, on: int, coarsest_s: int) -> None:
    """No overlap, no gap, nothing that is not kept; all that was asked for and is known is in it."""
    now_s = NOW + on
    since_s, until_s = now_s - back_s, now_s - back_s + long_s
    known_s = max(since_s, retention.since_s(DAY, now_s=now_s))
    assume(retention.finest(known_s, now_s=now_s) <= coarsest_s)
    found = stretches(since_s, until_s, retention, now_s=now_s, coarsest_s=coarsest_s)
    at_s = None
    for each in found:
        assert at_s is None or each.begin_s == at_s
        assert each.begin_s % each.length_s == each.end_s % each.length_s == 0
        assert each.length_s <= coarsest_s
        assert each.begin_s >= retention.since_s(each.length_s, now_s=now_s)
        at_s = each.end_s
    if known_s < min(until_s, now_s):
        assert found[0].begin_s <= known_s < found[0].begin_s + DAY
        assert at_s is not None
        assert at_s >= min(until_s, now_s)
        if until_s < now_s:
            assert at_s < until_s + retention.finest(until_s - 1, now_s=now_s)


@given(st.integers(0, 2**33), st.sampled_from(LENGTHS))
def test_a_moment_lies_in_its_span(at_s: int, length_s: int) -> None:
    """At or after its beginning, before its end."""
    span = span_of(at_s, length_s)
    assert span.begin_s <= at_s < span.end_s == span.begin_s + length_s
