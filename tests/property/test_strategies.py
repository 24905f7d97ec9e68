"""Laws of all strategies: what a ranking is, that fleets' listing order and missing inputs do not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import LATER_MS
from extproc.core.predict.prior import Prior, prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.core.strategies import NOW, STRATEGIES, SchedulingContext, Work, build
from tests.stand.examples import examples

#: Those that may answer that it waits.
HOLDING = {"steer", "queue"}
#: Those that draw: by chance alone, or to break ties.
DRAWING = {
    "random",
    "power_of_two",
    "latency",
    "llmd-default",
    "llmd-token-load",
    "aibrix-prefix",
    "dynamo-kv",
}
#: Those that score infinity where nothing was drawn.
SAMPLING = {"power_of_two", "latency"}
#: Those whose scores do not read the load at all, or read it only in reports.
BLIND = {"round_robin", "random", "llmd-default"}
#: Its pair is drawn, so that a place among all says nothing.
PAIRED = {"power_of_two"}

S = 1_000_000_000
MODELS = (
    SpeedModel(prior("NVIDIA H100 80GB HBM3")),
    SpeedModel(prior("", "")),
    SpeedModel(Prior(Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0, False)),
)


def report_of(rng: Random) -> ReplicaReport | None:
    """What an agent may say: anything, or nothing."""

    def maybe(most: int) -> int | None:
        return rng.choice((None, 0, rng.randrange(most)))

    if rng.random() < 0.3:
        return None
    return ReplicaReport(
        address="",
        pool="p",
        waiting=maybe(1_000),
        running=maybe(1_000),
        kv_used_tokens=maybe(10**6),
        kv_capacity_tokens=maybe(10**6),
        gpus=tuple(GpuReport(uuid="g", memory_total_bytes=maybe(1 << 37)) for _ in range(rng.randrange(3))),
    )


def fleet_of(size: int, seed: int) -> list[Endpoint]:
    """Endpoints in any state, usual and absurd. From a seed: Hypothesis would draw 20 fields of each.

    Who was picked when is the position in the list, so that no tie is left.
    """
    rng = Random(seed)
    calm = rng.random() < 0.3

    def count(most: int) -> int:
        return rng.choice((0, rng.randrange(10), rng.randrange(most)))

    endpoints = []
    for i in range(size):
        e = Endpoint(
            address=f"10.0.0.{i}:80",
            pool="p",
            zone=rng.choice(("", "a", "b")),
            max_concurrent=rng.choice((0, 1, 128)),
        )
        e.picked, e.report = i, report_of(rng)
        e.requests = e.permits = count(200)
        e.tokens, e.turn = count(10**9), rng.uniform(0.0, 1e6)
        e.peer_requests = e.peer_permits = 0 if calm else count(100)
        e.foreign, e.smooth = 0 if calm else count(100), rng.uniform(-1.0, 1.0)
        e.weight = 1.0 if calm else rng.uniform(0.01, 1.0)
        e.kv_capacity_tokens = rng.choice((0, 1, 450_000))
        e.price_per_hour, e.spot = rng.choice((0.0, 0.5, 12.0)), rng.random() < 0.5
        e.speed = Speed(MODELS[0] if calm else rng.choice(MODELS))
        e.speed.factor = rng.uniform(0.3, 10.0)
        e.latency.ttft.saw(count(10**6), now_ns=S)
        e.latency.tpot.saw(count(10**6), now_ns=S)
        load = e.load
        load.queued = 0 if calm else rng.randrange(3)
        load.queued_tokens = load.queued and count(10**6)
        load.queued_ms = load.queued and rng.uniform(0.0, 1e5)
        load.streaming, load.context_tokens = count(200), count(10**7)
        load.reserved_tokens = count(10**7)
        endpoints.append(e)
    return endpoints


fleets = st.builds(fleet_of, st.integers(1, 12), st.integers(0, 1 << 32))
works = st.builds(
    Work,
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    zone=st.sampled_from(("", "a")),
    zone_penalty_tokens=st.sampled_from((0, 2_000)),
    max_new_tokens=st.none() | st.integers(0, 10**6),
    sequences=st.integers(1, 8),
    prefix=st.integers(0, 6).map(lambda blocks: tuple(range(blocks))),
    block_tokens=st.sampled_from((16.0, 64.0)),
    session=st.integers(-3, 3),
    rank=st.integers(0, 2),
    ttft_ms=st.floats(0.0, 1e5),
    tpot_ms=st.floats(0.0, 1e3),
)
moments = st.builds(
    SchedulingContext,
    now_ns=st.integers(0, 100 * S),
    cached=st.dictionaries(st.integers(0, 12).map(lambda i: f"10.0.0.{i}:80"), st.integers(0, 10**6)),
    patient=st.booleans(),
    deciders=st.integers(1, 4),
)
names = pytest.mark.parametrize("name", sorted(STRATEGIES))


def taught(name: str, candidates: list[Endpoint], work: Work, params: dict[str, Any] | None = None) -> Any:
    """A strategy that has placed the request's like on every other candidate before."""
    strategy = build(name, params or {})
    for endpoint in candidates[::2]:
        if hasattr(strategy, "picked") and name != "weighted_round_robin":
            strategy.picked(candidates, endpoint, work, at=NOW)
    return strategy


