from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import STRATEGIES, Work
from extproc.core.strategies.least_request import LeastRequest
from tests.stand.fleets import terms_of

WORK = Work(input_tokens=100, output_tokens=10)


@pytest.mark.parametrize("strategy", ["least_request", "least_work", "weighted_round_robin", "prefix"])
def test_load_is_levelled(strategy: str, scheduler: Callable[[int, str], Any]) -> None:
    """Equal requests that pile up pile up evenly."""
    scene = scheduler(5, strategy)
    scene.serves(52, finish=False)
    assert sorted(endpoint.requests for endpoint in scene.endpoints) == [10, 10, 10, 11, 11]


def test_least_request_counts_requests(fleet: Callable[..., list[Endpoint]]) -> None:
    """Fewest in flight, whatever their size."""
    endpoints = fleet(3)
    for endpoint, requests, tokens in zip(endpoints, (2, 1, 3), (0, 10_000, 0), strict=True):
        endpoint.requests, endpoint.tokens = requests, tokens
    ranking = STRATEGIES["least_request"].rank(endpoints, WORK, count=3, rng=Random(1))
    assert (list(ranking.scores), list(ranking.best)) == ([3, 2, 4], [1, 0, 2])  # its own is one more


def test_least_request_explains_its_terms(fleet: Callable[..., list[Endpoint]]) -> None:
    """The score is (requests + peers' + foreign + 1 + zone) over the weight."""
    (endpoint,) = fleet(1)
    endpoint.requests, endpoint.peer_requests, endpoint.foreign, endpoint.weight = 3, 2, 1, 0.5
    work = Work(100, 100, zone="a", zone_penalty_tokens=400)
    terms = terms_of(LeastRequest(), endpoint, work)
    assert terms == {
        "requests": 3,
        "peer_requests": 2,
        "foreign": 1,
        "zone_requests": 2.0,  # 400 tokens are two requests of 200
        "weight": 0.5,
    }
    (score,) = LeastRequest().rank([endpoint], work, count=1, rng=Random(1)).scores
    assert score == (3 + 2 + 1 + 1 + 2) / 0.5
