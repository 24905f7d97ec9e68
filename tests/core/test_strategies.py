from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from extproc.core.desk import Desk, DeskLimits
from extproc.core.fleet import Endpoint, Fleet, PoolSpec
from extproc.core.outcome import Routed
from extproc.core.request import Dialect, Kind, Request
from extproc.core.strategies import FALLBACK, STRATEGIES, Work, lowest
from extproc.core.tenant import ANONYMOUS

WORK = Work(input_tokens=100, output_tokens=10)
CHAT = Request(kind=Kind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)


def endpoints_of(count: int) -> list[Endpoint]:
    return [Endpoint(address=f"10.0.0.{i}:80", pool="p") for i in range(count)]


def desk_of(count: int, strategy: str) -> Desk:
    spec = PoolSpec(
        name="p",
        models=("m",),
        strategy=strategy,
        endpoints=tuple((f"10.0.0.{i}:80", "", 60_000) for i in range(count)),
    )
    return Desk(Fleet([spec]), instance="i", default_model="m", limits=DeskLimits(), rng=Random(7))


def served(desk: Desk, requests: int, *, finish: bool = True) -> list[str]:
    """Where so many requests go, each ended at once unless they shall pile up."""
    chosen = []
    for _ in range(requests):
        decision = desk.admit(CHAT, ANONYMOUS, now_ns=0)
        assert isinstance(decision, Routed)
        chosen.append(decision.addresses[0])
        if finish:
            desk.cancel(decision.reservation.id, now_ns=0)
    return chosen


def test_the_registry() -> None:
    """Every policy is found by its name."""
    assert sorted(STRATEGIES) == ["least_request", "least_work", "power_of_two", "random", "round_robin"]
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())
    assert FALLBACK is STRATEGIES["least_request"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lowest_breaks_ties_by_the_least_recently_picked(count: int) -> None:
    """Equal scores go to whoever waited longest, whether one or more are wanted."""
    endpoints = endpoints_of(4)
    for endpoint, picked in zip(endpoints, (9, 3, 5, 1), strict=True):
        endpoint.picked = picked
    assert lowest(endpoints, [1.0, 1.0, 1.0, 2.0], count) == [1, 2, 0][:count]


def test_round_robin_rotates() -> None:
    """Each in turn, over and over."""
    order = served(desk_of(4, "round_robin"), 12)
    assert order == order[:4] * 3
    assert len(set(order[:4])) == 4


def test_round_robin_stays_even_while_endpoints_leave_and_return() -> None:
    """One that was away takes up its turn; it is not sent what it missed."""
    desk = desk_of(4, "round_robin")
    away = desk.fleet.endpoints[2]
    served(desk, 6)
    away.ready = False
    without = Counter(served(desk, 9))
    assert set(without.values()) == {3}
    assert away.address not in without
    away.ready = True
    back = served(desk, 12)
    assert back[0] == away.address
    assert set(Counter(back).values()) == {3}


@pytest.mark.parametrize("strategy", ["least_request", "least_work", "round_robin"])
def test_an_idle_fleet_is_used_evenly(strategy: str) -> None:
    """Ties do not all go to the first."""
    assert set(Counter(served(desk_of(5, strategy), 50)).values()) == {10}


@pytest.mark.parametrize("strategy", ["least_request", "least_work"])
def test_load_is_levelled(strategy: str) -> None:
    """Equal requests that pile up pile up evenly."""
    desk = desk_of(5, strategy)
    served(desk, 52, finish=False)
    loads = sorted(endpoint.requests for endpoint in desk.fleet.endpoints)
    assert loads == [10, 10, 10, 11, 11]


def test_least_request_counts_requests() -> None:
    """Fewest in flight, whatever their size."""
    endpoints = endpoints_of(3)
    for endpoint, requests, tokens in zip(endpoints, (2, 1, 3), (0, 10_000, 0), strict=True):
        endpoint.requests, endpoint.tokens = requests, tokens
    ranking = STRATEGIES["least_request"].rank(endpoints, WORK, count=3, rng=Random(1))
    assert (list(ranking.scores), list(ranking.best)) == ([3, 2, 4], [1, 0, 2])  # its own is one more


def test_least_work_counts_tokens() -> None:
    """One long request outweighs many short ones."""
    endpoints = endpoints_of(3)
    for endpoint, requests, tokens in zip(endpoints, (1, 9, 0), (10_000, 90, 100), strict=True):
        endpoint.requests, endpoint.tokens = requests, tokens
    ranking = STRATEGIES["least_work"].rank(endpoints, WORK, count=2, rng=Random(1))
    assert (list(ranking.scores), list(ranking.best)) == ([10_110, 200, 210], [1, 2])  # its own 110


def test_random_has_equal_chances() -> None:
    """Within 10 % over ten thousand draws, retries included."""
    endpoints, rng = endpoints_of(5), Random(3)
    firsts, seconds = Counter[int](), Counter[int]()
    for _ in range(10_000):
        ranking = STRATEGIES["random"].rank(endpoints, WORK, count=2, rng=rng)
        firsts[ranking.best[0]] += 1
        seconds[ranking.best[1]] += 1
    for counts in (firsts, seconds):
        assert all(1_800 < counts[i] < 2_200 for i in range(5))


def test_power_of_two_distribution() -> None:
    """Of n ranked by load, place k is chosen with 2(n-1-k)/(n(n-1)): the best often, the worst never."""
    endpoints, rng = endpoints_of(5), Random(5)
    for load, endpoint in enumerate(endpoints):
        endpoint.requests = load
    firsts = Counter(
        STRATEGIES["power_of_two"].rank(endpoints, WORK, count=1, rng=rng).best[0] for _ in range(20_000)
    )
    # 2·4/20, 2·3/20, 2·2/20, 2·1/20, 0
    for place, share in enumerate((0.4, 0.3, 0.2, 0.1)):
        assert firsts[place] == pytest.approx(20_000 * share, rel=0.1)
    assert firsts[4] == 0


def test_power_of_two_names_the_pair_first() -> None:
    """The loser of the pair is the first retry; whom nobody sampled scores infinity."""
    endpoints = endpoints_of(6)
    ranking = STRATEGIES["power_of_two"].rank(endpoints, WORK, count=3, rng=Random(1))
    assert [math.isinf(ranking.scores[i]) for i in ranking.best] == [False, False, True]
    assert sum(map(math.isinf, ranking.scores)) == 4


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_one_candidate(strategy: str) -> None:
    """A pool of one works with every policy."""
    ranking = STRATEGIES[strategy].rank(endpoints_of(1), WORK, count=1, rng=Random(1))
    assert (len(ranking.scores), list(ranking.best)) == (1, [0])
