from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue import EarliestDeadline
from extproc.core.outcome import LATER_MS
from extproc.core.strategies import SchedulingContext, Work
from extproc.core.strategies.queue import LeastStart
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
STRATEGY = LeastStart()
FIRST, SECOND = Work(100, 10, rank=0), Work(100, 10, rank=1)


def test_the_soonest_start_is_chosen(fleet: Fleet) -> None:
    """What is queued, and half a step of what runs, over the weight."""
    idle, runs, ill, queued = fleet(4)
    runs.load.streaming = 10  # half of 10 + 10 ms
    ill.load.streaming, ill.weight = 10, 0.5
    queued.load.queued, queued.load.queued_ms = 1, 4.0
    ranking = STRATEGY.rank([queued, ill, runs, idle], FIRST, count=4, rng=Random(1))
    assert list(ranking.scores) == pytest.approx([LATER_MS + 4, 20, 10, 0])
    assert list(ranking.best) == [3, 2, 1, 0]


def test_all_queues_full_hold_it(fleet: Fleet) -> None:
    """Nobody is chosen while each has one waiting for its first token; all still have scores."""
    endpoints = fleet(3)
    for endpoint in endpoints:
        endpoint.load.queued, endpoint.load.queued_ms = 1, 50.0
    held = STRATEGY.rank(endpoints, FIRST, count=2, rng=Random(1))
    assert (list(held.best), list(held.scores)) == ([], [LATER_MS + 50] * 3)
    assert STRATEGY.opens(endpoints) == []
    assert list(LeastStart(depth=2).rank(endpoints, FIRST, count=1, rng=Random(1)).best) == [0]
    endpoints[1].load.queued, endpoints[1].load.queued_ms = 0, 0.0
    assert list(STRATEGY.rank(endpoints, FIRST, count=1, rng=Random(1)).best) == [1]
    assert STRATEGY.opens(endpoints) == [endpoints[1]]


def test_the_depth_is_shared_by_the_deciders(fleet: Fleet) -> None:
    """Each of three services fills a third of it, at least one deep."""
    (endpoint,) = fleet(1)
    strategy, among = LeastStart(depth=6), SchedulingContext(deciders=3)
    endpoint.load.queued = 1
    assert strategy.opens([endpoint], at=among) == [endpoint]
    endpoint.load.queued = 2
    assert strategy.opens([endpoint], at=among) == []
    assert strategy.opens([endpoint]) == [endpoint]
    endpoint.load.queued = 0
    assert STRATEGY.opens([endpoint], at=among) == [endpoint]


def test_later_classes_leave_a_reserve(fleet: Fleet) -> None:
    """A tenth of the permits is the first class's."""
    (endpoint,) = fleet(1)
    endpoint.max_concurrent, endpoint.permits = 20, 17
    assert STRATEGY.rank([endpoint], SECOND, count=1, rng=Random(1)).best
    endpoint.permits = 18  # 19 of 20 would leave a twentieth
    assert not STRATEGY.rank([endpoint], SECOND, count=1, rng=Random(1)).best
    assert STRATEGY.rank([endpoint], FIRST, count=1, rng=Random(1)).best
    assert terms_of(STRATEGY, endpoint, SECOND)["leaves_reserve"] == 0.0


def test_an_empty_endpoint_takes_any_class(fleet: Fleet) -> None:
    """One permit in all must not shut the later classes out for good."""
    (endpoint,) = fleet(1)
    endpoint.max_concurrent = 1
    assert STRATEGY.rank([endpoint], SECOND, count=1, rng=Random(1)).best


def test_held_requests_go_by_deadline() -> None:
    """The fair queue serves classes in order; within one the earliest deadline first."""
    assert STRATEGY.order == EarliestDeadline()


def test_the_terms_are_told(fleet: Fleet) -> None:
    """Queue, depth and start of an endpoint, with the handicap of its zone."""
    (endpoint,) = fleet(1)
    endpoint.load.streaming, endpoint.peer_permits = 4, 6
    work = Work(100, 10, zone="a", zone_penalty_tokens=1_000)
    terms = terms_of(STRATEGY, endpoint, work)
    assert terms["start_ms"] == pytest.approx(10.0)
    assert terms["zone_ms"] == pytest.approx(100.0)  # a tenth of a millisecond a token
    assert (terms["depth"], terms["streaming"], terms["leaves_reserve"]) == (1, 10, 1.0)
    (score,) = STRATEGY.rank([endpoint], work, count=1, rng=Random(1)).scores
    assert score == pytest.approx(terms["start_ms"] + terms["zone_ms"])
