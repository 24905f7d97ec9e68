from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import LATER_MS
from extproc.core.strategies import SchedulingContext, Work
from extproc.core.strategies.cost import LeastCost
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
STRATEGY = LeastCost()
#: A prefill of 5 + 1000/10 = 105 ms on an endpoint of factor 1; targets 1,000 and 100 ms.
PREMIUM = Work(input_tokens=1_000, output_tokens=0, rank=0)
BATCH = Work(input_tokens=1_000, output_tokens=0, rank=1)


def mixed(fleet: Fleet) -> list[Endpoint]:
    """A fast dear one, a plain one, a slow cheap one, and a plain one on spot capacity."""
    fast, plain, slow, spot = fleet(4)
    fast.price_per_hour, fast.speed.factor = 8.0, 0.5
    plain.price_per_hour = 2.0
    slow.price_per_hour, slow.speed.factor = 0.5, 2.0
    spot.price_per_hour, spot.spot = 0.6, True
    return [fast, plain, slow, spot]


def order(endpoints: list[Endpoint], work: Work, strategy: LeastCost = STRATEGY) -> list[int]:
    return list(strategy.rank(endpoints, work, count=len(endpoints), rng=Random(1)).best)


def test_batch_goes_where_it_is_cheapest(fleet: Fleet) -> None:
    """By price × busy time, whoever is fastest."""
    # busy 52.5, 105, 210, 105 ms; times price 420, 210, 105, 63
    assert order(mixed(fleet), BATCH) == [3, 2, 1, 0]


def test_batch_scores_are_tiers_and_a_fraction(fleet: Fleet) -> None:
    """A tier for each tenth dearer than the cheapest, plus the time over the target."""
    ranking = STRATEGY.rank(mixed(fleet), BATCH, count=1, rng=Random(1))
    # ln(420/63) / ln 1.1 = 19.9, ln(210/63) / ln 1.1 = 12.6, ln(105/63) / ln 1.1 = 5.4
    assert list(ranking.scores) == pytest.approx([19 + 0.0525, 12 + 0.105, 5 + 0.21, 0 + 0.105])


def test_the_first_class_goes_where_it_is_fastest_off_spot(fleet: Fleet) -> None:
    """Spot capacity comes last while the others meet the target."""
    ranking = STRATEGY.rank(mixed(fleet), PREMIUM, count=4, rng=Random(1))
    assert list(ranking.best) == [0, 1, 2, 3]
    assert list(ranking.scores) == pytest.approx([0.0525, 0.105, 0.21, 1.105])


def test_the_first_class_takes_spot_when_the_others_miss(fleet: Fleet) -> None:
    """Better on spot in time than elsewhere too late."""
    endpoints = mixed(fleet)
    for endpoint in endpoints[:3]:
        endpoint.load.queued, endpoint.load.queued_ms = 1, 900.0
    assert order(endpoints, PREMIUM)[0] == 3


def test_batch_leaves_the_fast_alone_until_the_cheap_miss(fleet: Fleet) -> None:
    """It goes up a tier at a time as the cheaper fill."""
    endpoints = mixed(fleet)
    for full, then in ((3, 2), (2, 1), (1, 0)):
        endpoints[full].load.queued, endpoints[full].load.queued_ms = 1, 5_000.0
        assert order(endpoints, BATCH)[0] == then


def test_when_none_meets_the_soonest_is_taken(fleet: Fleet) -> None:
    """Dearer or cheaper, by predicted wait."""
    endpoints = mixed(fleet)
    for endpoint, wait in zip(endpoints, (9_000.0, 7_000.0, 4_000.0, 8_000.0), strict=True):
        endpoint.load.queued, endpoint.load.queued_ms = 1, wait
    for work in (PREMIUM, BATCH):
        ranking = STRATEGY.rank(endpoints, work, count=4, rng=Random(1))
        assert list(ranking.best) == [2, 1, 3, 0]
        assert min(ranking.scores) == pytest.approx(LATER_MS + 4.21)


def test_a_step_too_slow_is_a_miss(fleet: Fleet) -> None:
    """10 + 95 sequences take 105 ms a token, beyond the 100 that are aimed at."""
    cheap, dear = fleet(2)
    cheap.price_per_hour, dear.price_per_hour = 1.0, 2.0
    cheap.load.streaming = 89
    assert order([cheap, dear], BATCH)[0] == 0
    cheap.load.streaming = 90  # with it 10 + 91
    assert order([cheap, dear], BATCH)[0] == 1


def test_output_is_paid_for_too(fleet: Fleet) -> None:
    """A sixteenth of a step of 16 for each token."""
    (endpoint,) = fleet(1)
    endpoint.price_per_hour = 3.6
    terms = terms_of(STRATEGY, endpoint, Work(1_000, 160, rank=1))
    assert terms["busy_ms"] == pytest.approx(105 + 160 * 26 / 16)
    assert terms["cost"] == pytest.approx(365 * 3.6 / 3_600_000)
    assert terms["premium"] == 0.0


def test_cached_tokens_make_an_endpoint_cheaper(fleet: Fleet) -> None:
    """Prefill that is not done is not paid for."""
    one, other = fleet(2)
    one.price_per_hour = other.price_per_hour = 1.0
    at = SchedulingContext(cached={other.address: 960})
    assert STRATEGY.rank([one, other], BATCH, count=1, rng=Random(1), at=at).best[0] == 1


def test_an_unknown_price_is_taken_for_the_dearest(fleet: Fleet) -> None:
    """Never for free; unknown spot is a part of that; none known: the fastest is the cheapest."""
    known, unknown, spot = fleet(3)
    known.price_per_hour, spot.spot = 2.0, True
    assert order([known, unknown, spot], BATCH)[0] == 2  # 0.4 × 2
    unknown.picked = -1
    assert order([known, unknown, spot], BATCH)[1:] == [1, 0]  # the same tier
    known.price_per_hour, spot.spot = 0.0, False
    unknown.speed.factor = 0.5
    assert order([known, unknown, spot], BATCH)[0] == 1


def test_a_single_class_may_be_told_to_save(fleet: Fleet) -> None:
    """Without premium ranks the first class looks at the price as well."""
    assert order(mixed(fleet), PREMIUM, LeastCost(premium_ranks=0)) == order(mixed(fleet), BATCH)
