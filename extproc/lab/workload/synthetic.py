"""Workloads made up from a seed: calm, bursty, unfair, long.

Owns arrival processes and length distributions. Plain `random.Random`: the same seed makes the same
workload everywhere. Conversations are `conversations.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log
from random import Random
from typing import Final

from extproc.lab.workload.fit import ClientLimits, Draw, Oversize, assemble
from extproc.sim.arrival import NS_PER_S, Workload, WorkloadError

DURATION_S: Final = 600.0
MAX_TOTAL_TOKENS: Final = 8192  # TGI's usual launcher limit for 8B models


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal token counts: `median` and `sigma` (of the logarithm), cut to `least`..`most`."""

    median: float
    sigma: float = 0.8
    least: int = 1
    most: int = 131_072

    def __post_init__(self) -> None:
        if self.median < 1 or self.sigma < 0 or not 1 <= self.least <= self.most:
            raise WorkloadError("lengths need a median of at least 1, sigma ≥ 0 and 1 ≤ least ≤ most")

    def draw(self, chance: Random) -> int:
        """One count of tokens."""
        return min(max(round(chance.lognormvariate(log(self.median), self.sigma)), self.least), self.most)


# Medians near Azure's conversation trace: prompts about 1,000 tokens, answers about 130.
CHAT_PROMPTS: Final = Lengths(800, 0.9, 8, 7000)
CHAT_OUTPUTS: Final = Lengths(130, 0.8, 2, 1000)
LONG_PROMPTS: Final = Lengths(5500, 0.2, 4097, 7500)
TINY_PROMPTS: Final = Lengths(60, 0.5, 4, 400)


@dataclass(frozen=True, slots=True)
class TenantSource:
    """One tenant's share of the requests (a weight above 0) and its lengths."""

    tenant: str
    weight: float = 1.0
    prompts: Lengths = CHAT_PROMPTS
    outputs: Lengths = CHAT_OUTPUTS


def zipf_weights(count: int, *, exponent: float = 1.0) -> list[float]:
    """Weights 1/rank^exponent that sum to 1; exponent 0 makes all alike."""
    if count < 1:
        raise WorkloadError(f"there must be at least 1 tenant, not {count}")
    raw = [1 / rank**exponent for rank in range(1, count + 1)]
    total = sum(raw)
    return [weight / total for weight in raw]


def poisson(
    requests_per_s: float,
    *,
    seed: int,
    duration_s: float = DURATION_S,
    sources: Sequence[TenantSource] = (TenantSource("tenant-00"),),
    limit: int | None = None,
    max_total_tokens: int | None = MAX_TOTAL_TOKENS,
    oversize: Oversize = "clip",
    limits: ClientLimits | None = None,
    name: str = "poisson",
) -> Workload:
    """Independent arrivals at a constant mean rate, tenants and lengths from `sources`."""
    _check(requests_per_s, duration_s)
    times = poisson_times(Random(f"{seed}:times"), requests_per_s, duration_s)
    draws = _fill(times, sources, Random(f"{seed}:lengths"))
    return assemble(
        name,
        draws,
        seed=seed,
        limit=limit,
        max_total_tokens=max_total_tokens,
        oversize=oversize,
        limits=limits,
    )


def bursts(
    requests_per_s: float,
    *,
    seed: int,
    duration_s: float = DURATION_S,
    on_s: float = 5.0,
    off_s: float = 20.0,
    calm_share: float = 0.2,
    sources: Sequence[TenantSource] = (TenantSource("tenant-00"),),
    limit: int | None = None,
    max_total_tokens: int | None = MAX_TOTAL_TOKENS,
    oversize: Oversize = "clip",
    limits: ClientLimits | None = None,
    name: str = "bursts",
) -> Workload:
    """Poisson arrivals whose rate jumps between bursts and calm, `requests_per_s` over the long run.

    Bursts last `on_s` seconds in the mean and calm `off_s` (both exponential); `calm_share` (0..1) of
    the requests arrive in calm. The defaults make four times the mean rate in a burst. Few bursts make
    a run's own rate stray from the long run's by a third: `Workload.rescaled` sets it.
    """
    _check(requests_per_s, duration_s)
    if not (on_s > 0 and off_s > 0 and 0 <= calm_share <= 1):
        raise WorkloadError("bursts need on_s and off_s above 0 and calm_share in 0..1")
    cycle = on_s + off_s
    times = _burst_times(
        Random(f"{seed}:times"),
        phases=(
            (off_s, requests_per_s * calm_share * cycle / off_s),
            (on_s, requests_per_s * (1 - calm_share) * cycle / on_s),
        ),
        duration_s=duration_s,
    )
    draws = _fill(times, sources, Random(f"{seed}:lengths"))
    return assemble(
        name,
        draws,
        seed=seed,
        limit=limit,
        max_total_tokens=max_total_tokens,
        oversize=oversize,
        limits=limits,
    )


