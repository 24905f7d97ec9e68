"""Workloads: what holds of the value, the client limits, the made-up ones and the capacity."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.predict.timing import Timing
from extproc.lab.workload import (
    Arrival,
    ClientLimits,
    Lengths,
    ReplicaShare,
    TenantSource,
    Workload,
    WorkloadError,
    bursts,
    long_prompt_mix,
    lru_hit_share,
    noisy_neighbour,
    operating,
    poisson,
    sessions,
)
from extproc.lab.workload.fit import Draw, assemble
from extproc.sim.capacity import capacity
from extproc.sim.timing import Hardware, hardware_named
from tests.stand.examples import examples

S = 1_000_000_000


def made(*arrivals: Arrival, block_tokens: int = 16) -> Workload:
    return Workload("made", arrivals, block_tokens, ("a",))


def test_statistics_follow_the_arrivals() -> None:
    """Means, rate and burstiness of three arrivals, worked out by hand."""
    workload = made(
        Arrival(0, "a", 100, 10, None),
        Arrival(1 * S, "a", 200, 20, None),
        Arrival(4 * S, "a", 300, 30, None),
    )
    stats = workload.stats
    assert (stats.requests, stats.prompt_mean, stats.output_mean) == (3, 200, 20)
    assert stats.requests_per_s == pytest.approx(2 / 4)
    assert stats.interarrival_cv == pytest.approx(0.5)  # gaps 1 and 3: deviation 1 of mean 2


def test_an_infinite_cache_leaves_only_what_is_new() -> None:
    """A repeated prefix is free but for its last token; what stands behind a new block is not found."""
    workload = made(
        Arrival(0, "a", 40, 1, None, (1, 2)),
        Arrival(1, "a", 40, 1, None, (1, 3)),  # 16 found
        Arrival(2, "a", 32, 1, None, (1, 3)),  # all found, one token computed
        Arrival(3, "a", 40, 1, None, (9, 2)),  # 2 is known, but not behind 9
    )
    assert workload.stats.uncached_mean == pytest.approx((40 + 24 + 1 + 40) / 4)


def test_a_small_cache_forgets() -> None:
    """Two alternating prefixes thrash a cache of one, and share a cache of two."""
    workload = made(*(Arrival(at, "a", 17, 1, None, (at % 2,)) for at in range(10)))
    assert lru_hit_share(workload, cache_tokens=16) == 0
    assert lru_hit_share(workload, cache_tokens=32) == pytest.approx(8 * 16 / 170)


def test_rescaling_sets_the_rate_and_keeps_the_rest() -> None:
    """Time stretches; order, tokens and burstiness stay."""
    workload = bursts(5, seed=1, duration_s=120)
    faster = workload.rescaled(20)
    assert faster.stats.requests_per_s == pytest.approx(20, rel=1e-6)
    assert faster.stats.interarrival_cv == pytest.approx(workload.stats.interarrival_cv, rel=1e-6)
    assert [a.prompt_tokens for a in faster.arrivals] == [a.prompt_tokens for a in workload.arrivals]


def test_head_takes_the_first() -> None:
    """The first arrivals, and the tenants of all."""
    workload = noisy_neighbour(10, seed=1, duration_s=60)
    assert workload.head(3).arrivals == workload.arrivals[:3]
    assert workload.head(3).tenants == workload.tenants


def test_a_workload_without_time_or_arrivals_says_so() -> None:
    """Neither a rate nor a mean is made up."""
    with pytest.raises(WorkloadError, match="spans no time"):
        made(Arrival(0, "a", 1, 1, None)).rescaled(1)
    with pytest.raises(WorkloadError, match="above 0"):
        made(Arrival(0, "a", 1, 1, None)).rescaled(0)
    with pytest.raises(WorkloadError, match="is empty"):
        _ = made().stats


@given(st.integers(1, 20_000), st.integers(0, 1000))
def test_a_said_limit_is_never_below_the_output(output_tokens: int, seed: int) -> None:
    """A client's limit bounds what the model writes, within a factor of reach."""
    said = ClientLimits(unsaid_share=0).draw(Random(seed), output_tokens)
    assert said is not None
    assert output_tokens <= said <= max(8 * output_tokens, 64)


