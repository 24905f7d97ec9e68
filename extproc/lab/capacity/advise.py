"""Advice on larger or smaller replicas and limits, simulated on recorded traffic.

Owns how changes are put to the simulation: each with the seeds of the fleet as it was, so that a gain is the
mean of differences. What is worth a try is `core.scaling.advice`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from extproc.core.scaling.advice import Advice, ChangeGain, VerticalChange, advise, changes_for, diagnose
from extproc.core.scaling.values import ReplicaKind
from extproc.lab.capacity.choice import FleetChoice, planned
from extproc.lab.capacity.figures import FleetFigures
from extproc.lab.capacity.model import kind_of
from extproc.lab.capacity.plays import FleetPlays
from extproc.lab.replay.log import LogError
from extproc.lab.report.cells import interval


def simulated_advice(
    plays: FleetPlays, *, target: float = 0.99, cards: Sequence[str] = ()
) -> tuple[Advice, ReplicaKind]:
    """What binds the recorded pool, what each change worth a try would do, and the pool's kind of replica.

    `target` is the share (0..1) that is to attain, `cards` are tried in place of our own choice. Raises
    LogError for a pool of several kinds, and for a change that cannot be simulated.
    """
    kind = kind_of(planned(plays.scene, FleetChoice(), plays.prices))
    if kind is None:
        raise LogError(f"pool {plays.scene.pool!r} has several kinds of replicas; advice is of one kind")
    before = plays.figures([FleetChoice()])[0]
    bound = diagnose(before.use, attainment=before.attainment, target=target).bound
    changes = changes_for(bound, kind, cards)
    after = plays.figures([_choice(each) for each in changes])
    gains = [_gain(change, before, found) for change, found in zip(changes, after, strict=True)]
    advice = advise(
        plays.scene.pool,
        before.use,
        gains,
        attainment=before.attainment,
        target=target,
        cost_per_hour=before.cost_per_hour,
    )
    return advice, kind


def _choice(change: VerticalChange) -> FleetChoice:
    return FleetChoice(
        hardware=change.hardware,
        max_concurrent=change.max_concurrent,
        prefill_budget_tokens=change.prefill_budget_tokens,
        kv_scale=change.kv_scale,
    )


def _gain(change: VerticalChange, before: FleetFigures, after: FleetFigures) -> ChangeGain:
    found = interval([a - b for a, b in zip(after.attainments, before.attainments, strict=True)])
    first, each = after.values["ttft_p99_ms"], after.values["tpot_p50_ms"]
    return ChangeGain(
        change=change,
        attainment=after.attainment,
        gain=found.mean,
        low=found.mean - found.half if found.half is not None else None,
        high=found.mean + found.half if found.half is not None else None,
        ttft_p99_ms=first.mean if first is not None else None,
        tpot_p50_ms=each.mean if each is not None else None,
        cost_per_hour=after.cost_per_hour,
    )
