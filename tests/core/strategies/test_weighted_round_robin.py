from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoint import Endpoint
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.core.strategies import NOW, Work
from extproc.core.strategies.weighted_round_robin import WeightedRoundRobin, memory_tokens, weights_of
from tests.stand.examples import examples
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
WORK = Work(input_tokens=100, output_tokens=10)
GIB = 1 << 30


def picks(endpoints: Sequence[Endpoint], number: int) -> list[int]:
    """Which endpoint is chosen each time, with nothing but the rotation to move."""
    strategy, chosen = WeightedRoundRobin(), []
    ready = [e for e in endpoints if e.ready]
    for _ in range(number):
        (best,) = strategy.rank(ready, WORK, count=1, rng=Random(1)).best
        strategy.picked(endpoints, ready[best], WORK, at=NOW)
        chosen.append(endpoints.index(ready[best]))
    return chosen


def of_memory(*tokens: int) -> list[Endpoint]:
    endpoints = []
    for i, each in enumerate(tokens):
        endpoint = Endpoint(address=f"10.0.0.{i}:80", pool="p")
        endpoint.kv_capacity_tokens, endpoint.picked = each, i
        endpoints.append(endpoint)
    return endpoints


def test_a_cycle_is_spread_out() -> None:
    """Weights 5, 1, 1: five of seven, with the rare ones between them, where 5 × a, b, c would be a burst."""
    chosen = picks(of_memory(50_000, 10_000, 10_000), 14)
    assert chosen == [0, 0, 0, 1, 0, 2, 0] * 2


@given(tokens=st.lists(st.integers(1, 60), min_size=1, max_size=12), number=st.integers(1, 200))
@examples(80)
def test_shares_follow_the_weights(tokens: list[int], number: int) -> None:
    """After any number of picks each endpoint has had its share of them, within one."""
    counts = Counter(picks(of_memory(*(each * 1_000 for each in tokens)), number))
    for i, each in enumerate(tokens):
        assert abs(counts[i] - number * each / sum(tokens)) <= 1.0 + 1e-6


def test_the_weight_is_memory_times_compute_times_health_times_room(fleet: Fleet) -> None:
    """Each factor counts in proportion."""
    plain, twice, slow, ill, busy, full = fleet(6)
    for endpoint in (plain, slow, ill, busy, full):
        endpoint.kv_capacity_tokens = 100_000
    twice.kv_capacity_tokens = 200_000
    slow.speed.factor = 4.0
    ill.weight = 0.5
    busy.permits, busy.peer_permits, busy.foreign = 64, 16, 16  # 96 of 128: a quarter is free
    full.permits = 128
    weights = weights_of([plain, twice, slow, ill, busy, full])
    shares = [each / weights[0] for each in weights]
    assert shares == pytest.approx([1.0, 2.0, 0.25, 0.5, 0.25, 0.05])


def test_memory_is_the_best_that_is_known(fleet: Fleet) -> None:
    """Configured or reported tokens, else the GPUs' memory, else the prior; 32 GB is twice 16 GB."""
    configured, said, big, small, unknown = fleet(5)
    configured.kv_capacity_tokens = 70_000
    said.report = ReplicaReport(address="", pool="p", kv_capacity_tokens=60_000)
    for endpoint, gib in ((big, 32), (small, 16)):
        gpus = (GpuReport(uuid="g", memory_total_bytes=gib * GIB), GpuReport(uuid="h"))
        endpoint.report = ReplicaReport(address="", pool="p", gpus=gpus)
    assert memory_tokens(configured) == 70_000
    assert memory_tokens(said) == 60_000
    assert memory_tokens(big) == 2 * memory_tokens(small) == 32 * 5_625
    assert memory_tokens(unknown) == 100_000
    assert Counter(picks([big, small], 30)) == {0: 20, 1: 10}


def test_who_is_away_or_full_gains_nothing() -> None:
    """It comes back into its turn, without a burst."""
    endpoints = of_memory(10_000, 10_000, 10_000)
    picks(endpoints, 4)
    endpoints[2].ready = False
    assert Counter(picks(endpoints, 20)) == {0: 10, 1: 10}
    endpoints[2].ready = True
    assert max(Counter(picks(endpoints, 9)).values()) <= 4


def test_changing_weights_move_the_shares_at_once() -> None:
    """A throttled endpoint gets less from the next pick on, and no arrears later."""
    endpoints = of_memory(10_000, 10_000)
    picks(endpoints, 10)
    endpoints[0].weight = 0.25
    assert Counter(picks(endpoints, 50)) == {0: 10, 1: 40}
    endpoints[0].weight = 1.0
    assert Counter(picks(endpoints, 50))[0] in (24, 25, 26)


def test_ranking_moves_nothing_and_puts_those_due_first() -> None:
    """The scores are picks until an endpoint would be one behind; who is ahead of its share is later."""
    endpoints = of_memory(30_000, 10_000)
    strategy = WeightedRoundRobin()
    first = strategy.rank(endpoints, WORK, count=2, rng=Random(1))
    assert list(first.scores) == pytest.approx([4 / 3, 4.0])  # 1/(3/4), 1/(1/4)
    assert strategy.rank(endpoints, WORK, count=2, rng=Random(1)) == first
    strategy.picked(endpoints, endpoints[0], WORK, at=NOW)  # credits −1/4, 1/4
    second = strategy.rank(endpoints, WORK, count=2, rng=Random(1))
    assert list(second.scores) == pytest.approx([5 / 3, 3.0])
    terms = terms_of(strategy, endpoints[0], WORK)
    assert terms["memory_tokens"] == 30_000
    assert terms["credit"] == pytest.approx(-0.25)
    assert terms["free"] == pytest.approx(1.0)
    assert terms["weight"] == pytest.approx(30_000 / terms["step_ms"])


def test_the_scheduler_turns_the_rotation(scheduler: Callable[[int, str], Any]) -> None:
    """Over thirty requests an endpoint with twice the memory is sent twice as many."""
    scene = scheduler(3, "weighted_round_robin")
    scene.endpoints[1].kv_capacity_tokens = 200_000
    for i in (0, 2):
        scene.endpoints[i].kv_capacity_tokens = 100_000
    counts = Counter(scene.serves(40))
    assert [counts[e.address] for e in scene.endpoints] == [10, 20, 10]
