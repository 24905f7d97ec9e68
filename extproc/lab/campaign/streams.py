"""Which arrivals a cell replays: the public traces by name, stand-ins for them, or a file.

Owns how a seed varies a fixed trace. A trace happened once, so for the intervals over seeds to say
something, a seed (1) turns the trace: it begins at a random request and what came before follows the end;
(2) keeps each request with 9 chances in 10; (3) draws the clients' limits. With the world's step noise and
model error, which the seed draws too, an interval is about "traffic like this trace, on replicas like
these", not about the noise of one replay. Strategies under one seed see the same arrivals and replicas.
Made-up workloads and ServeGen's clients are drawn anew by each seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Final

from extproc.lab.campaign.case import CampaignRun, CaseError
from extproc.lab.workload import (
    Arrival,
    Lengths,
    ReplicaShare,
    TenantSource,
    Workload,
    bursts,
    load,
    lru_hit_share,
    noisy_neighbour,
    poisson,
    sessions,
)
from extproc.lab.workload.synthetic import long_prompt_mix, poisson_times, zipf_weights
from extproc.sim.arrival import NS_PER_S
from extproc.sim.capacity import PERMITS as LOAD_PERMITS
from extproc.sim.capacity import capacity

TRACES_ENV: Final = "TRACES"
TRACES_DEFAULT: Final = Path("../shared/traces")
KEPT_SHARE: Final = 0.9
#: Arrivals of a made-up workload, where nobody limits it.
SYNTHETIC_REQUESTS: Final = 10_000
_RATE: Final = 10.0  # of what is drawn; every cell stretches it to its load
TOTAL_TOKENS: Final = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A public trace: its file, its token bound, the cached share that its capacity is reckoned with."""

    file: str
    stand_in: str
    max_total_tokens: int = TOTAL_TOKENS
    hit_share: float = 0.0
    calm: bool = False
    duration_s: float | None = None


TRACES: Final = {
    "azure-conversation": Trace(file="azure2023_conv.csv.gz", stand_in="poisson"),
    "azure-code": Trace(file="azure2023_code.csv.gz", stand_in="bursts"),
    "azure-code-poisson": Trace(file="azure2023_code.csv.gz", stand_in="code", calm=True),
    "mooncake": Trace(
        file="mooncake_conversation.jsonl.gz", stand_in="sessions", max_total_tokens=200_000, hit_share=0.1
    ),
    "servegen-mid": Trace(file="servegen_m-mid_day12.jsonl.gz", stand_in="tenants", duration_s=3600.0),
}
"""`calm`: the requests of the trace, in their order, at the times of a Poisson process."""

_CODE: Final = (TenantSource("code", 1.0, Lengths(1500, 0.9, 16, 7400), Lengths(20, 0.8, 2, 700)),)


def _tenants(seed: int, duration_s: float) -> Workload:
    sources = tuple(
        TenantSource(f"tenant-{at:02d}", weight, Lengths(150, 0.8, 8, 4000), Lengths(40, 0.7, 1, 500))
        for at, weight in enumerate(zipf_weights(16))
    )
    return bursts(_RATE, seed=seed, duration_s=duration_s, sources=sources, calm_share=0.5, name="tenants")


#: Made-up workloads by name, from a seed and a duration at `_RATE` requests a second.
SYNTHETIC: Final[dict[str, Callable[[int, float], Workload]]] = {
    "poisson": lambda seed, duration_s: poisson(_RATE, seed=seed, duration_s=duration_s),
    "bursts": lambda seed, duration_s: bursts(_RATE, seed=seed, duration_s=duration_s, sources=_CODE),
    "code": lambda seed, duration_s: poisson(
        _RATE, seed=seed, duration_s=duration_s, sources=_CODE, name="code"
    ),
    "sessions": lambda seed, duration_s: sessions(_RATE, seed=seed, duration_s=duration_s),
    "long-prompts": lambda seed, duration_s: long_prompt_mix(_RATE, seed=seed, duration_s=duration_s),
    "noisy-neighbour": lambda seed, duration_s: noisy_neighbour(_RATE, seed=seed, duration_s=duration_s),
    "tenants": _tenants,
}


def known_streams() -> list[str]:
    """Names that are no paths."""
    return [*TRACES, *SYNTHETIC]


def traces_folder(given: str | Path | None = None) -> Path:
    """Where the public traces lie: given, `$TRACES`, or beside the repository."""
    return Path(given or os.environ.get(TRACES_ENV) or TRACES_DEFAULT)


def stood_in(stream: str, folder: Path) -> str | None:
    """The made-up workload that stands in for a trace that is not there; None where none is needed."""
    trace = TRACES.get(stream)
    return trace.stand_in if trace is not None and not (folder / trace.file).is_file() else None


