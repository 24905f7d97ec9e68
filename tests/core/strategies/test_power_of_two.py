from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import Work
from extproc.core.strategies.power_of_two import PowerOfTwo
from tests.stand.fleets import terms_of

WORK = Work(input_tokens=100, output_tokens=10)


def test_power_of_two_distribution(fleet: Callable[..., list[Endpoint]]) -> None:
    """Of n ranked by load, place k is chosen with 2(n-1-k)/(n(n-1)): the best often, the worst never."""
    endpoints, rng = fleet(5), Random(5)
    for load, endpoint in enumerate(endpoints):
        endpoint.requests = load
    firsts = Counter(PowerOfTwo().rank(endpoints, WORK, count=1, rng=rng).best[0] for _ in range(20_000))
    # 2·4/20, 2·3/20, 2·2/20, 2·1/20, 0
    for place, share in enumerate((0.4, 0.3, 0.2, 0.1)):
        assert firsts[place] == pytest.approx(20_000 * share, rel=0.1)
    assert firsts[4] == 0


def test_power_of_two_names_the_pair_first(fleet: Callable[..., list[Endpoint]]) -> None:
    """The loser of the pair is the first retry; whom nobody sampled scores infinity."""
    ranking = PowerOfTwo().rank(fleet(6), WORK, count=3, rng=Random(1))
    assert [math.isinf(ranking.scores[i]) for i in ranking.best] == [False, False, True]
    assert sum(map(math.isinf, ranking.scores)) == 4


def test_power_of_two_explains_its_terms(fleet: Callable[..., list[Endpoint]]) -> None:
    """Requests by everybody's account, over the weight."""
    (endpoint,) = fleet(1)
    endpoint.requests, endpoint.peer_requests, endpoint.foreign = 1, 2, 3
    assert terms_of(PowerOfTwo(), endpoint, WORK) == {"requests": 6, "weight": 1.0}