def test_the_share_without_a_limit_is_as_asked() -> None:
    """Half say nothing by default; 0 and 1 are all and none."""
    arrivals = poisson(50, seed=3, duration_s=100).arrivals
    unsaid = sum(arrival.max_new_tokens is None for arrival in arrivals) / len(arrivals)
    assert unsaid == pytest.approx(0.5, abs=0.03)
    nobody = poisson(50, seed=3, duration_s=10, limits=ClientLimits(unsaid_share=1)).arrivals
    assert all(arrival.max_new_tokens is None for arrival in nobody)


def test_another_model_of_limits_moves_no_length() -> None:
    """Limits have a chance of their own, so studies of them compare like with like."""
    one, other = (poisson(10, seed=3, limits=ClientLimits(unsaid_share=share)) for share in (0.0, 0.9))
    assert [(a.at_ns, a.prompt_tokens, a.output_tokens) for a in one.arrivals] == [
        (a.at_ns, a.prompt_tokens, a.output_tokens) for a in other.arrivals
    ]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"unsaid_share": 1.5}, "unsaid_share must lie in 0..1"),
        ({"reach": 0}, "reach must be at least 1"),
        ({"choices": (4, 2)}, "choices must ascend"),
    ],
)
def test_limits_that_make_no_sense_are_refused(kept: dict[str, object], message: str) -> None:
    """Each bound of the model says which it is."""
    with pytest.raises(WorkloadError, match=message):
        ClientLimits(**kept)  # type: ignore[arg-type]  # wrong on purpose


def test_what_does_not_fit_is_dropped_or_clipped_and_counted() -> None:
    """Dropping leaves the others alone; clipping cuts the prompt's end, its blocks with it."""
    draws = [Draw(0, "a", 64, 10, (1, 2, 3, 4)), Draw(1, "a", 20, 10, (5,)), Draw(2, "a", 5, 90)]
    dropped = assemble("w", draws, seed=0, max_total_tokens=50)
    assert [a.prompt_tokens for a in dropped.arrivals] == [20]
    assert (dropped.dropped, dropped.clipped) == (2, 0)
    clipped = assemble("w", draws, seed=0, max_total_tokens=50, oversize="clip")
    assert [(a.prompt_tokens, a.output_tokens, a.blocks) for a in clipped.arrivals] == [
        (40, 10, (1, 2)),
        (20, 10, (5,)),
        (1, 49, ()),
    ]
    assert (clipped.dropped, clipped.clipped) == (0, 2)


