"""Measures what the fast model goes by: attainment and requests in flight over a replica's load.

`python -m extproc.lab.scaling.measure [DAY FILE]` prints the curve of a day's clients (else of made-up chat):
the shipped scheduler with a fixed number of replicas, and a load that rises for ten minutes at three times of
the day. It is measured anew by a run for clients that `service.py` does not know, and kept.
"""

from __future__ import annotations

import sys
from typing import Final

import numpy as np

from extproc.lab.scaling.cases import HARDWARE_NAME, clients_of, work_model
from extproc.lab.scaling.peers import FixedReplicas
from extproc.lab.scaling.rates import RateCurve, Series
from extproc.lab.scaling.requests import play_requests
from extproc.lab.scaling.service import ServiceCurve
from extproc.lab.scaling.smooth import smoothed
from extproc.lab.scaling.traffic import Clients, listed, mean_work_s
from extproc.sim.world import parse_fleet

#: Where a point of the curve lies: the middle of each bin of load.
BINS: Final = (0.0, 0.3, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 2.0, 2.4, 3.0)
HOURS: Final = (3, 11, 19)
RAMP_S: Final = 600.0
REPLICAS: Final = 4
FIRST_LOAD, LAST_LOAD = 0.4, 2.4
#: Steps that a bin needs to count.
STEPS_LEAST: Final = 3


def measure(
    clients: Clients, *, hours: tuple[int, ...] = HOURS, replicas: int = REPLICAS, ramp_s: float = RAMP_S
) -> ServiceCurve:
    """The curve of these clients; about a millisecond of CPU a request."""
    work = work_model()
    each_s = mean_work_s(clients, work)
    loads, came, good, flights = [], [], [], []
    for seed, hour in enumerate(hours):
        # What comes before is left out: the curve begins where the ramp does.
        rates = np.zeros(int(hour * 120) + round(ramp_s / 30))
        rates[hour * 120 :] = np.linspace(FIRST_LOAD, LAST_LOAD, round(ramp_s / 30)) * replicas / each_s
        workload = listed(
            clients, RateCurve("ramp", 30.0, rates), seed=seed, start_s=hour * 3600.0, duration_s=ramp_s
        )
        steps = play_requests(
            workload,
            parse_fleet(f"{replicas}*{HARDWARE_NAME}"),
            FixedReplicas(np.array([float(replicas)])),
            work=work,
            load_steps=1,
            first=replicas,
            duration_s=ramp_s,
            seed=seed,
        )
        loads.append(smoothed(steps.load) / replicas)
        came.append(steps.requests)
        good.append(steps.attained)
        flights.append(steps.concurrency / replicas)
    return binned(*(np.concatenate(each) for each in (loads, came, good, flights)))


def binned(loads: Series, came: Series, good: Series, flights: Series) -> ServiceCurve:
    """Steps by their load to points; more load never attains more, nor has fewer in flight."""
    points = [(0.0, 1.0, 0.0)]
    place = np.digitize(loads, BINS) - 1
    for at in range(len(BINS)):
        own = place == at
        if own.sum() >= STEPS_LEAST and came[own].sum() > 0:
            points.append(
                (
                    float(np.average(loads[own], weights=np.maximum(came[own], 1e-9))),
                    min(points[-1][1], float(good[own].sum() / came[own].sum())),
                    max(points[-1][2], float(flights[own].mean())),
                )
            )
    return ServiceCurve(tuple(points))


def main(arguments: list[str]) -> None:
    """Prints the points."""
    for load, share, flight in measure(clients_of(arguments[0] if arguments else "")).points:
        print(f"    ({load:.2f}, {share:.3f}, {flight:.1f}),")


if __name__ == "__main__":
    main(sys.argv[1:])
