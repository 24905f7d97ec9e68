from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import LATER_MS
from extproc.core.strategies import SchedulingContext, Work
from extproc.core.strategies.latency import LeastLatency
from tests.stand.fleets import terms_of

Fleet = Callable[..., list[Endpoint]]
S = 1_000_000_000
#: Alone: prefill 5 + 100/10 = 15 ms, a step with it 10 + 1 = 11 ms; a tenth of 20 tokens is 2 steps.
WORK = Work(input_tokens=100, output_tokens=20)
FULL_SCAN = LeastLatency(choices=0)


def scores(strategy: LeastLatency, endpoints: list[Endpoint], work: Work = WORK, **at: Any) -> list[float]:
    return list(strategy.rank(endpoints, work, count=1, rng=Random(1), at=SchedulingContext(**at)).scores)


def test_the_score_is_the_predicted_time(fleet: Fleet) -> None:
    """Wait, half a step, prefill and a tenth of the decode, over the weight."""
    idle, waits, runs, ill = fleet(4)
    waits.load.queued, waits.load.queued_ms = 1, 40.0
    runs.load.streaming = 10
    ill.weight = 0.5
    assert scores(FULL_SCAN, [idle, waits, runs, ill]) == pytest.approx(
        [
            15 + 2 * 11,
            40 + 10 + 2 * 11,  # it shares the base of those that wait
            10 + 15 + 2 * 21,  # half of 10 + 10 before it; 10 + 11 with it
            2 * (15 + 2 * 11),
        ]
    )


def test_cached_tokens_need_no_prefill(fleet: Fleet) -> None:
    """All but the last token at most."""
    some, more = fleet(2)
    found = scores(FULL_SCAN, [some, more], cached={some.address: 50, more.address: 500})
    assert found == pytest.approx([5 + 5 + 22, 5 + 0.1 + 22])


def test_what_was_seen_counts_where_it_is_worse(fleet: Fleet) -> None:
    """A slow answer raises the score by its share; a quick one lowers nothing."""
    slow, quick, plain = fleet(3)
    for endpoint, first, each in ((slow, 115.0, 31.0), (quick, 1.0, 1.0)):
        endpoint.latency.ttft.saw(first, now_ns=S)
        endpoint.latency.tpot.saw(each, now_ns=S)
    # 15 + .3 · 100 = 45; 11 + .3 · 20 = 17, twice
    assert scores(FULL_SCAN, [slow, quick, plain], now_ns=S) == pytest.approx([45 + 34, 37, 37])
    blind = LeastLatency(choices=0, seen_share=0.0)
    assert scores(blind, [slow, quick, plain], now_ns=S) == pytest.approx([37, 37, 37])


def test_what_was_seen_fades(fleet: Fleet) -> None:
    """An endpoint that was slow once is tried again."""
    slow, plain = fleet(2)
    slow.latency.ttft.saw(5_000.0, now_ns=S)
    early, late = (scores(FULL_SCAN, [slow, plain], now_ns=at)[0] for at in (S, 200 * S))
    assert early > 1_000
    assert late == pytest.approx(37)


def test_two_are_drawn_and_the_better_taken(fleet: Fleet) -> None:
    """The best of five is drawn two times in five; the worst is never taken."""
    endpoints, rng, strategy = fleet(5), Random(5), LeastLatency()
    for i, endpoint in enumerate(endpoints):
        endpoint.load.queued, endpoint.load.queued_ms = int(i > 0), 10.0 * i
    firsts = Counter(strategy.rank(endpoints, WORK, count=1, rng=rng).best[0] for _ in range(5_000))
    for place, share in enumerate((0.4, 0.3, 0.2, 0.1)):
        assert firsts[place] == pytest.approx(5_000 * share, rel=0.15)
    assert firsts[4] == 0
    ranking = strategy.rank(endpoints, WORK, count=3, rng=rng)
    assert [math.isinf(ranking.scores[i]) for i in ranking.best] == [False, False, True]


@pytest.mark.parametrize("choices", [0, 2, 5])
def test_the_fastest_is_not_overloaded(choices: int, fleet: Fleet) -> None:
    """With more than 1.5 × the mean + 1 in flight it comes last, though it would still be the fastest."""
    fast, *others = fleet(4)
    fast.speed.factor = 0.3
    for endpoint, requests in zip((fast, *others), (9, 4, 3, 4), strict=True):
        endpoint.requests = requests
    # the mean is 5, the most 8.5
    strategy = LeastLatency(choices=choices)
    ranking = strategy.rank([fast, *others], WORK, count=4, rng=Random(2))
    assert ranking.best[-1] == 0
    assert ranking.scores[0] > LATER_MS
    fast.requests = 8  # the mean is 4.75, the most 8.1
    assert 0 in strategy.rank([fast, *others], WORK, count=4, rng=Random(2)).best[:3]


def test_the_terms_add_up(fleet: Fleet) -> None:
    """What `explain` says is the score."""
    (endpoint,) = fleet(1)
    endpoint.load.streaming, endpoint.requests = 3, 3
    endpoint.latency.ttft.saw(400.0, now_ns=S)
    terms = terms_of(FULL_SCAN, endpoint, WORK, at=SchedulingContext(now_ns=S))
    assert terms["seen_ttft_ms"] == 400.0
    assert terms["predicted_ttft_ms"] < terms["ttft_ms"] < 400.0
    assert terms["ttft_ms"] + terms["decode_ms"] == pytest.approx(scores(FULL_SCAN, [endpoint], now_ns=S)[0])
