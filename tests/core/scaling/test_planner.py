"""The planner: when more are wanted, when fewer, and never outside what the file says."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.core.predict.timing import Timing
from extproc.core.scaling.capacity import Capacity, rate_max, shape
from extproc.core.scaling.planner import NS, Planner
from extproc.core.scaling.values import (
    Band,
    Demand,
    LoadTime,
    PoolFacts,
    PoolScale,
    ReplicaFact,
    ReplicaKind,
    WorkSample,
)

A100 = ReplicaKind(
    name="a100",
    timing=Timing(11.8, 0.029, 9.2e-5, 8.9, 0.0669, 1.7e-6),
    permits=128,
    kv_capacity_tokens=450_000,
    price_per_hour=2.0,
)
H100 = structs.replace(
    A100, name="h100", timing=Timing(8.0, 0.0118, 5.6e-5, 5.1, 0.022, 6e-7), price_per_hour=4.0
)
SAMPLES = tuple(WorkSample("standard", 400 + 40 * i, 0, 50 + 10 * i) for i in range(40))
SCALE = PoolScale(pool="llama", min_replicas=1, max_replicas=20, down_after_s=300.0, step_down_max=1)
LOAD = LoadTime(p50_s=50.0, p90_s=60.0)


def facts(rate: float, count: int = 1, *, high: float | None = None, **more: Any) -> PoolFacts:
    """A pool of `count` ready replicas under a rate that is forecast exactly, but for `high`."""
    told: dict[str, Any] = {
        "demand": Demand(requests_per_s=rate, samples=SAMPLES),
        "forecast": Band(ahead_s=80.0, low=rate, median=rate, high=rate if high is None else high),
        "kinds": (A100,),
        "replicas": tuple(ReplicaFact(address=f"10.0.0.{i}:80", stage="ready") for i in range(count)),
        "load_time": LOAD,
        "idle_s": 0.0 if rate else 1e9,
        **more,
    }
    return PoolFacts(**told)


def test_more_are_wanted_as_soon_as_the_upper_bound_needs_them() -> None:
    """The forecast's high end decides, and within one step."""
    planner = Planner(SCALE)
    assert planner.step(0, facts(4.0)).wanted == 1
    plan = planner.step(5 * NS, facts(4.0, high=30.0))
    assert plan.wanted == plan.need_high.replicas > plan.need.replicas == 1
    assert plan.need_high.attainment >= SCALE.target_attainment


def test_a_little_above_the_target_is_aimed_at() -> None:
    """Where four replicas just bear a rate at the target a fifth is wanted; at what is aimed at four are
    enough."""
    scale = structs.replace(SCALE, target_attainment=0.9)
    capacity = Capacity(shape(SAMPLES, A100, {}), A100)
    least, aimed = (rate_max(capacity, 4, share) for share in (scale.target_attainment, scale.aimed))
    assert scale.aimed == pytest.approx(0.908)
    assert Planner(scale).step(0, facts(0.999 * least, 4)).wanted == 5
    assert Planner(scale).step(0, facts(0.999 * aimed, 4)).wanted == 4


def test_the_very_same_samples_are_looked_through_once_and_others_anew() -> None:
    """Plans from samples that are the same object are those from equal ones; longer requests are seen."""
    same, equal = Planner(SCALE), Planner(SCALE)
    for at in range(0, 200, 5):
        other = Demand(requests_per_s=20.0, samples=(*SAMPLES[:1], *SAMPLES[1:]))
        assert same.step(at * NS, facts(20.0, 4)) == equal.step(at * NS, facts(20.0, 4, demand=other))
    longer = Demand(
        requests_per_s=20.0,
        samples=tuple(each._replace(output_tokens=4 * each.output_tokens) for each in SAMPLES),
    )
    before = same.step(200 * NS, facts(20.0, 4)).need.replicas
    after = [same.step(at * NS, facts(20.0, 4, demand=longer)).need.replicas for at in range(230, 530, 30)]
    assert after[-1] > before


