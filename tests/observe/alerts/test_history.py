"""Cumulative figures and their past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.alerts.history import RunningTotals

TIERS = ((1, 20), (10, 10), (60, 10))


@given(
    gaps=st.lists(st.integers(0, 15), min_size=1, max_size=150),
    over=st.integers(1, 200),
    later=st.integers(0, 50),
)
def test_a_window_is_never_short_and_exact_within_the_finest_tier(
    gaps: list[int], over: int, later: int
) -> None:
    """What a window counts is what happened in it, and at most a step's worth before it."""
    history = RunningTotals(1, TIERS)
    second, events = 0, []
    for gap in gaps:
        second += gap
        history.at(second)[0] += 1.0
        events.append(second)
    now = second + later
    since = now - over
    base = history.before(since)
    counted = events.__len__() - (base[0] if base is not None else 0.0)
    inside = sum(each > since for each in events)
    if base is None or over <= 20:
        assert counted == inside
    elif second - events[0] < 60 * 9:
        # At most the events of one step of the coarsest tier, and of the idle time around it, more.
        assert counted >= inside
        stamp = max((each for each in events if each <= since), default=None)
        assert stamp is not None


@given(st.lists(st.integers(0, 400), min_size=1, max_size=500))
def test_memory_is_bounded(gaps: list[int]) -> None:
    """However long it runs, each tier keeps its rows and no more."""
    history, second = RunningTotals(2, TIERS), 0
    for gap in gaps:
        second += gap
        history.at(second)[1] += 1.0
    assert all(len(tier.rows) <= tier.kept for tier in history._tiers)
    assert all(len(tier.rows) == len(tier.stamps) for tier in history._tiers)


def test_an_idle_history_costs_nothing_and_knows_its_totals() -> None:
    """A week without an event adds no row, and the past is still the past."""
    history = RunningTotals(1, TIERS)
    history.at(5)[0] += 2.0
    history.at(604_805)[0] += 1.0
    assert len(history._tiers[0].rows) == 1
    before = history.before(604_000)
    assert before is not None
    assert before[0] == 2.0
    assert history.before(4) is None


def test_beyond_what_is_kept_the_oldest_row_stands() -> None:
    """A window longer than the memory counts what is remembered, not everything since the start."""
    history = RunningTotals(1, ((1, 5),))
    for second in range(20):
        history.at(second)[0] += 1.0
    oldest = history.before(2)
    assert oldest is not None
    assert oldest[0] == 15.0
