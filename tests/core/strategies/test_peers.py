from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.reports import ReplicaReport
from extproc.core.strategies import NOW, Ranking, Work
from extproc.core.strategies import build as build_strategy
from extproc.core.strategies.peers import sticky_least_loaded
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
#: Ten blocks of 64 tokens.
PREFIX = tuple(range(101, 111))
WORK = Work(input_tokens=640, output_tokens=100, prefix=PREFIX)


def build(name: str, params: dict[str, float] | None = None) -> Any:
    return build_strategy(name, params or {})


def ranked(strategy: Any, endpoints: list[Endpoint], work: Work = WORK, *, seed: int = 1) -> Ranking:
    ranking: Ranking = strategy.rank(endpoints, work, count=len(endpoints), rng=Random(seed))
    return ranking


def holds(strategy: Any, endpoints: list[Endpoint], **blocks: int) -> None:
    """`e0=4` says that endpoint 0 was sent the first four blocks."""
    for name, number in blocks.items():
        work = Work(number * 64, 0, prefix=PREFIX[:number])
        strategy.picked(endpoints, endpoints[int(name[1:])], work, at=NOW)


def says(endpoint: Endpoint, **report: int) -> None:
    endpoint.report = ReplicaReport(address=endpoint.address, pool="p", **report)


def requests(endpoints: list[Endpoint], *numbers: int) -> None:
    for endpoint, number in zip(endpoints, numbers, strict=True):
        endpoint.requests = number


def test_llmd_default_sums_three_scorers(fleet: Fleet) -> None:
    """Queue 2, KV 2, prefix 3; the score is 7 less the sum."""
    endpoints, strategy = fleet(3), build("llmd-default")
    says(endpoints[0], waiting=4, kv_used_tokens=50, kv_capacity_tokens=100)
    says(endpoints[1], waiting=1, kv_used_tokens=100, kv_capacity_tokens=100)
    says(endpoints[2], waiting=2)
    holds(strategy, endpoints, e0=10, e2=5)
    ranking = ranked(strategy, endpoints)
    assert list(ranking.scores) == pytest.approx(
        [
            7 - (2 * 0 + 2 * 0.5 + 3 * 1.0),  # (4 − 4)/3
            7 - (2 * 1 + 2 * 0.0 + 3 * 0.0),  # (4 − 1)/3
            7 - (2 * 2 / 3 + 2 * 1.0 + 3 * 0.5),  # (4 − 2)/3; no gauge is an empty cache
        ]
    )
    assert list(ranking.best) == [2, 0, 1]
    assert terms_of(strategy, endpoints[0], WORK) == {"waiting": 4, "kv_usage": 0.5, "matched": 1.0}


def test_llmd_default_does_not_see_what_it_sent(fleet: Fleet) -> None:
    """In flight counts for nothing until a report says so; equal ones are drawn."""
    endpoints, strategy = fleet(2), build("llmd-default")
    requests(endpoints, 60, 0)
    work = Work(640, 100)
    assert list(ranked(strategy, endpoints, work).scores) == [3.0, 3.0]
    assert {ranked(strategy, endpoints, work, seed=seed).best[0] for seed in range(20)} == {0, 1}


def test_llmd_default_forgets_the_oldest_blocks(fleet: Fleet) -> None:
    """31,250 for each endpoint, 2,048 of one prompt."""
    endpoints, strategy = fleet(1), build("llmd-default")
    index = strategy.index
    for prompt in range(16):
        prefix = tuple(range(prompt * 10_000, prompt * 10_000 + 3_000))
        strategy.picked(endpoints, endpoints[0], Work(0, 0, prefix=prefix), at=NOW)
        assert index.blocks(endpoints[0].address) == min(31_250, 2_048 * (prompt + 1))


def test_llmd_token_load_stays_with_the_cache(fleet: Fleet) -> None:
    """Of those that hold 80 % the fewest tokens to prefill; the others score 1 more."""
    endpoints, strategy = fleet(3), build("llmd-token-load")
    holds(strategy, endpoints, e0=8, e1=10, e2=7)
    endpoints[1].load.queued_tokens = 1_000
    ranking = ranked(strategy, endpoints)
    assert list(ranking.best) == [0, 1, 2]
    # 640 · .2 uncached; 1,000 + 0; 640 · .3
    assert list(ranking.scores) == pytest.approx([128 / 4_194_304, 1_000 / 4_194_304, 1 + 192 / 4_194_304])


def test_llmd_token_load_leaves_a_cache_that_costs_18_seconds(fleet: Fleet) -> None:
    """15,928 tokens are a second; beyond 18 more than elsewhere the affinity is given up."""
    endpoints, strategy = fleet(2), build("llmd-token-load")
    holds(strategy, endpoints, e0=10)
    endpoints[0].load.queued_tokens = 18 * 15_928
    assert ranked(strategy, endpoints).best[0] == 0
    endpoints[0].load.queued_tokens += 1
    assert ranked(strategy, endpoints).best[0] == 1


def test_llmd_token_load_without_a_cache_levels_tokens(fleet: Fleet) -> None:
    """Nobody sticky: everybody by tokens to prefill, capped."""
    endpoints, strategy = fleet(2), build("llmd-token-load")
    endpoints[0].load.queued_tokens, endpoints[1].load.queued_tokens = 10_000_000, 64
    ranking = ranked(strategy, endpoints)
    assert list(ranking.scores) == pytest.approx([1.0, 704 / 4_194_304])
    assert ranking.best[0] == 1


