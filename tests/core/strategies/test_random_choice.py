from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import Work
from extproc.core.strategies.random_choice import RandomChoice
from tests.stand.fleets import terms_of

WORK = Work(input_tokens=100, output_tokens=10)


def test_random_has_equal_chances(fleet: Callable[..., list[Endpoint]]) -> None:
    """Within 10 % over ten thousand draws, retries included."""
    endpoints, rng = fleet(5), Random(3)
    firsts, seconds = Counter[int](), Counter[int]()
    for _ in range(10_000):
        ranking = RandomChoice().rank(endpoints, WORK, count=2, rng=rng)
        firsts[ranking.best[0]] += 1
        seconds[ranking.best[1]] += 1
    for counts in (firsts, seconds):
        assert all(1_800 < counts[i] < 2_200 for i in range(5))


def test_random_follows_the_weights(fleet: Callable[..., list[Endpoint]]) -> None:
    """A third of the weight, a third of the requests."""
    endpoints, rng = fleet(2), Random(4)
    endpoints[1].weight = 0.5
    firsts = Counter(RandomChoice().rank(endpoints, WORK, count=1, rng=rng).best[0] for _ in range(6_000))
    assert 1_850 < firsts[1] < 2_150  # 6,000 · .5 / 1.5, within four standard deviations
    assert terms_of(RandomChoice(), endpoints[1], WORK) == {"weight": 0.5}
