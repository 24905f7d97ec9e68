from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import Ranking, SchedulingContext, Work
from extproc.core.strategies.prefix import LongestPrefix
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
STRATEGY = LongestPrefix()
WORK = Work(input_tokens=1_000, output_tokens=100)


def ranked(endpoints: list[Endpoint], work: Work = WORK, **cached: int) -> Ranking:
    """`e0=512` says that endpoint 0 holds 512 tokens of the prompt."""
    at = SchedulingContext(
        cached={endpoints[int(name[1:])].address: tokens for name, tokens in cached.items()}
    )
    return STRATEGY.rank(endpoints, work, count=len(endpoints), rng=Random(1), at=at)


def test_the_longest_prefix_is_followed(fleet: Fleet) -> None:
    """Scores are the tokens still to be prefilled; of equal caches the less loaded first."""
    endpoints = fleet(4)
    endpoints[2].tokens = 998_900  # with the request's 1,100 a million, half a token
    ranking = STRATEGY.rank(
        endpoints,
        WORK,
        count=4,
        rng=Random(1),
        at=SchedulingContext(cached={endpoints[1].address: 256, endpoints[3].address: 768}),
    )
    assert list(ranking.best)[:2] == [3, 1]
    tie = 1_100 / 1_001_100
    # The third is overloaded: all its prompt, and its load.
    assert list(ranking.scores) == pytest.approx([1_000 + tie, 744 + tie, 1_001_000, 232 + tie])


def test_of_equal_caches_the_less_loaded_is_chosen(fleet: Fleet) -> None:
    """A tie below one token."""
    endpoints = fleet(3)
    endpoints[0].tokens = 5_000
    assert ranked(endpoints, e0=512, e1=512).best[0] == 1
    assert ranked(endpoints, e0=576, e1=512).best[0] == 0


def test_an_overloaded_endpoint_is_not_followed(fleet: Fleet) -> None:
    """Beyond 16,384 tokens and half as much again as the least loaded, least work decides."""
    endpoints = fleet(2)
    endpoints[0].tokens = 16_384
    assert ranked(endpoints, e0=960).best[0] == 0
    endpoints[0].tokens = 16_385
    assert ranked(endpoints, e0=960).best[0] == 1
    assert list(ranked(endpoints, e0=960).scores) == [17_485, 1_100]
    # Where all have much to do, the same difference is no imbalance: 66,385 < 1.5 · 51,100
    endpoints[0].tokens, endpoints[1].tokens = 66_385, 50_000
    assert ranked(endpoints, e0=960).best[0] == 0


def test_a_scrap_of_a_prefix_is_none(fleet: Fleet) -> None:
    """Fewer cached tokens than a block are not worth a detour."""
    endpoints = fleet(2)
    endpoints[0].tokens = 100
    assert ranked(endpoints, e0=63).best[0] == 1
    assert ranked(endpoints, e0=64).best[0] == 0


def test_a_session_has_a_home(fleet: Fleet) -> None:
    """With nothing cached a conversation stays, whatever the load below the guard."""
    endpoints = fleet(5)
    work = Work(1_000, 100, session=42)
    home = ranked(endpoints, work).best[0]
    endpoints[home].tokens = 16_384
    assert ranked(endpoints, work).best[0] == home
    assert ranked(endpoints, work).scores[home] == 0.0
    endpoints[home].tokens = 16_385
    assert ranked(endpoints, work).best[0] != home
    indifferent = LongestPrefix(sessions=False)
    endpoints[home].tokens = 100
    assert indifferent.rank(endpoints, work, count=1, rng=Random(1)).best[0] != home


def test_a_cached_prefix_goes_before_the_home(fleet: Fleet) -> None:
    """Where the cache is, is known; where it should be, is a guess."""
    endpoints = fleet(3)
    work = Work(1_000, 100, session=42)
    home = ranked(endpoints, work).best[0]
    other = (home + 1) % 3
    assert ranked(endpoints, work, **{f"e{other}": 640}).best[0] == other


def test_sessions_spread_and_only_those_of_who_left_move(fleet: Fleet) -> None:
    """Rendezvous hashing: even homes, and a fifth of them new when one of five leaves."""
    endpoints = fleet(5)

    def home(session: int, among: list[Endpoint]) -> str:
        work = Work(100, 10, session=session)
        return among[STRATEGY.rank(among, work, count=1, rng=Random(1)).best[0]].address

    before = {session: home(session, endpoints) for session in range(-500, 500) if session}
    assert all(150 < number < 250 for number in Counter(before.values()).values())
    after = {session: home(session, endpoints[:4]) for session in before}
    moved = [session for session in before if before[session] != after[session]]
    assert {before[session] for session in moved} == {endpoints[4].address}


def test_without_cache_or_session_least_work_decides(fleet: Fleet) -> None:
    """The scores are least_work's."""
    endpoints = fleet(3)
    for endpoint, tokens in zip(endpoints, (300, 100, 200), strict=True):
        endpoint.tokens = tokens
    ranking = ranked(endpoints)
    assert (list(ranking.best), list(ranking.scores)) == ([1, 2, 0], [1_400, 1_200, 1_300])


def test_the_terms_are_told(fleet: Fleet) -> None:
    """What is cached, what is to do, and the lot in the session's rendezvous."""
    (endpoint,) = fleet(1)
    endpoint.tokens = 900
    terms = terms_of(
        STRATEGY,
        endpoint,
        Work(1_000, 100, session=9),
        at=SchedulingContext(cached={endpoint.address: 4_000}),
    )
    assert (terms["cached_tokens"], terms["prompt_tokens"], terms["load_tokens"]) == (999, 1_000, 2_000)
    assert 0.0 < terms["affinity"] < 1.0
    assert terms_of(STRATEGY, endpoint, WORK)["affinity"] == 0.0
