"""What the planner's capacity model says of a fleet, to stand beside what the simulation says.

Owns how a scene is put to the model: its requests with the play's mean share of cached tokens, their rate in
the mean, and how their counts vary over COUNT_S.
"""

from __future__ import annotations

from statistics import fmean, pvariance
from typing import Final

from extproc.core.scaling.capacity import SAMPLES_MAX, Capacity, shape
from extproc.core.scaling.values import ReplicaKind, WorkSample
from extproc.lab.capacity.choice import PlannedFleet
from extproc.lab.replay.play import slo_of

#: Arrivals are counted in spans of this length, in seconds; of fewer spans nothing is said about variation.
COUNT_S: Final = 10.0
COUNTS_MIN: Final = 6


def modelled(fleet: PlannedFleet, hit_share: float) -> float | None:
    """The share (0..1) of all requests that the model expects within targets; None for several kinds.

    `hit_share` (0..1) of each prompt counts as cached.
    """
    kind = kind_of(fleet)
    arrivals = fleet.scene.workload.arrivals
    span_s = fleet.scene.workload.span_s
    if kind is None or span_s <= 0.0:
        return None
    step = max(1, len(arrivals) // SAMPLES_MAX)
    samples = [
        WorkSample(
            fleet.scene.class_of.get(each.tenant, "standard"),
            each.prompt_tokens,
            round(each.prompt_tokens * hit_share),
            each.output_tokens,
        )
        for each in arrivals[::step]
    ]
    counts = [0] * max(1, int(span_s / COUNT_S))
    for each in arrivals:
        at = int((each.at_ns - arrivals[0].at_ns) / (COUNT_S * 1e9))
        if at < len(counts):
            counts[at] += 1
    dispersion = pvariance(counts) / fmean(counts) if len(counts) >= COUNTS_MIN and any(counts) else 1.0
    capacity = Capacity(shape(samples, kind, slo_of(fleet.scene)), kind, dispersion=dispersion)
    share = len(arrivals) / (len(arrivals) + fleet.unfit)
    return capacity.at(len(arrivals) / span_s, fleet.replicas).attainment * share


def kind_of(fleet: PlannedFleet) -> ReplicaKind | None:
    """The one kind of its replicas, at their mean speed; None where there are several."""
    machines = fleet.scene.machines
    first = machines[0]
    alike = {(m.member.hardware, m.member.gpus, m.member.max_concurrent, m.kv_tokens) for m in machines}
    if len(alike) > 1:
        return None
    factor = fmean(machine.factor for machine in machines)
    return ReplicaKind(
        name=first.member.hardware or "unknown",
        timing=first.timing.scaled(decode=factor, prefill=factor),
        permits=first.member.max_concurrent,
        kv_capacity_tokens=first.kv_tokens,
        prefill_budget_tokens=first.budget_tokens,
        price_per_hour=first.member.price_per_hour,
        hardware=first.member.hardware,
        gpus=first.member.gpus,
    )