def test_aibrix_prefix_takes_the_best_match_of_the_not_too_busy(fleet: Fleet) -> None:
    """Running at most the mean and a deviation: 2, 4, 6 have mean 4 and deviation 1.63."""
    endpoints, strategy = fleet(3), build("aibrix-prefix")
    holds(strategy, endpoints, e0=2, e1=5, e2=10)
    requests(endpoints, 2, 4, 6)
    ranking = ranked(strategy, endpoints)
    assert list(ranking.best) == [1, 0, 2]
    assert list(ranking.scores) == pytest.approx([0.8 + 1e-4 * 2 / 3, 0.5 + 1e-4 * 4 / 5, 7.0])


def test_aibrix_prefix_out_of_balance_takes_the_least_loaded(fleet: Fleet) -> None:
    """More than eight apart, whatever is cached; without a match the fewest running as well."""
    endpoints, strategy = fleet(2), build("aibrix-prefix")
    holds(strategy, endpoints, e0=10)
    requests(endpoints, 9, 0)
    assert list(ranked(strategy, endpoints).scores) == [10.0, 1.0]
    requests(endpoints, 1, 2)
    assert ranked(strategy, endpoints, Work(640, 0, prefix=(7,))).best[0] == 0


def test_sglang_cache_aware_matches_grows_and_balances(fleet: Fleet) -> None:
    """Best match above .3; else the smallest tree, blind to load; out of balance the shortest queue."""
    endpoints, strategy = fleet(3), build("sglang-cache-aware")
    holds(strategy, endpoints, e0=10, e1=4, e2=2)
    requests(endpoints, 64, 32, 0)
    assert list(ranked(strategy, endpoints).scores) == pytest.approx([0.0, 0.6, 0.8])
    # Three of ten are not more than .3: trees of 10, 4 and 2 blocks.
    other = Work(640, 0, prefix=(*PREFIX[:3], *range(7)))
    assert list(ranked(strategy, endpoints, other).scores) == [11.0, 5.0, 3.0]
    requests(endpoints, 65, 32, 0)
    assert list(ranked(strategy, endpoints).scores) == [65.0, 32.0, 0.0]
    requests(endpoints, 265, 232, 200)  # 65 apart, but not half as many again
    assert ranked(strategy, endpoints).best[0] == 0


def test_sglang_cache_aware_spreads_short_prompts(fleet: Fleet) -> None:
    """What fills no block grows the tree as well, so they do not all go to one."""
    endpoints, strategy = fleet(3), build("sglang-cache-aware")
    short = Work(input_tokens=32, output_tokens=10)
    chosen = Counter[int]()
    for _ in range(30):
        best = ranked(strategy, endpoints, short).best[0]
        strategy.picked(endpoints, endpoints[best], short, at=NOW)
        chosen[best] += 1
    assert chosen == {0: 10, 1: 10, 2: 10}
    assert terms_of(strategy, endpoints[0], short)["tree_blocks"] == 5.0


def test_dynamo_kv_adds_prefill_and_decode_blocks(fleet: Fleet) -> None:
    """Queued and own prompt less the overlap, plus what decodes, in blocks of 64."""
    endpoints, strategy = fleet(3), build("dynamo-kv")
    holds(strategy, endpoints, e0=10, e1=4)
    endpoints[0].load.queued_tokens, endpoints[0].load.context_tokens = 640, 1_280
    endpoints[1].load.context_tokens = 320
    ranking = ranked(strategy, endpoints)
    assert list(ranking.scores) == pytest.approx([10 + 10 - 10 + 20, 10 - 4 + 5, 10])
    assert ranking.best[0] == 2
    requests(endpoints, 0, 0, 4)
    heavy = build("dynamo-kv", {"prefill_scale": 2.0, "request_weight": 3.0})
    assert list(ranked(heavy, endpoints).scores) == pytest.approx([40 + 20, 20 + 5, 20 + 12])


def test_dynamo_kv_holds_as_much_as_the_endpoint(fleet: Fleet) -> None:
    """6,400 KV tokens are a hundred blocks; unknown, the prior's 100,000 are 1,562."""
    (known, unknown), strategy = fleet(2), build("dynamo-kv")
    known.kv_capacity_tokens = 6_400
    for endpoint, blocks in ((known, 100), (unknown, 1_562)):
        work = Work(640, 0, prefix=tuple(range(2_000)))
        strategy.picked([endpoint], endpoint, work, at=NOW)
        assert strategy.index.blocks(endpoint.address) == blocks


def test_sticky_least_loaded_keeps_a_session(fleet: Fleet) -> None:
    """Where it was while that is a candidate, whatever the load; else the least loaded."""
    endpoints, strategy = fleet(3), build("sticky-least-loaded")
    requests(endpoints, 9, 1, 2)
    talk = Work(100, 10, session=5)
    assert list(ranked(strategy, endpoints, talk).best) == [1, 2, 0]
    strategy.picked(endpoints, endpoints[0], talk, at=NOW)
    assert list(ranked(strategy, endpoints, talk).scores) == [0.0, 2.0, 3.0]
    assert list(ranked(strategy, endpoints[1:], talk).best) == [0, 1]
    strategy.picked(endpoints, endpoints[0], Work(100, 10), at=NOW)
    assert list(ranked(strategy, endpoints, Work(100, 10)).best) == [1, 2, 0]


def test_sticky_least_loaded_remembers_so_many(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session used longest ago is forgotten first."""
    monkeypatch.setattr(sticky_least_loaded, "SESSIONS_MAX", 2)
    endpoints, strategy = fleet(1), build("sticky-least-loaded")
    for session in (1, 2, 1, 3):
        strategy.picked(endpoints, endpoints[0], Work(1, 1, session=session), at=NOW)
    assert list(strategy.homes) == [1, 3]