def check_stream(stream: str) -> None:
    """CaseError for a stream that is neither a known name nor a file."""
    if stream not in TRACES and stream not in SYNTHETIC and not Path(stream).is_file():
        raise CaseError(f"no trace {stream!r}: give a file, or one of {', '.join(known_streams())}")


def arrivals_of(case: CampaignRun, folder: Path) -> tuple[Workload, float]:
    """A case's arrivals at its load, and their requests/s; WorkloadError, FleetError.

    The load is of the capacity with TGI's permits, whatever the fleet's: cells that differ in permits
    alone get the same arrivals. What is not ours of a fleet's load is left to those whose it is.
    """
    fleet = case.loaded_fleet.permitting(LOAD_PERMITS)
    shares, cache, count = tuple(fleet.shares), fleet.cache_tokens, len(fleet.replicas)
    workload, rate = _drawn(case.stream, case.seed, case.limit, str(folder), shares, cache, count)
    rate = case.load * rate * fleet.own_share
    return workload.rescaled(rate), rate


@lru_cache(maxsize=4)
def _drawn(
    stream: str,
    seed: int,
    limit: int,
    folder: str,
    shares: Sequence[ReplicaShare],
    cache_tokens: int,
    replicas: int,
) -> tuple[Workload, float]:
    """The arrivals of a seed, and the requests/s of load 1."""
    name = stood_in(stream, Path(folder)) or stream
    if name in SYNTHETIC:
        wanted = limit or SYNTHETIC_REQUESTS
        # Bursts make a short run's rate stray: draw more than is wanted.
        workload = SYNTHETIC[name](seed, (1.5 * wanted + 2_000) / _RATE).head(wanted)
        hit_share = _hit_share(workload, cache_tokens, replicas)
        return workload, capacity(shares, workload, hit_share=hit_share)
    trace = TRACES.get(name)
    path = Path(folder) / trace.file if trace is not None else Path(name)
    settings: dict[str, Any] = {"max_total_tokens": trace.max_total_tokens if trace else _bound(path)}
    if trace is not None and trace.duration_s is not None:
        settings["duration_s"] = trace.duration_s
    workload = load(path, seed=seed, **settings)
    hit_share = (
        trace.hit_share * bool(cache_tokens) if trace else _hit_share(workload, cache_tokens, replicas)
    )
    own = capacity(shares, workload, hit_share=hit_share)
    if not (trace and trace.duration_s):
        chance = Random(f"{seed}:turn")
        workload = turned(workload, chance)
        if trace is not None and trace.calm:
            workload = calmed(workload, chance)
    return workload.head(limit) if limit else workload, own


def _hit_share(workload: Workload, cache_tokens: int, replicas: int) -> float:
    """What one replica's cache, empty at first, finds where it is blindly given one request in `replicas`."""
    if not cache_tokens:
        return 0.0
    own = replace(workload, arrivals=workload.arrivals[::replicas])
    return min(0.9, lru_hit_share(own, cache_tokens=cache_tokens))


def _bound(path: Path) -> int:
    """The longest request of a file: Mooncake's reach 128k tokens, the others are for 8k models."""
    return 200_000 if "mooncake" in path.name else TOTAL_TOKENS


def turned(workload: Workload, chance: Random, *, kept_share: float = KEPT_SHARE) -> Workload:
    """The trace from a random request on, then what came before it; each kept with `kept_share`."""
    arrivals = workload.arrivals
    first = chance.randrange(len(arrivals))
    begin_ns = arrivals[first].at_ns
    gap_ns = (arrivals[-1].at_ns - arrivals[0].at_ns) // len(arrivals)
    again_ns = arrivals[-1].at_ns - begin_ns + gap_ns - arrivals[0].at_ns
    whole: list[Arrival] = [replace(one, at_ns=one.at_ns - begin_ns) for one in arrivals[first:]]
    whole += [replace(one, at_ns=one.at_ns + again_ns) for one in arrivals[:first]]
    kept = tuple(one for one in whole if chance.random() < kept_share)
    return replace(workload, arrivals=kept or tuple(whole))


def calmed(workload: Workload, chance: Random) -> Workload:
    """The same requests in their order, arriving as a Poisson process."""
    count = len(workload.arrivals)
    times = poisson_times(chance, _RATE, count / _RATE * 2 + 10)
    arrivals = tuple(
        replace(one, at_ns=round(at_s * NS_PER_S))
        for one, at_s in zip(workload.arrivals, times, strict=False)
    )
    return replace(workload, arrivals=arrivals)