def noisy_neighbour(
    requests_per_s: float,
    *,
    seed: int,
    tenants: int = 8,
    factor: float = 10.0,
    noisy: TenantSource | None = None,
    duration_s: float = DURATION_S,
    limit: int | None = None,
    limits: ClientLimits | None = None,
) -> Workload:
    """`tenants` alike, the first of which ("noisy") asks `factor` times as often as each other.

    `requests_per_s` is all tenants' together. `noisy` gives the loud one's lengths, such as
    `TenantSource("noisy", prompts=TINY_PROMPTS)`; its weight is `factor`.
    """
    if tenants < 2 or not factor > 0:
        raise WorkloadError("a noisy neighbour needs at least 2 tenants and a factor above 0")
    loud = noisy or TenantSource("noisy")
    quiet = [TenantSource(f"tenant-{at:02d}") for at in range(1, tenants)]
    return poisson(
        requests_per_s,
        seed=seed,
        duration_s=duration_s,
        sources=(TenantSource(loud.tenant, factor, loud.prompts, loud.outputs), *quiet),
        limit=limit,
        limits=limits,
        name="noisy-neighbour",
    )


def long_prompt_mix(
    requests_per_s: float,
    *,
    seed: int,
    long_share: float = 0.1,
    long_prompts: Lengths = LONG_PROMPTS,
    duration_s: float = DURATION_S,
    max_total_tokens: int | None = MAX_TOTAL_TOKENS,
    limit: int | None = None,
    limits: ClientLimits | None = None,
) -> Workload:
    """Chat, with `long_share` (above 0, below 1) of long prompts from a tenant of their own ("long")."""
    if not 0 < long_share < 1:
        raise WorkloadError(f"long_share must lie between 0 and 1, not {long_share}")
    return poisson(
        requests_per_s,
        seed=seed,
        duration_s=duration_s,
        sources=(TenantSource("chat", 1 - long_share), TenantSource("long", long_share, long_prompts)),
        max_total_tokens=max_total_tokens,
        limit=limit,
        limits=limits,
        name="long-prompts",
    )


def poisson_times(chance: Random, requests_per_s: float, duration_s: float) -> Iterator[float]:
    """Seconds of a Poisson process on `[0, duration_s)`."""
    at = chance.expovariate(requests_per_s)
    while at < duration_s:
        yield at
        at += chance.expovariate(requests_per_s)


def _burst_times(
    chance: Random, *, phases: tuple[tuple[float, float], ...], duration_s: float
) -> Iterator[float]:
    """Phases of (mean seconds, requests/s) in turn; the first is one drawn by its share of time."""
    shares = [mean_s for mean_s, _ in phases]
    phase = chance.choices(range(len(phases)), shares)[0]
    at = 0.0
    while at < duration_s:
        mean_s, rate = phases[phase]
        length_s = chance.expovariate(1 / mean_s)
        if rate > 0:
            for offset in poisson_times(chance, rate, min(length_s, duration_s - at)):
                yield at + offset
        at += length_s
        phase = (phase + 1) % len(phases)


def _fill(times: Iterable[float], sources: Sequence[TenantSource], chance: Random) -> Iterator[Draw]:
    if not sources or any(not source.weight > 0 for source in sources):
        raise WorkloadError("there must be sources, each with a weight above 0")
    weights = [source.weight for source in sources]
    for at_s in times:
        source = chance.choices(sources, weights)[0]
        yield Draw(
            round(at_s * NS_PER_S), source.tenant, source.prompts.draw(chance), source.outputs.draw(chance)
        )


def _check(requests_per_s: float, duration_s: float) -> None:
    if not requests_per_s > 0 or not duration_s > 0:
        raise WorkloadError(
            f"rate and duration must be above 0, not {requests_per_s} requests/s for {duration_s} s"
        )
