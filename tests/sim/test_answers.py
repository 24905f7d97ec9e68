"""The simulated response cache: who is answered again, within its bytes and time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from extproc.lab.campaign.case import CampaignRun
from extproc.lab.campaign.play import play
from extproc.lab.campaign.streams import arrivals_of
from extproc.sim.answers import (
    ENTRY_BYTES,
    HIT_NS,
    AskedAnswer,
    CacheSize,
    answered_again,
    left_of,
    repeated,
    with_hits,
)
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.served import Served

S = 1_000_000_000
LARGE = CacheSize(bytes_max=1 << 30, ttl_s=10.0)


def played(*asked: tuple[float, str | None, int], cache: CacheSize = LARGE) -> list[bool]:
    return answered_again([AskedAnswer(round(at * S), key, size) for at, key, size in asked], cache)


def test_a_repeat_is_answered_until_it_is_too_old() -> None:
    """The first is asked, the next are not, and after ttl_s since the first it is asked anew."""
    found = played((0, "a", 9), (1, "a", 9), (9.9, "a", 9), (10, "a", 9), (19, "a", 9))
    assert found == [False, True, True, False, True]


def test_what_is_not_cached_is_never_answered() -> None:
    """Nor what has no key, nor what had no answer to keep."""
    assert played((0, None, 9), (1, None, 9), (2, "a", 0), (3, "a", 9), (4, "a", 9)) == [False] * 4 + [True]


def test_the_least_recently_used_goes() -> None:
    """The one that was used longest ago goes for room; what is larger than all of it is not kept."""
    cache = CacheSize(bytes_max=2 * (ENTRY_BYTES + 100), ttl_s=100.0)
    steps = [(0, "a", 100), (1, "b", 100), (2, "a", 100), (3, "c", 100), (4, "b", 100), (5, "a", 100)]
    assert played(*steps, cache=cache) == [False, False, True, False, False, False]
    assert played((0, "a", 9_999), (1, "a", 9_999), cache=cache) == [False, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400)), max_size=60), st.integers(600, 5_000))
def test_no_hit_without_an_earlier_equal(asked: list[tuple[int, int]], bytes_max: int) -> None:
    """Whatever comes, a hit has an equal before it, and there are no more hits than repeats."""
    rows = [AskedAnswer(at, key, size) for at, (key, size) in enumerate(asked)]
    found = answered_again(rows, CacheSize(bytes_max=bytes_max, ttl_s=100.0))
    for at, hit in enumerate(found):
        assert not hit or any(rows[before].key == rows[at].key for before in range(at))
    assert sum(found) <= len(rows) - len({each.key for each in rows})


def workload(*rows: tuple[str, int, tuple[int, ...]], ending: int | None = 7) -> Workload:
    arrivals = tuple(
        Arrival(at * S, tenant, tokens, 20, None, blocks, "", ending)
        for at, (tenant, tokens, blocks) in enumerate(rows)
    )
    return Workload("w", arrivals, 16, ("a", "b"))


def test_a_trace_repeats_within_a_tenant() -> None:
    """Equal blocks and lengths of one tenant are a repeat, another tenant's or length's are none."""
    rows = [("a", 40, (1, 2)), ("a", 40, (1, 2)), ("b", 40, (1, 2)), ("a", 41, (1, 2)), ("a", 40, (1,))]
    assert repeated(workload(*rows), LARGE) == [False, True, False, False, False]
    assert repeated(workload(*rows, ending=None), LARGE) == [False] * 5


def test_hits_are_answered_at_once_and_the_others_as_served() -> None:
    """Every arrival has its row, in order; hits never reach a replica."""
    there = workload(("a", 40, (1,)), ("a", 40, (1,)), ("a", 50, (2,)))
    hits = [False, True, False]
    left = left_of(there, hits)
    assert [each.prompt_tokens for each in left.arrivals] == [40, 50]
    served = [Served(each, "ok", "x", 0, each.at_ns + 5, each.at_ns + 9, 0) for each in left.arrivals]
    found = with_hits(there, hits, served)
    assert [row.arrival for row in found] == list(there.arrivals)
    assert [row.endpoint for row in found] == ["x", "", "x"]
    assert found[1].end_ns - found[1].arrival.at_ns == HIT_NS
    assert left_of(there, []) is there


def test_a_campaigns_cell_with_a_cache(tmp_path: Path) -> None:
    """With a cache every second request is answered at once, and the column's name says so."""
    lines = [
        {"t": 400 * at, "i": 2_000 + at // 2, "o": 60, "h": [at // 2, 1_000 + at // 2, 2_000, 3_000]}
        for at in range(120)
    ]
    trace = tmp_path / "twice.jsonl"
    trace.write_text("".join(json.dumps(each) + "\n" for each in lines))
    case = CampaignRun(stream=str(trace), fleet="8b", load=1.1, strategy="round_robin", seed=1)
    plain, cached = play(case, tmp_path), play(replace(case, cache_mib=64.0), tmp_path)
    there, _ = arrivals_of(case, tmp_path)
    share = sum(repeated(there, CacheSize(bytes_max=1 << 26))) / len(there.arrivals)
    assert 0.4 < share < 0.5  # the trace is turned, which parts some pairs
    assert cached.cell.workload == f"{plain.cell.workload}, {share:.1%} from a cache"
    assert cached.cell.figures.requests == plain.cell.figures.requests == len(there.arrivals)
    assert cached.ttft_ms[0] == HIT_NS / 1e6
    assert sum(cached.ttft_ms) < sum(plain.ttft_ms)