@names
@given(candidates=fleets, work=works, at=moments, wanted=st.integers(1, 3), seed=st.integers(0, 999))
@examples(60)
def test_a_ranking_is_well_formed(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext, wanted: int, seed: int
) -> None:
    """A score for each candidate, never NaN or negative; as many distinct best as asked for, best first.

    Only who binds late may name none; what it does not give out now scores as later.
    """
    count = min(wanted, len(candidates))
    ranking = taught(name, candidates, work).rank(candidates, work, count=count, rng=Random(seed), at=at)
    assert len(ranking.scores) == len(candidates)
    assert all(score >= 0 for score in ranking.scores)  # NaN is not
    assert name in SAMPLING or all(math.isfinite(score) for score in ranking.scores)
    if not ranking.best:
        assert name in HOLDING
        assert at.patient or min(ranking.scores) >= LATER_MS
        return
    assert len(ranking.best) == len(set(ranking.best)) == count
    assert all(0 <= i < len(candidates) for i in ranking.best)
    ordered = [ranking.scores[i] for i in ranking.best]
    assert name in SAMPLING or ordered == sorted(ordered)


@pytest.mark.parametrize("name", ["llmd-default", "llmd-token-load"])
@given(candidates=fleets, work=works)
@examples(40)
def test_the_scorers_of_llmd_are_bounded(name: str, candidates: list[Endpoint], work: Work) -> None:
    """Sums of scores from 0 to 1 each."""
    ranking = taught(name, candidates, work).rank(candidates, work, count=1, rng=Random(1))
    assert max(ranking.scores) <= {"llmd-default": 7.0, "llmd-token-load": 2.0}[name]


@pytest.mark.parametrize("name", sorted((set(STRATEGIES) - DRAWING) | {"latency"}))
@given(candidates=fleets, work=works, at=moments, wanted=st.integers(1, 3), data=st.data())
@examples(60)
def test_the_order_of_candidates_does_not_matter(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext, wanted: int, data: st.DataObject
) -> None:
    """A policy of scores names the same endpoints however the fleet is listed, and takes the lowest."""
    shuffled = data.draw(st.permutations(candidates))
    count = min(wanted, len(candidates))
    strategy = taught(name, candidates, work, {"choices": 0} if name == "latency" else None)
    one = strategy.rank(candidates, work, count=count, rng=Random(1), at=at)
    other = strategy.rank(shuffled, work, count=count, rng=Random(2), at=at)
    assert [candidates[i].address for i in one.best] == [shuffled[i].address for i in other.best]
    assert not one.best or one.scores[one.best[0]] == min(one.scores)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) & DRAWING))
