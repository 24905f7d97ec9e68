"""The margin above the target: it learns what falls short, and is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.core.scaling.margin import HOUR_NS, AttainmentMargin
from extproc.core.scaling.planner import NS, Planner
from tests.core.scaling.test_planner import SCALE, facts

TARGET, MOST = 0.98, 0.25


def attained(load: float) -> float:
    """A replica's curve near its edge: fifteen in a hundred fewer for each tenth of its load, at most all."""
    return min(1.0, 1.0 - 0.15 * (load - 0.9))


def played(margin: AttainmentMargin, from_h: int, to_h: int, lost: float, *, requests: int = 200) -> float:
    """The share that attained from an hour to another, where `lost` (0..1) miss whatever is done."""
    came = good = 0.0
    for minute in range(60 * from_h, 60 * to_h):
        share = attained(1.0 - margin.share) - lost
        now_ns = minute * HOUR_NS // 60
        margin.saw(now_ns, attained=share * requests, judged=requests, target=TARGET, most=MOST)
        came, good = came + requests, good + share * requests
    return good / came


def test_a_lasting_shortfall_is_made_up_for_within_hours() -> None:
    """Where bursts cost a point and a half in any case, the target attains after some hours."""
    margin = AttainmentMargin()
    assert played(margin, 0, 1, 0.015) < TARGET - 0.005
    played(margin, 1, 7, 0.015)
    assert played(margin, 7, 9, 0.015) == pytest.approx(TARGET, abs=0.002)
    assert 0.05 < margin.share < MOST


def test_what_is_better_than_the_target_is_given_back() -> None:
    """When the cause is gone the margin goes too, and never below nothing."""
    margin = AttainmentMargin()
    played(margin, 0, 8, 0.015)
    assert margin.share > 0.05
    played(margin, 8, 32, 0.0)
    assert margin.share == 0.0


def test_a_few_requests_move_nothing_and_one_window_little() -> None:
    """Twenty lost requests are no shortfall yet; a window in which nobody attained is a fiftieth."""
    margin = AttainmentMargin()
    for minute in range(60):
        margin.saw(minute * 60 * NS, attained=0, judged=20 * (minute == 0), target=TARGET, most=MOST)
    assert margin.share == 0.0
    margin.saw(60 * 60 * NS, attained=0, judged=10_000, target=TARGET, most=MOST)
    assert 0.0 < margin.share <= 0.02


def test_a_plan_that_falls_short_wants_more_replicas() -> None:
    """The same load needs more while fewer attain than are to; with `margin_max: 0` it does not."""
    wanted = {}
    for most in (0.0, 0.25):
        planner = Planner(structs.replace(SCALE, margin_max=most, target_attainment=0.98))
        for minute in range(240):
            # A bin that nobody else is in: the record says nothing against it.
            plan = planner.step(minute * 60 * NS, facts(40.0, 8, judged=2_000, attained=1_940))
        wanted[most] = (plan.need_high.replicas, plan.margin)
    assert wanted[0.0][1] == 0.0
    assert wanted[0.25][1] > 0.02
    assert wanted[0.25][0] > wanted[0.0][0]


def test_what_a_margin_made_look_well_is_no_reason_to_take_it_back() -> None:
    """While too few attain, the record's correction may fall and does not rise."""
    planner = Planner(structs.replace(SCALE, target_attainment=0.98))
    for load in (0.65, 0.75, 0.85, 0.95, 1.05):
        planner.record.saw(load, attained=5_000, judged=5_000)
    planner.margin.recall(0.05)
    for minute in range(4):
        planner.step(minute * 60 * NS, facts(30.0, 8))
    assert planner.correction == 1.0
    planner.margin.recall(0.0)
    for minute in range(4, 8):
        planner.step(minute * 60 * NS, facts(30.0, 8))
    assert planner.correction > 1.05


def test_what_a_bound_costs_is_no_shortfall_of_the_plan() -> None:
    """At `max_replicas` no margin is learnt: more would be wanted in vain."""
    planner = Planner(structs.replace(SCALE, max_replicas=2))
    for minute in range(120):
        plan = planner.step(minute * 60 * NS, facts(200.0, 2, judged=2_000, attained=200))
    assert plan.bound == "max"
    assert plan.margin == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 10**14), st.floats(), st.floats()), max_size=40), st.floats(0.0, 0.5)
)
def test_a_margin_is_within_its_bounds_whatever_was_told(
    told: list[tuple[int, float, float]], most: float
) -> None:
    """Clocks that go back, NaN and more attained than came leave it between nothing and the most."""
    margin = AttainmentMargin()
    for now_ns, good, came in told:
        margin.saw(now_ns, attained=good, judged=came, target=TARGET, most=most)
        assert 0.0 <= margin.share <= most
