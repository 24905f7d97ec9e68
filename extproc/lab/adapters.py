"""LoRA adapters on simulated replicas, placement by placement: `python -m extproc.lab.adapters`.

Owns the traffic (conversations, each with an adapter by Zipf's law) and the table. Placements differ in what
they know: `round robin` and `least request` spread every adapter everywhere, `sticky home` sends an adapter
where it went first for ever, `steer, blind` is ours without `adapters`, `steer` is ours with vLLM's reports
of today (adapters at work), `steer, told` with those to come (adapters loaded), `steer, by calls` loads them
itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from extproc.core.adapters import PoolAdapters
from extproc.core.series import quantile
from extproc.lab.workload.conversations import sessions
from extproc.lab.workload.synthetic import zipf_weights
from extproc.sim.arrival import Workload
from extproc.sim.capacity import capacity
from extproc.sim.lora_replica import LoraReplica
from extproc.sim.served import met, ttft_ms
from extproc.sim.world import parse_fleet
from extproc.sim.world.calling import CallingWorld
from extproc.sim.world.run import Setting, set_up
from extproc.sim.world.world import World

#: Requests a second of the traffic before it is set to a load.
_RATE: Final = 20.0
#: What a replica's prefix cache finds of it, for the meaning of load 1.
_HIT_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCase:
    """What is played: `adapters` by Zipf's law (`skew` is its exponent), `places` at each of the `replicas`,
    loads of `load_ms`, `requests` at `load` (1 is what the fleet can bear without adapters). `beside`: a load
    by a call goes on beside the replica's steps, and does not stop them."""

    adapters: int = 24
    places: int = 8
    replicas: int = 4
    load_ms: float = 500.0
    load: float = 0.7
    skew: float = 1.0
    requests: int = 1_500
    fleet: str = "8b"
    beside: bool = False


@dataclass(frozen=True, slots=True)
class AdapterPlacement:
    """A way of placing: its strategy, and what it knows of adapters."""

    name: str
    strategy: str
    known: bool = False
    told: bool = False
    #: The adapter is the session that a sticky strategy keeps.
    sticky: bool = False
    #: The gateway loads and unloads by calls (`pools[].adapters.load`).
    by_call: bool = False


PLACEMENTS: Final = (
    AdapterPlacement("round robin", "round-robin"),
    AdapterPlacement("least request", "envoy-least-request"),
    AdapterPlacement("sticky home", "sticky-least-loaded", sticky=True),
    AdapterPlacement("steer, blind", "steer"),
    AdapterPlacement("steer", "steer", known=True),
    AdapterPlacement("steer, told", "steer", known=True, told=True),
    AdapterPlacement("steer, by calls", "steer", known=True, by_call=True),
)


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """What came of one run: loads and drops of all replicas, first tokens (ms), shares of all requests."""

    placement: str
    requests: int
    loads: int
    drops: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    attained: float
    unserved: float


def traffic(case: AdapterCase, seed: int) -> Workload:
    """Conversations, each with one adapter, at the case's load."""
    duration_s = case.requests / _RATE * 1.5 + 30.0
    found = sessions(_RATE, seed=seed, duration_s=duration_s).head(case.requests)
    chance, weights = Random(f"{seed}/adapters"), zipf_weights(case.adapters, exponent=case.skew)
    names = names_of(case)
    of = {
        session: chance.choices(names, weights)[0]
        for session in dict.fromkeys(each.session for each in found.arrivals)
    }
    own = replace(found, arrivals=tuple([replace(each, model=of[each.session]) for each in found.arrivals]))
    bears = capacity(parse_fleet(case.fleet).scaled(case.replicas).shares, own, hit_share=_HIT_SHARE)
    return own.rescaled(bears * case.load)


def names_of(case: AdapterCase) -> list[str]:
    """The adapters, the most asked for first."""
    return [f"adapter-{i:02d}" for i in range(case.adapters)]


def played(case: AdapterCase, placement: AdapterPlacement, seed: int) -> AdapterRow:
    """One run."""
    workload = traffic(case, seed)
    if placement.sticky:
        kept = tuple([replace(each, session=each.model) for each in workload.arrivals])
        workload = replace(workload, arrivals=kept)
    setting = Setting(
        strategy=placement.strategy,
        seed=seed,
        adapters=PoolAdapters(
            names=frozenset(names_of(case)),
            loaded_max=case.places,
            load_ms=case.load_ms,
            by_call=placement.by_call,
        ),
        adapters_known=placement.known,
        adapters_told=placement.told,
    )
    fleet = parse_fleet(case.fleet).scaled(case.replicas)
    kind: type[World] = CallingWorld if placement.by_call else World
    world = set_up(kind, workload, fleet, setting)
    if isinstance(world, CallingWorld):
        world.stops = not case.beside
    served = world.run()
    loads, drops = _by_call(world) if placement.by_call else _by_engines(world)
    firsts = sorted(ttft_ms(each) for each in served if each.first_ns >= 0) or [0.0]
    count = len(served)
    return AdapterRow(
        placement.name,
        count,
        loads,
        drops,
        quantile(firsts, 0.5),
        quantile(firsts, 0.99),
        sum(met(each, setting.slo) for each in served) / count,
        sum(each.outcome != "ok" for each in served) / count,
    )


def _by_engines(world: World) -> tuple[int, int]:
    """Loads and drops as the engines made them."""
    places = [each.adapters for each in world.replicas.values() if isinstance(each, LoraReplica)]
    return sum(each.loads for each in places), sum(each.drops for each in places)


def _by_call(world: World) -> tuple[int, int]:
    """The same as the gateway called for them."""
    counts = [pool.adapter_counts for pool in world.scheduler.fleet.pools.values()]
    return sum(each.loads.total() for each in counts), sum(each.drops.total() for each in counts)


def mean(rows: Sequence[AdapterRow]) -> AdapterRow:
    """The mean of several seeds' runs of one placement."""
    n = len(rows)
    return AdapterRow(
        rows[0].placement,
        sum(each.requests for each in rows) // n,
        round(sum(each.loads for each in rows) / n),
        round(sum(each.drops for each in rows) / n),
        sum(each.ttft_p50_ms for each in rows) / n,
        sum(each.ttft_p99_ms for each in rows) / n,
        sum(each.attained for each in rows) / n,
        sum(each.unserved for each in rows) / n,
    )


def table(rows: Iterable[AdapterRow]) -> str:
    """The rows in Markdown."""
    lines = [
        "| placement | loads | drops | first token p50, p99 (ms) | attainment % | not served % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {each.placement} | {each.loads} | {each.drops} | {each.ttft_p50_ms:.0f}, {each.ttft_p99_ms:.0f} "
        f"| {100 * each.attained:.1f} | {100 * each.unserved:.1f} |"
        for each in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    case = AdapterCase()
    parser = argparse.ArgumentParser(prog="python -m extproc.lab.adapters", description=__doc__)
    for name, kind in (("adapters", int), ("places", int), ("replicas", int), ("requests", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(case, name))
    for name in ("load-ms", "load", "skew"):
        parser.add_argument(f"--{name}", type=float, default=getattr(case, name.replace("-", "_")))
    parser.add_argument("--fleet", default=case.fleet)
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    given = vars(parser.parse_args(arguments))
    seeds = range(1, given.pop("seeds") + 1)
    case = AdapterCase(**given)
    print(table(mean([played(case, each, seed) for seed in seeds]) for each in PLACEMENTS))


if __name__ == "__main__":
    main()
