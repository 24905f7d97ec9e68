"""Laws of all strategies: what a ranking is, that fleets' listing order and missing inputs do not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import LATER_MS
from extproc.core.predict.speed import Speed
from extproc.core.strategies import NOW, STRATEGIES, SchedulingContext, Work, build
from tests.stand.changed import replace
from tests.stand.examples import examples
from tests.stand.fleets import MODELS, contexts, fleets, terms_of, works

#: Those that may answer that it waits.
HOLDING = {name for name, strategy in STRATEGIES.items() if strategy.binds_late}
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

names = pytest.mark.parametrize("name", sorted(STRATEGIES))


def taught(name: str, candidates: list[Endpoint], work: Work, params: dict[str, Any] | None = None) -> Any:
    """A strategy that has placed the request's like on every other candidate before."""
    strategy = build(name, params or {})
    for endpoint in candidates[::2]:
        if strategy.keeps_own:
            strategy.picked(candidates, endpoint, work, at=NOW)
    return strategy


@names
@given(candidates=fleets, work=works, at=contexts, wanted=st.integers(1, 3), seed=st.integers(0, 999))
@examples(60)
def test_a_ranking_is_well_formed(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext, wanted: int, seed: int
) -> None:
    """A score for each candidate, never NaN or negative; as many distinct best as asked for, best first.

    Only who binds late may name none; what it does not give out now scores as later. Where none takes it, one
    that was long not tried gets it all the same and stands first: the others are in their order behind it.
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
    if name in HOLDING and min(ranking.scores) >= LATER_MS:
        ordered = ordered[1:]
    assert name in SAMPLING or ordered == sorted(ordered)


@pytest.mark.parametrize("name", ["llmd-default", "llmd-token-load"])
@given(candidates=fleets, work=works)
@examples(40)
def test_the_scorers_of_llmd_are_bounded(name: str, candidates: list[Endpoint], work: Work) -> None:
    """Sums of scores from 0 to 1 each."""
    ranking = taught(name, candidates, work).rank(candidates, work, count=1, rng=Random(1))
    assert max(ranking.scores) <= {"llmd-default": 7.0, "llmd-token-load": 2.0}[name]


@pytest.mark.parametrize("name", sorted((set(STRATEGIES) - DRAWING) | {"latency"}))
@given(candidates=fleets, work=works, at=contexts, wanted=st.integers(1, 3), data=st.data())
@examples(60)
def test_the_order_of_candidates_does_not_matter(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext, wanted: int, data: st.DataObject
) -> None:
    """A policy of scores names the same endpoints however the fleet is listed, and takes the lowest.

    Where none takes it, one that may be tried all the same need not be the lowest.
    """
    shuffled = data.draw(st.permutations(candidates))
    count = min(wanted, len(candidates))
    strategy = taught(name, candidates, work, {"choices": 0} if name == "latency" else None)
    one = strategy.rank(candidates, work, count=count, rng=Random(1), at=at)
    other = strategy.rank(shuffled, work, count=count, rng=Random(2), at=at)
    assert [candidates[i].address for i in one.best] == [shuffled[i].address for i in other.best]
    low = min(one.scores)
    assert not one.best or one.scores[one.best[0]] == low or (strategy.binds_late and low >= LATER_MS)


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
@given(candidates=fleets, work=works, at=contexts, which=st.integers(0, 11), more=st.sampled_from(LOADS))
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
    assert all(math.isfinite(value) for value in terms_of(strategy, candidates[0], work).values())


@names
@given(candidates=fleets, work=works, at=contexts)
@examples(30)
def test_every_term_is_a_number(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """What explains a score can be printed, whatever the endpoint."""
    strategy = taught(name, candidates, work)
    for endpoint in candidates:
        terms = terms_of(strategy, endpoint, work, at=at)
        assert terms
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in terms.values())


@names
@given(candidates=fleets, work=works, at=contexts)
@examples(20)
def test_ranking_changes_nothing(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """Asked twice with the same chance it answers the same: only `picked` moves anything."""
    strategy = taught(name, candidates, work)
    one = strategy.rank(candidates, work, count=1, rng=Random(1), at=at)
    other = strategy.rank(candidates, work, count=1, rng=Random(1), at=at)
    assert (list(one.scores), list(one.best)) == (list(other.scores), list(other.best))
