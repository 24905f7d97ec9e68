"""What a fleet would have done with the traffic: attainment, times, use of resources, what binds it, cost.

Owns the figures of one fleet over seeds and how they are measured. Use is sampled on the simulation's clock
every LOOK_MS of all replicas; shares are of what a replica has. Which resource binds is named from what the
missed requests missed, unless KV memory or permits were full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

import msgspec

from extproc.core.scaling.use import KV_FULL, PERMITS_FULL, ResourceUse, UseMeter
from extproc.core.scaling.values import Binding
from extproc.core.slo import ClassSpec
from extproc.lab.capacity.choice import PlannedFleet
from extproc.lab.capacity.model import modelled
from extproc.lab.replay.play import Choice, slo_of, world_of
from extproc.lab.report.cells import MeanInterval, interval
from extproc.lab.report.figures import figures
from extproc.sim.served import Served, met
from extproc.sim.world.world import World

#: How often replicas are looked at, on the simulated clock.
LOOK_MS: Final = 100.0
#: The figures that are told of a fleet: those of a play, and those of its use.
USES: Final = ("kv_p99", "permits_p99", "waiting", "busy")
FIGURES: Final = (
    *("attainment", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms"),
    *("shed_share", "output_tokens_per_s", *USES),
)


class PlayedFleet(msgspec.Struct, frozen=True, kw_only=True):
    """One play of one fleet: plain values that cross from a worker process. Times in ms, shares 0..1."""

    attainment: float
    by_class: dict[str, float]
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    shed_share: float
    hit_share: float
    output_tokens_per_s: float
    use: ResourceUse
    #: Of the requests that missed: which target, or that no answer came.
    missed: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """A fleet's figures over seeds; `values` by the names in FIGURES."""

    name: str
    #: The name of what it is of, whatever their number.
    kind: str
    replicas: int
    hardware: str
    gpus: int
    max_concurrent: int
    prefill_budget_tokens: int
    kv_tokens: int
    requests: int
    unfit: int
    values: Mapping[str, MeanInterval | None]
    #: Each seed's, in their order.
    attainments: tuple[float, ...]
    use: ResourceUse
    by_class: Mapping[str, float]
    binding: Binding
    cost_per_hour: float | None
    #: Attainment (0..1) as the capacity model predicts it; None for a fleet of several kinds.
    model: float | None

    @property
    def attainment(self) -> float:
        """The mean share of all requests that met their targets."""
        found = self.values["attainment"]
        return found.mean if found is not None else 0.0


def play_fleet(fleet: PlannedFleet, *, seed: int) -> PlayedFleet:
    """Play it once. Raises LogError."""
    scene = fleet.scene
    world = world_of(scene, Choice(name=fleet.choice.name), seed=seed)
    meter = UseMeter()
    world.watch(round(LOOK_MS * 1e6), lambda: _look(world, meter))
    served = world.run()
    slo = slo_of(scene)
    found = figures(served, slo=slo)
    share = len(served) / (len(served) + fleet.unfit)
    ttft, tpot = found.ttft_ms, found.tpot_ms
    return PlayedFleet(
        attainment=found.attainment * share,
        by_class=dict(found.attainment_by_class),
        ttft_p50_ms=ttft.p50 if ttft else None,
        ttft_p99_ms=ttft.p99 if ttft else None,
        tpot_p50_ms=tpot.p50 if tpot else None,
        tpot_p99_ms=tpot.p99 if tpot else None,
        shed_share=(found.shed + found.refused) / found.requests,
        hit_share=found.hit_share,
        output_tokens_per_s=found.output_tokens_per_s,
        use=meter.use(),
        missed=dict(_missed(served, slo)),
    )


def _look(world: World, meter: UseMeter) -> None:
    for replica in world.replicas.values():
        meter.look(
            replica.batch_current_max_tokens / replica.limits.kv_capacity_tokens,
            replica.permits_in_use / replica.limits.max_concurrent_requests,
            waiting=replica.waiting > 0,
            busy=replica.permits_in_use > 0,
        )


def _missed(served: Sequence[Served], slo: Mapping[str, ClassSpec]) -> Counter[str]:
    found: Counter[str] = Counter()
    for each in served:
        if met(each, slo):
            continue
        if each.outcome != "ok":
            found["unanswered"] += 1
            continue
        late = each.first_ns - each.arrival.at_ns > slo[each.service_class].target_ns(
            each.arrival.prompt_tokens
        )
        found["ttft" if late else "tpot"] += 1
    return found


def gathered(fleet: PlannedFleet, plays: Sequence[PlayedFleet]) -> FleetFigures:
    """The plays of one fleet together, one a seed."""
    values: dict[str, MeanInterval | None] = {}
    for name in FIGURES:
        read = [getattr(each.use if name in USES else each, name) for each in plays]
        known = [value for value in read if value is not None]
        values[name] = interval(known) if known else None
    machine = fleet.scene.machines[0]
    classes = {name: fmean(each.by_class[name] for each in plays) for name in plays[0].by_class}
    return FleetFigures(
        name=fleet.choice.name,
        kind=replace(fleet.choice, replicas=0).name,
        replicas=fleet.replicas,
        hardware=fleet.hardware,
        gpus=fleet.gpus,
        max_concurrent=machine.member.max_concurrent,
        prefill_budget_tokens=machine.budget_tokens,
        kv_tokens=machine.kv_tokens,
        requests=len(fleet.scene.workload.arrivals) + fleet.unfit,
        unfit=fleet.unfit,
        values=values,
        attainments=tuple(each.attainment for each in plays),
        use=_mean_use([each.use for each in plays]),
        by_class=classes,
        binding=binding_of(plays),
        cost_per_hour=fleet.cost_per_hour,
        model=modelled(fleet, fmean(each.hit_share for each in plays)),
    )


def _mean_use(uses: Sequence[ResourceUse]) -> ResourceUse:
    kv = [each for each in uses if each.kv_p50 is not None and each.kv_p99 is not None]
    return ResourceUse(
        kv_p50=fmean(each.kv_p50 or 0.0 for each in kv) if kv else None,
        kv_p99=fmean(each.kv_p99 or 0.0 for each in kv) if kv else None,
        permits_p50=fmean(each.permits_p50 for each in uses),
        permits_p99=fmean(each.permits_p99 for each in uses),
        waiting=fmean(each.waiting for each in uses),
        busy=fmean(each.busy for each in uses),
        looks=sum(each.looks for each in uses),
    )


def binding_of(plays: Sequence[PlayedFleet]) -> Binding:
    """What more of would help: KV memory or permits where they were full, else the target missed most often.

    "none" where nothing was missed.
    """
    missed: Counter[str] = Counter()
    for each in plays:
        missed.update(each.missed)
    if not missed:
        return "none"
    if fmean(each.use.kv_p99 or 0.0 for each in plays) >= KV_FULL:
        return "kv"
    if fmean(each.use.permits_p99 for each in plays) >= PERMITS_FULL:
        return "permits"
    # What was never answered waited for its first token.
    return "tpot" if missed["tpot"] > missed["ttft"] + missed["unanswered"] else "ttft"