def test_fewer_are_wanted_only_when_fewer_were_enough_for_a_load_time_and_the_hold() -> None:
    """A dip that is shorter than the hold and the load time together takes no replica away."""
    planner = Planner(SCALE)
    planner.step(0, facts(60.0, 8))
    high = planner.step(NS, facts(60.0, 8)).wanted
    for at in range(5, 360, 5):
        plan = planner.step(at * NS, facts(10.0, high))
        assert plan.wanted == high, at
        assert plan.bound == "hold"
    plan = planner.step(370 * NS, facts(10.0, high))
    assert plan.wanted == high - 1
    assert len(plan.leaving) == 1


def test_where_the_file_does_not_say_a_quarter_leaves_at_once() -> None:
    """Sixteen that one is enough for go by quarters, a minute apart; one leaves of three."""
    planner = Planner(structs.replace(SCALE, step_down_max=0))
    path = [planner.step(60 * minute * NS, facts(0.5, 16)).wanted for minute in range(16)]
    assert [count for at, count in enumerate(path) if not at or path[at - 1] != count] == [
        *(16, 12, 9, 7, 6, 5, 4, 3, 2, 1),
    ]


def test_a_service_that_has_just_begun_takes_nobody_away() -> None:
    """A restarted service knows no past: what it finds stays for the hold and a load time."""
    planner = Planner(SCALE)
    assert planner.step(0, facts(0.5, 12)).wanted == 12
    assert planner.step(359 * NS, facts(0.5, 12)).wanted == 12
    assert planner.step(361 * NS, facts(0.5, 12)).wanted == 11


def test_a_step_up_is_no_larger_than_the_file_allows() -> None:
    """Each step adds `step_up_max` at the most, and says that it was held back."""
    planner = Planner(structs.replace(SCALE, step_up_max=2))
    first = planner.step(0, facts(100.0))
    assert (first.wanted, first.bound) == (3, "step")
    assert planner.step(5 * NS, facts(100.0)).wanted == 5


def test_before_any_request_ended_those_that_are_there_count() -> None:
    """Four permits, ten requests a second, three of them there at a time: not the eleven that a usual
    answer's length would need; and as they pile up more are wanted."""
    planner, few = Planner(SCALE), structs.replace(A100, permits=4)

    def after(second: int, there: int, **more: Any) -> int:
        ready = (ReplicaFact(address="a", stage="ready", requests=there),)
        told = {"demand": Demand(requests_per_s=10.0), "replicas": ready, **more}
        return planner.step(second * NS, facts(10.0, kinds=(few,), **told)).need_high.replicas

    assert after(0, 1) == 1
    assert after(5, 3) == 2
    assert after(10, 8, held=8) == 8
    # The first ends are believed at once, not after half a minute of what was assumed.
    short = tuple(WorkSample("standard", 100, 0, 8 + at % 2) for at in range(32))
    assert after(15, 3, demand=Demand(requests_per_s=10.0, samples=short)) == 1


def test_the_budget_bounds_what_is_wanted() -> None:
    """Replicas beyond what an hour may cost are not wanted, and the plan says why."""
    planner = Planner(structs.replace(SCALE, budget_per_hour=7.0))
    plan = planner.step(0, facts(100.0))
    assert (plan.wanted, plan.bound) == (3, "budget")
    assert plan.cost_per_hour == 6.0


def test_what_is_out_of_reach_is_said() -> None:
    """A load that even `max_replicas` do not bear is bound by "max"."""
    planner = Planner(structs.replace(SCALE, max_replicas=2))
    assert planner.step(0, facts(100.0)).bound == "max"


def test_the_schedule_is_a_floor_below_the_maximum() -> None:
    """A known event has its replicas whatever the forecast says, within `max_replicas`."""
    planner = Planner(SCALE)
    assert planner.step(0, facts(1.0, floor=6)).wanted == 6
    assert planner.step(NS, facts(1.0, floor=600)).wanted == SCALE.max_replicas