@given(candidates=fleets, work=works, data=st.data())
@examples(30)
def test_scores_do_not_depend_on_the_order_of_candidates(
    name: str, candidates: list[Endpoint], work: Work, data: st.DataObject
) -> None:
    """Where ties are drawn, or a few are, a score is the same wherever its endpoint stands."""
    shuffled = data.draw(st.permutations(candidates))
    strategy = taught(name, candidates, work)
    one = strategy.rank(candidates, work, count=1, rng=Random(1))
    other = strategy.rank(shuffled, work, count=1, rng=Random(2))
    if name == "random":
        # Its scores are the draws themselves: who is drawn at all is all that can be said.
        assert one.scores[one.best[0]] == min(one.scores)
        return
    there = {e.address: score for e, score in zip(shuffled, other.scores, strict=True)}
    for endpoint, score in zip(candidates, one.scores, strict=True):
        both = score, there[endpoint.address]
        assert math.inf in both or both[0] == pytest.approx(both[1])


def _request(endpoint: Endpoint) -> None:
    endpoint.requests, endpoint.permits = endpoint.requests + 1, endpoint.permits + 1


def _tokens(endpoint: Endpoint) -> None:
    endpoint.tokens += 100_000


def _queue(endpoint: Endpoint) -> None:
    endpoint.load.queued += 1
    endpoint.load.queued_tokens += 2_000
    endpoint.load.queued_ms += 100.0


def _stream(endpoint: Endpoint) -> None:
    endpoint.load.streaming += 5
    endpoint.load.context_tokens += 5_000


def _foreign(endpoint: Endpoint) -> None:
    endpoint.foreign += 3


LOADS: list[Callable[[Endpoint], None]] = [_request, _tokens, _queue, _stream, _foreign]


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - BLIND - PAIRED))
@given(candidates=fleets, work=works, at=moments, which=st.integers(0, 11), more=st.sampled_from(LOADS))
@examples(80)
def test_more_load_never_makes_an_endpoint_better(
    name: str,
    more: Callable[[Endpoint], None],
    candidates: list[Endpoint],
    work: Work,
    at: SchedulingContext,
    which: int,
) -> None:
    """Another request, tokens, queue or stream on one endpoint does not move it forward among the others."""
    loaded = candidates[which % len(candidates)]
    at = replace(at, patient=False)
    strategy = taught(name, candidates, work, {"choices": 0} if name == "latency" else None)

    def place() -> int:
        """How many are strictly better."""
        scores = strategy.rank(candidates, work, count=1, rng=Random(1), at=at).scores
        mine = scores[candidates.index(loaded)]
        return sum(score < mine and not _close(score, mine) for score in scores)

    before = place()
    more(loaded)
    assert place() >= before


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)


@names
@given(work=works, size=st.integers(1, 5), seed=st.integers(0, 99))
@examples(20)
def test_nothing_known_is_no_fault(name: str, work: Work, size: int, seed: int) -> None:
    """No reports, no prices, no speeds, no memory, no prefix: somebody is still chosen, and explained."""
    candidates = [Endpoint(address=f"10.0.0.{i}:80", pool="p") for i in range(size)]
    for endpoint in candidates:
        endpoint.speed = Speed(MODELS[2])
    work = replace(work, prefix=())
    strategy: Any = build(name)
    ranking = strategy.rank(candidates, work, count=1, rng=Random(seed))
    assert len(ranking.best) == 1
    assert all(math.isfinite(value) for value in strategy.explain(candidates[0], work).values())


@names
@given(candidates=fleets, work=works, at=moments)
@examples(30)
def test_every_term_is_a_number(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """What explains a score can be printed, whatever the endpoint."""
    strategy = taught(name, candidates, work)
    for endpoint in candidates:
        terms = strategy.explain(endpoint, work, at=at)
        assert terms
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in terms.values())


@names
@given(candidates=fleets, work=works, at=moments)
@examples(20)
def test_ranking_changes_nothing(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """Asked twice with the same chance it answers the same: only `picked` moves anything."""
    strategy = taught(name, candidates, work)
    one = strategy.rank(candidates, work, count=1, rng=Random(1), at=at)
    other = strategy.rank(candidates, work, count=1, rng=Random(1), at=at)
    assert (list(one.scores), list(one.best)) == (list(other.scores), list(other.best))
