"""How many requests a second a fleet can bear: what "load 1.0" means.

Owns the definition. Pure arithmetic on a hardware's timings and a workload's means; simulates nothing.

A replica under λ requests/s of the workload is in the mean what core/scaling/capacity.py's `steady` says:
share of time that prefill takes, time per output token T, streams B, KV tokens K. Load 1 is the largest λ
with T at most the bound, B at most the permits, K at most .98 of the KV capacity, and a steady state at all.
All four only worsen with λ, so bisection finds it. A fleet's load 1 is its replicas' sum: each is
loaded to its own edge, as a balancer that knows them would.

What it leaves out: each prompt is prefilled alone (batching saves the base term), burstiness and queues
(attainment falls well before 1 on a bursty trace), and TTFT. It is a yardstick, not a promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from extproc.core.scaling.capacity import steady
from extproc.sim.arrival import Workload, WorkloadError
from extproc.sim.timing import Hardware

TPOT_MS: Final = 100.0
PERMITS: Final = 128  # TGI's max_concurrent_requests
KV_SHARE_MAX: Final = 0.98
_RATE_MAX: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaShare:
    """One replica's timings and bounds; `slowdown` stretches every step, `kv_capacity_tokens` None is
    the hardware's."""

    hardware: Hardware
    slowdown: float = 1.0
    permits: int = PERMITS
    kv_capacity_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A replica at its edge: the rate, what binds there, and its state in the mean."""

    requests_per_s: float
    bound_by: Literal["tpot", "permits", "kv"]
    tpot_ms: float
    batch: float
    kv_tokens: float
    prefill_share: float


@dataclass(frozen=True, slots=True)
class _Demand:
    prefill_ms: float
    output_tokens: float
    context_tokens: float


def capacity(
    fleet: Sequence[Hardware | ReplicaShare],
    workload: Workload,
    *,
    tpot_ms: float = TPOT_MS,
    hit_share: float = 0.0,
) -> float:
    """Requests/s of `workload` at load 1.0, summed over `fleet`; see the module for the definition.

    `hit_share` (0..1, below 1) is the part of each prompt that a realistic cache holds; `lru_hit_share`
    estimates it. `WorkloadError` where some replica cannot bear one request.
    """
    edges: dict[Hardware | ReplicaShare, float] = {}
    for replica in fleet:
        if replica not in edges:
            edges[replica] = operating(replica, workload, tpot_ms=tpot_ms, hit_share=hit_share).requests_per_s
    return sum(edges[replica] for replica in fleet)


def operating(
    replica: Hardware | ReplicaShare,
    workload: Workload,
    *,
    tpot_ms: float = TPOT_MS,
    hit_share: float = 0.0,
) -> OperatingPoint:
    """One replica at load 1.0."""
    share = replica if isinstance(replica, ReplicaShare) else ReplicaShare(hardware=replica)
    demand = _demand(share.hardware, workload, hit_share)
    low, high = 0.0, _RATE_MAX
    for _ in range(100):
        middle = (low + high) / 2
        if _breach(share, demand, middle, tpot_ms) is None:
            low = middle
        else:
            high = middle
    bound = _breach(share, demand, high, tpot_ms)
    if low <= 1e-9 or bound is None:
        raise WorkloadError(
            f"{share.hardware.name} cannot meet {tpot_ms:g} ms per token with even one request of "
            f"{workload.name!r}; take faster hardware or a wider bound"
        )
    tpot, batch, kv_tokens, prefill_share = _steady(share, demand, low)
    return OperatingPoint(
        requests_per_s=low,
        bound_by=bound,
        tpot_ms=tpot,
        batch=batch,
        kv_tokens=kv_tokens,
        prefill_share=prefill_share,
    )


def _demand(hardware: Hardware, workload: Workload, hit_share: float) -> _Demand:
    if not 0 <= hit_share < 1:
        raise WorkloadError(f"hit_share must lie in 0..1, below 1, not {hit_share}")
    if not workload.arrivals:
        raise WorkloadError(f"workload {workload.name!r} is empty: it has no capacity")
    prefill = context = 0.0
    output = 0
    for arrival in workload.arrivals:
        cached = int(arrival.prompt_tokens * hit_share)
        prefill += hardware.prefill_ms(arrival.prompt_tokens - cached, cached)
        output += arrival.output_tokens
        context += arrival.output_tokens * (arrival.prompt_tokens + arrival.output_tokens / 2)
    return _Demand(prefill / len(workload.arrivals), output / len(workload.arrivals), context / output)


def _steady(share: ReplicaShare, demand: _Demand, rate: float) -> tuple[float, float, float, float]:
    """(T ms, B, K, ρ) at `rate` requests/s; T is infinite where there is no steady state."""
    timing, slowdown = share.hardware.timing, share.slowdown
    growth = timing.decode_per_sequence_ms + timing.decode_per_context_token_ms * demand.context_tokens
    return steady(
        rate,
        prefill_ms=slowdown * demand.prefill_ms,
        output_tokens=demand.output_tokens,
        context_tokens=demand.context_tokens,
        base_ms=slowdown * share.hardware.decode_ms(0, 0),
        growth_ms=slowdown * growth,
    )


def _breach(
    share: ReplicaShare, demand: _Demand, rate: float, tpot_ms: float
) -> Literal["tpot", "permits", "kv"] | None:
    tpot, batch, kv_tokens, _ = _steady(share, demand, rate)
    if tpot > tpot_ms:
        return "tpot"
    if batch > share.permits:
        return "permits"
    capacity_tokens = share.kv_capacity_tokens or share.hardware.kv_capacity_tokens
    return "kv" if kv_tokens > KV_SHARE_MAX * capacity_tokens else None
