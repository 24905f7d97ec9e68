"""Demand: what is counted, what is kept as samples, and a clock that is set."""

from __future__ import annotations

from random import Random

from extproc.core.scaling.demand import SAMPLES_MAX, PoolDemand
from extproc.core.scaling.values import WorkSample


def test_requests_are_counted_by_interval_and_silence_is_zero() -> None:
    """Intervals without a request are told as zeros: nobody came, and that was seen."""
    demand = PoolDemand(10.0, rng=Random(1))
    for at in (100.0, 103.0, 109.9, 110.0, 141.0):
        demand.came(at_s=at)
    assert demand.taken() == [(10, 3.0), (11, 1.0), (12, 0.0), (13, 0.0)]
    assert demand.taken() == []
    assert demand.last_s == 141.0


def test_a_small_step_back_goes_into_the_open_interval_and_a_large_one_begins_anew() -> None:
    """A clock that is corrected by seconds loses nothing; one that is set back by an hour is said."""
    demand = PoolDemand(10.0, rng=Random(1))
    demand.came(at_s=5_000.0)
    demand.came(at_s=4_950.0)
    assert demand.step(at_s=5_010.0)
    assert demand.taken() == [(500, 2.0)]
    assert not demand.step(at_s=1_000.0)
    assert demand.clock_steps == 1
    demand.came(at_s=1_001.0)
    demand.step(at_s=1_010.0)
    assert demand.taken() == [(100, 1.0)]


def test_a_service_that_slept_leaves_a_gap() -> None:
    """Hours that were not counted are no zeros."""
    demand = PoolDemand(10.0, rng=Random(1))
    demand.came(at_s=0.0)
    demand.step(at_s=86_400.0)
    assert demand.taken() == [(0, 1.0)]


def test_requests_are_weighed_by_their_work() -> None:
    """A request of thrice the usual work counts about thrice; one whose work is unknown counts once."""
    demand = PoolDemand(10.0, rng=Random(1))
    for _ in range(1_000):
        demand.worked(100.0, at_s=0.0)
    demand.step(at_s=10.0)
    demand.worked(300.0, at_s=11.0)
    demand.worked(float("nan"), at_s=12.0)
    demand.step(at_s=20.0)
    (_, usual), (_, heavy) = demand.taken()
    assert usual == 1_000.0
    assert 3.9 < heavy < 4.0
    assert 99.0 < demand.unit_ms < 101.0


def test_samples_are_bounded_and_recent() -> None:
    """So many are kept at the most, the newest likelier than the old; what cannot be is none."""
    demand = PoolDemand(10.0, rng=Random(1))
    for i in range(10 * SAMPLES_MAX):
        demand.ended(WorkSample("standard", i + 1, 0, 10))
    assert len(demand.samples) == SAMPLES_MAX
    assert sum(each.prompt_tokens > 8 * SAMPLES_MAX for each in demand.samples) > SAMPLES_MAX // 2
    demand.samples.clear()
    for bad in (WorkSample("", 0, 0, 1), WorkSample("", 5, 6, 1), WorkSample("", 5, 0, -1)):
        demand.ended(bad)
    assert demand.samples == []
