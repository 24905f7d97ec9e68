"""The fast model against the requests: the same minutes, the same scaler, both ways.

Owns which minutes that is and the comparison. A part of the ramp with made-up chat: about 40,000 requests,
from a quarter of the peak to the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.lab.scaling.cases import HARDWARE_NAME, ScalingCase, curve_of, work_model
from extproc.lab.scaling.ours import PlannedLane, ShippedPlanner, first_ready, kind_of
from extproc.lab.scaling.peers import HorizontalPodAutoscaler
from extproc.lab.scaling.play import TARGET
from extproc.lab.scaling.rates import RateCurve
from extproc.lab.scaling.replicas import Scaler
from extproc.lab.scaling.requests import play_requests
from extproc.lab.scaling.service import ServiceCurve
from extproc.lab.scaling.traffic import STEP_S, CountedTraffic, counted, listed
from extproc.lab.scaling.weeks import WeeksTraffic, play
from extproc.sim.timing import hardware_named
from extproc.sim.world import parse_fleet

LOAD_S: Final = 60.0
#: From here in the ramp, for so long.
FROM_S: Final = 3_000.0
LASTS_S: Final = 4_200.0
MOST: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityRow:
    """One scaler's minutes: attainment and replica-hours by request and by the fast model."""

    scaler: str
    requests: int
    by_request: float
    by_model: float
    hours_by_request: float
    hours_by_model: float


def fidelity(
    curve_known: ServiceCurve, *, seed: int = 1, lasts_s: float = LASTS_S, replicas: float = 0.0
) -> list[FidelityRow]:
    """Both ways for our planner and for the HPA; `replicas` other than 0 is another peak."""
    curve, clients = curve_of(ScalingCase(name="ramp", seed=seed))
    first, last = round(FROM_S / curve.window_s), round((FROM_S + lasts_s) / curve.window_s)
    part = RateCurve(curve.name, curve.window_s, curve.rates[first:last])
    if replicas:
        part = part.scaled(float(curve.rates.max()) * replicas / 12.0)
    work = work_model()
    workload = listed(clients, part, seed=seed, start_s=0.0, duration_s=part.duration_s)
    traffic = counted(clients, part, work, seed=seed)
    at_first = first_ready(traffic)
    rows = []
    for make in _scalers(traffic, curve_known.full):
        steps = play_requests(
            workload,
            parse_fleet(f"{MOST}*{HARDWARE_NAME}"),
            make(),
            work=work,
            load_steps=round(LOAD_S / STEP_S),
            first=at_first,
            duration_s=part.duration_s,
            seed=seed,
            full=curve_known.full,
        )
        scaler = make()
        found, _ = play(
            scaler,
            WeeksTraffic.of((traffic,), curve_known),
            np.zeros(1, dtype=np.int64),
            np.array([LOAD_S]),
            first=np.array([at_first]),
        )
        rows.append(
            FidelityRow(
                scaler=scaler.name,
                requests=len(workload.arrivals),
                by_request=steps.attainment,
                by_model=found[0].attainment,
                hours_by_request=float(steps.paid.sum()) * STEP_S / 3600,
                hours_by_model=found[0].hours,
            )
        )
    return rows


def _scalers(traffic: CountedTraffic, full: float) -> tuple[Callable[[], Scaler], ...]:
    kind = kind_of(hardware_named(HARDWARE_NAME))
    lane = PlannedLane(traffic=traffic, load_s=LOAD_S, target=TARGET, full=full)
    return (
        lambda: ShippedPlanner([lane], kind, most=MOST),
        lambda: HorizontalPodAutoscaler(np.array([0.7])),
    )
