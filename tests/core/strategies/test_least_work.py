from __future__ import annotations

from collections.abc import Callable
from random import Random

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import Work
from extproc.core.strategies.least_work import LeastWork
from tests.stand.fleets import terms_of


def test_least_work_counts_tokens(fleet: Callable[..., list[Endpoint]]) -> None:
    """One long request outweighs many short ones."""
    endpoints = fleet(3)
    for endpoint, requests, tokens in zip(endpoints, (1, 9, 0), (10_000, 90, 100), strict=True):
        endpoint.requests, endpoint.tokens = requests, tokens
    ranking = LeastWork().rank(endpoints, Work(100, 10), count=2, rng=Random(1))
    assert (list(ranking.scores), list(ranking.best)) == ([10_110, 200, 210], [1, 2])  # its own 110


def test_least_work_explains_its_terms(fleet: Callable[..., list[Endpoint]]) -> None:
    """The score is the sum of the tokens over the weight."""
    (endpoint,) = fleet(1)
    endpoint.tokens, endpoint.peer_tokens, endpoint.foreign, endpoint.weight = 1_000, 500, 2, 0.5
    work = Work(100, 10, zone="a", zone_penalty_tokens=400)
    terms = terms_of(LeastWork(), endpoint, work)
    assert terms == {
        "tokens": 1_000,
        "peer_tokens": 500,
        "foreign_tokens": 1_024,
        "own_tokens": 110,
        "zone_tokens": 400,
        "weight": 0.5,
    }
    (score,) = LeastWork().rank([endpoint], work, count=1, rng=Random(1)).scores
    assert score == (1_000 + 500 + 1_024 + 110 + 400) / 0.5
