from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.core.fleet import Endpoint
from extproc.core.strategies import STRATEGIES, Work

#: requests, tokens; who was picked when is the position in the list, so that no tie is left.
books = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**9)), min_size=1, max_size=40)
works = st.builds(Work, st.integers(0, 10**9), st.integers(0, 10**9))


def endpoints_of(rows: list[tuple[int, int]]) -> list[Endpoint]:
    endpoints = []
    for i, (requests, tokens) in enumerate(rows):
        endpoint = Endpoint(address=f"10.0.0.{i}:80", pool="p")
        endpoint.requests, endpoint.tokens, endpoint.picked = requests, tokens, i
        endpoints.append(endpoint)
    return endpoints


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(rows=books, work=works, wanted=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_ranking_is_well_formed(
    name: str, rows: list[tuple[int, int]], work: Work, wanted: int, seed: int
) -> None:
    """A score for each candidate, never NaN or negative; as many distinct best as asked for, best first."""
    candidates = endpoints_of(rows)
    count = min(wanted, len(candidates))
    ranking = STRATEGIES[name].rank(candidates, work, count=count, rng=Random(seed))
    assert len(ranking.scores) == len(candidates)
    assert all(score >= 0 and not math.isnan(score) for score in ranking.scores)
    assert len(ranking.best) == len(set(ranking.best)) == count
    assert all(0 <= i < len(candidates) for i in ranking.best)
    ordered = [ranking.scores[i] for i in ranking.best]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize("name", ["least_request", "least_work", "round_robin"])
@given(rows=books, work=works, wanted=st.integers(1, 3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_candidates_does_not_matter(
    name: str, rows: list[tuple[int, int]], work: Work, wanted: int, data: st.DataObject
) -> None:
    """A policy of scores names the same endpoints however the fleet is listed, and takes the lowest."""
    candidates = endpoints_of(rows)
    shuffled = data.draw(st.permutations(candidates))
    count = min(wanted, len(candidates))
    strategy = STRATEGIES[name]
    one = strategy.rank(candidates, work, count=count, rng=Random(1))
    other = strategy.rank(shuffled, work, count=count, rng=Random(2))
    assert [candidates[i].address for i in one.best] == [shuffled[i].address for i in other.best]
    assert one.scores[one.best[0]] == min(one.scores)