@given(
    seed=st.integers(0, 10_000),
    max_total_tokens=st.integers(2, 5000),
    prompts=st.integers(1, 6000),
    outputs=st.integers(1, 6000),
)
@examples(60)
def test_clipped_requests_fit_with_their_limits(
    seed: int, max_total_tokens: int, prompts: int, outputs: int
) -> None:
    """Prompt and said limit together are within what the replica accepts, tokens at least 1."""
    draws = [Draw(at, "a", prompts, outputs, tuple(range(prompts // 16))) for at in range(5)]
    workload = assemble("w", draws, seed=seed, max_total_tokens=max_total_tokens, oversize="clip")
    for arrival in workload.arrivals:
        assert arrival.prompt_tokens >= 1
        assert 1 <= arrival.output_tokens <= (arrival.max_new_tokens or arrival.output_tokens)
        asked = max(arrival.output_tokens, arrival.max_new_tokens or 0)
        assert arrival.prompt_tokens + asked <= max_total_tokens
        assert len(arrival.blocks) == arrival.prompt_tokens // 16


@pytest.mark.parametrize("make", [poisson, bursts, noisy_neighbour, long_prompt_mix, sessions])
def test_the_same_seed_makes_the_same_workload(make: object) -> None:
    """Arrivals ascend from 0, repeat by seed and differ between seeds."""
    assert callable(make)
    first, again, other = (make(8, seed=seed, duration_s=120) for seed in (5, 5, 6))
    assert first == again
    assert first.arrivals != other.arrivals
    times = [arrival.at_ns for arrival in first.arrivals]
    assert times == sorted(times)
    assert times[0] >= 0
    assert {arrival.tenant for arrival in first.arrivals} <= set(first.tenants)


@pytest.mark.parametrize("make", [poisson, bursts, noisy_neighbour, long_prompt_mix, sessions])
def test_the_long_runs_rate_is_the_asked_one(make: object) -> None:
    """Over 20 minutes and two seeds the mean rate is within a tenth; over 40 where it comes in bursts."""
    assert callable(make)
    lasts_s = 2400 if make is bursts else 1200
    runs = [make(8, seed=seed, duration_s=lasts_s).stats.requests_per_s for seed in range(2)]
    assert sum(runs) / 2 == pytest.approx(8, rel=0.1)


def test_bursts_are_burstier_than_poisson() -> None:
    """The same long-run rate, more than twice the inter-arrival deviation."""
    calm, bursty = poisson(20, seed=2, duration_s=500), bursts(20, seed=2, duration_s=500)
    assert calm.stats.interarrival_cv == pytest.approx(1, abs=0.05)
    assert bursty.stats.interarrival_cv > 2
    assert bursty.stats.requests_per_s == pytest.approx(20, rel=0.15)


def test_the_noisy_neighbour_asks_ten_times_as_often() -> None:
    """One tenant at the factor, the others alike, with lengths of its own where given."""
    tiny = TenantSource("noisy", prompts=Lengths(20, 0.0))
    workload = noisy_neighbour(40, seed=4, duration_s=500, noisy=tiny)
    counts = Counter(arrival.tenant for arrival in workload.arrivals)
    quiet = [count for tenant, count in counts.items() if tenant != "noisy"]
    assert len(quiet) == 7
    assert counts["noisy"] / (sum(quiet) / 7) == pytest.approx(10, rel=0.1)
    assert {a.prompt_tokens for a in workload.arrivals if a.tenant == "noisy"} == {20}


def test_the_long_mix_has_its_share_of_long_prompts() -> None:
    """A tenth of the requests, all above 4,000 tokens and all the long tenant's."""
    workload = long_prompt_mix(20, seed=4)
    long = [arrival for arrival in workload.arrivals if arrival.tenant == "long"]
    assert len(long) / len(workload.arrivals) == pytest.approx(0.1, abs=0.02)
    assert min(arrival.prompt_tokens for arrival in long) > 4000


def test_conversations_grow_and_share_their_prefixes() -> None:
    """A later turn's blocks extend the earlier one's; two conversations share the system prompt alone."""
    workload = sessions(10, seed=7, tenants=5)
    by_session: dict[str, list[Arrival]] = {}
    for arrival in workload.arrivals:
        assert len(arrival.blocks) == arrival.prompt_tokens // 16
        by_session.setdefault(arrival.session, []).append(arrival)
    longest = max(by_session.values(), key=len)
    assert len(longest) > 3
    for sooner, later in pairwise(longest):
        assert later.blocks[: len(sooner.blocks)] == sooner.blocks
        assert later.prompt_tokens > sooner.prompt_tokens + sooner.output_tokens
    firsts = [turns[-1] for turns in by_session.values() if turns[-1].tenant == longest[0].tenant]
    one, other = firsts[0], firsts[1]
    common = set(one.blocks) & set(other.blocks)
    assert common
    assert one.blocks[: len(common)] == other.blocks[: len(common)]
    assert workload.stats.uncached_mean < 0.3 * workload.stats.prompt_mean


def test_a_conversation_stays_within_the_replica() -> None:
    """It ends where the next turn would not fit."""
    workload = sessions(10, seed=7, turns_mean=20, max_total_tokens=4096, think_s=1)
    assert max(a.prompt_tokens + a.output_tokens for a in workload.arrivals) <= 4096


def test_tenants_follow_zipf() -> None:
    """With 48 tenants the first asks about twice as often as the second."""
    counts = Counter(a.tenant for a in sessions(50, seed=1, turns_mean=1, think_s=0, limit=5_000).arrivals)
    assert counts["tenant-00"] / counts["tenant-01"] == pytest.approx(2, rel=0.1)
    assert len(counts) == 48


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (poisson, {"requests_per_s": 0}, "above 0"),
        (poisson, {"requests_per_s": 1, "sources": ()}, "sources"),
        (poisson, {"requests_per_s": 1, "oversize": "bend"}, "drop or clip"),
        (poisson, {"requests_per_s": 1, "max_total_tokens": 1}, "at least 2"),
        (bursts, {"requests_per_s": 1, "calm_share": 2}, "calm_share"),
        (noisy_neighbour, {"requests_per_s": 1, "tenants": 1}, "at least 2 tenants"),
        (long_prompt_mix, {"requests_per_s": 1, "long_share": 0}, "long_share"),
        (sessions, {"requests_per_s": 1, "turns_mean": 0.5}, "turns_mean"),
        (sessions, {"requests_per_s": 1, "tenants": 0}, "at least 1 tenant"),
    ],
)
def test_impossible_workloads_are_refused(make: object, settings: dict[str, object], message: str) -> None:
    """The message names the setting."""
    assert callable(make)
    with pytest.raises(WorkloadError, match=message):
        make(seed=0, **settings)


# One millisecond a prompt token; a step is 10 ms plus 1 ms a stream plus 0.01 ms a resident token.
TOY = Hardware(
    name="toy",
    source="made up",
    kv_capacity_tokens=100_000,
    timing=Timing(10.0, 1.0, 0.01, 0.0, 1.0, 0.0),
)
ALIKE = made(*(Arrival(at * S, "a", 100, 20, None) for at in range(10)))


def test_capacity_is_the_rate_at_the_edge() -> None:
    """Worked out by hand: T = 10 / (1 − λ·.1 − λ·.02·(1 + .01·110)) = 100 ms at λ = .9 / .142."""
    edge = operating(TOY, ALIKE)
    assert edge.requests_per_s == pytest.approx(0.9 / 0.142)
    assert edge.bound_by == "tpot"
    assert edge.tpot_ms == pytest.approx(100)
    assert edge.batch == pytest.approx(0.9 / 0.142 * 20 * 0.1)
    assert edge.kv_tokens == pytest.approx(edge.batch * 110)
    assert edge.prefill_share == pytest.approx(0.9 / 1.42)


def test_capacity_ends_at_permits_and_at_memory() -> None:
    """B = 4 with four permits; K = .98 · 1,000 in a small memory."""
    by_permits = operating(ReplicaShare(hardware=TOY, permits=4), ALIKE)
    assert (by_permits.bound_by, by_permits.batch) == ("permits", pytest.approx(4))
    by_memory = operating(ReplicaShare(hardware=TOY, kv_capacity_tokens=1000), ALIKE)
    assert (by_memory.bound_by, by_memory.kv_tokens) == ("kv", pytest.approx(980))


def test_a_fleet_is_its_replicas_sum_and_a_straggler_bears_less() -> None:
    """Three times slower means less than a third: the step's own floor is nearer to the bound."""
    one, straggler = capacity([TOY], ALIKE), capacity([ReplicaShare(hardware=TOY, slowdown=3)], ALIKE)
    assert capacity([TOY, TOY, ReplicaShare(hardware=TOY, slowdown=3)], ALIKE) == pytest.approx(
        2 * one + straggler
    )
    assert 0 < straggler < one / 3


def test_a_cache_raises_capacity() -> None:
    """A hit saves prefill and nothing else: T = 10 / (1 − λ·.05 − λ·.042)."""
    assert capacity([TOY], ALIKE, hit_share=0.5) == pytest.approx(0.9 / 0.092)


def test_hardware_too_slow_for_the_bound_is_refused() -> None:
    """A step longer than the bound has no load 1."""
    with pytest.raises(WorkloadError, match="toy cannot meet 5 ms per token"):
        capacity([TOY], ALIKE, tpot_ms=5)
    with pytest.raises(WorkloadError, match="hit_share"):
        capacity([TOY], ALIKE, hit_share=1)
    with pytest.raises(WorkloadError, match="is empty"):
        capacity([TOY], made())


def test_published_hardware_bears_chat() -> None:
    """An H100 bears more than an A100, for the same model."""
    chat = poisson(10, seed=1)
    assert capacity([hardware_named("h100-80g/llama-3-8b")], chat) > 1.2 * capacity(
        [hardware_named("a100-80g/llama-3-8b")], chat
    )


def test_workloads_and_figures_need_neither_numpy_nor_matplotlib() -> None:
    """Importing the packages loads no plotting library; only a plot does."""
    code = (
        "import sys, extproc.lab.workload as w, extproc.lab.report; w.sessions(1, seed=1, duration_s=10); "
        "print([name for name in ('numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
