"""Endpoints in any state, requests and contexts for what must hold of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from hypothesis import strategies as st

from extproc.core.endpoint import Endpoint
from extproc.core.predict.admission import AHEAD_MAX
from extproc.core.predict.prior import Prior, prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.core.strategies import NOW, SchedulingContext, Strategy, Work, forecast

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
        e.admission.shares[1:] = sorted(rng.choice((0.0, rng.random(), 1.0)) for _ in range(AHEAD_MAX))
        e.admission.stall = rng.choice((0.0, rng.random(), 1.0))
        e.slots.limit, e.slots.life_ms = rng.choice((0, 1, 8)), rng.choice((0.0, 500.0, 1e4))
        endpoints.append(e)
    return endpoints


def terms_of(
    strategy: Strategy, endpoint: Endpoint, work: Work, *, at: SchedulingContext = NOW
) -> Mapping[str, float]:
    """The terms of an endpoint's score, as a trace asks for them."""
    return strategy.explain(endpoint, work, forecast(endpoint, work, cached=at.cached), at=at)


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
contexts = st.builds(
    SchedulingContext,
    now_ns=st.integers(0, 100 * S),
    cached=st.dictionaries(st.integers(0, 12).map(lambda i: f"10.0.0.{i}:80"), st.integers(0, 10**6)),
    patient=st.booleans(),
    deciders=st.integers(1, 4),
)


def one_at_a_time(*endpoints: Endpoint) -> None:
    """What is known of them: their engines prefill one prompt at a time, streams wait meanwhile, and
    nobody tries for a while whether that is still so."""
    for endpoint in endpoints:
        for _ in range(3):
            endpoint.admission.saw(1, 100.0, 100.0, 100.0)
        for prefills_ms in range(0, 1_200, 100):
            endpoint.admission.saw_decode(500.0 + prefills_ms, 500.0, prefills_ms)
        for _ in range(6):
            endpoint.admission.trials.tried(0)