def test_from_zero_one_is_wanted_at_once_and_the_last_goes_when_nobody_asks() -> None:
    """A held request wakes a pool that has none; the last replica goes after `zero_after_s` of silence."""
    planner = Planner(structs.replace(SCALE, min_replicas=0, down_after_s=0.0))
    assert planner.step(0, facts(0.0, 0)).wanted == 0
    assert planner.step(NS, facts(0.0, 0, held=1, idle_s=0.0)).wanted == 1
    for at in range(2, 1000, 50):
        assert planner.step(at * NS, facts(0.0, 1, idle_s=float(at))).wanted == (1 if at < 900 else 0), at


def test_a_replica_that_loads_is_taken_back_before_one_that_serves() -> None:
    """What holds nothing leaves first; of those that serve the one with the least to lose."""
    replicas = (
        ReplicaFact(address="a", stage="ready", cached_value_tokens=5_000),
        ReplicaFact(address="b", stage="ready", cached_value_tokens=10),
        ReplicaFact(address="c", stage="loading"),
        ReplicaFact(address="d", stage="draining"),
    )
    planner = Planner(structs.replace(SCALE, down_after_s=0.0, step_down_max=5))
    told = facts(0.5, replicas=replicas, load_time=LoadTime(p50_s=1.0, p90_s=1.0))
    planner.step(0, told)
    plan = planner.step(2 * NS, told)
    assert (plan.wanted, plan.leaving) == (1, ("c", "b"))
    assert plan.draining == 1


def test_the_kind_to_add_is_the_cheapest_that_is_enough() -> None:
    """An H100 that bears more for its price is added; at ten times the price it is not."""
    planner = Planner(SCALE)
    assert planner.step(0, facts(60.0, kinds=(A100, H100))).kind == "h100"
    dear = structs.replace(H100, price_per_hour=20.0)
    assert planner.step(NS, facts(60.0, kinds=(A100, dear))).kind == "a100"


def test_no_oscillation_on_a_constant_load_with_noise() -> None:
    """A noisy constant load changes direction less than once an hour, whatever the hold."""
    rng = Random(5)
    planner, count = Planner(SCALE), 4
    path = []
    for at in range(0, 2 * 3600, 5):
        rate = 30.0 * (1.0 + rng.gauss(0.0, 0.03))
        count = planner.step(at * NS, facts(rate, count)).wanted
        path.append(count)
    moves = [b - a for a, b in pairwise(path) if a != b]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(moves))
    assert turns <= 2


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(0, 40),
            st.integers(0, 50),
            st.integers(0, 30),
            st.integers(0, 600),
        ),
        max_size=30,
    ),
    st.integers(0, 5),
    st.integers(0, 10),
)
def test_a_plan_is_always_within_the_bounds(
    steps: list[tuple[float, int, int, int, int]], least: int, more: int
) -> None:
    """Whatever is forecast, and however the clock goes, `min_replicas` and `max_replicas` hold."""
    scale = structs.replace(SCALE, min_replicas=least, max_replicas=max(1, least + more))
    planner = Planner(scale)
    for rate, count, held, floor, at in steps:
        plan = planner.step(at * NS, facts(rate, count, held=held, floor=floor, idle_s=None))
        assert scale.min_replicas <= plan.wanted <= scale.max_replicas
        assert len(plan.leaving) <= max(0, plan.had - plan.wanted)


@given(st.floats(0.0, 500.0), st.floats(0.0, 500.0))
def test_more_work_never_wants_fewer(one: float, other: float) -> None:
    """The need is monotone in the rate."""
    low, high = sorted((one, other))
    few = Planner(SCALE).step(0, facts(low, 0))
    many = Planner(SCALE).step(0, facts(high, 0))
    assert few.need_high.replicas <= many.need_high.replicas
    assert few.wanted <= many.wanted
