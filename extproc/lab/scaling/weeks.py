"""The fast world: weeks of intervals, many lanes at once.

Owns the loop. A lane is one scaler's setting on one seed's traffic with one load time. What is decided at a
step is seen from the step before, and replicas begin to load at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.lab.scaling.rates import DAY_S, Series
from extproc.lab.scaling.replicas import Counts, ReplicaStages, Scaler, Seen
from extproc.lab.scaling.service import ServiceCurve
from extproc.lab.scaling.smooth import smoothed
from extproc.lab.scaling.traffic import STEP_S, CountedTraffic

#: Replicas that there may be at the most; enough for three times the peak.
REPLICAS_MAX: Final = 48
#: How long one that leaves is paid for until it is empty: about the longest stay of most requests.
DRAIN_S: Final = 20.0
#: Attainment by day is judged in intervals of this length too (`LaneOutcome.worst`).
WORST_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class WeeksTraffic:
    """Steps by seeds: requests, work, and the work as replicas feel it; and what that does to them."""

    requests: Series
    load: Series
    felt: Series
    curve: ServiceCurve

    @classmethod
    def of(cls, seeds: tuple[CountedTraffic, ...], curve: ServiceCurve) -> WeeksTraffic:
        """Side by side."""
        load = np.stack([one.load for one in seeds], axis=1)
        return cls(np.stack([one.requests for one in seeds], axis=1), load, smoothed(load), curve)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOutcome:
    """One lane's figures. `hours` are replica-hours paid: loading, ready and leaving. `turns` are changes of
    the direction of what was wanted, a day. `worst` is the attainment of the worst ten minutes that had
    traffic."""

    attainment: float
    hours: float
    turns: float
    starts: float
    worst: float


def play(
    scaler: Scaler, traffic: WeeksTraffic, seed_of: Counts, load_s: Series, *, first: Counts | None = None
) -> tuple[list[LaneOutcome], Counts]:
    """Each lane's outcome, and what was wanted at each step. `seed_of` names a lane's column of traffic."""
    steps = len(traffic.requests)
    lanes = len(seed_of)
    at_first = (
        first
        if first is not None
        else np.ceil(traffic.felt[:60, seed_of].mean(0) / traffic.curve.full / 0.8).astype(np.int64)
    )
    stages = ReplicaStages(
        load_steps=np.maximum(1, np.rint(load_s / STEP_S)).astype(np.int64),
        first=np.maximum(1, at_first),
        most=REPLICAS_MAX,
        drain_steps=round(DRAIN_S / STEP_S),
    )
    ready = np.zeros((steps, lanes), dtype=np.int64)
    wanted = np.zeros((steps, lanes), dtype=np.int64)
    nothing = np.zeros(lanes)
    full = traffic.curve.full
    seen = Seen(0, stages.ready, stages.wanted, nothing, nothing, nothing, nothing, nothing, nothing)
    for step in range(steps):
        seen.step, seen.ready, seen.wanted = step, stages.ready, stages.wanted
        if step:
            felt = traffic.felt[step - 1, seed_of]
            seen.requests = traffic.requests[step - 1, seed_of]
            share = traffic.curve.attainment(felt, ready[step - 1].astype(float))
            seen.ended, seen.attained = seen.requests, seen.requests * share
            seen.load = traffic.load[step - 1, seed_of] / full
            seen.utilization = np.minimum(1.0, felt / full / np.maximum(1, stages.ready))
            seen.concurrency = traffic.curve.concurrency(felt, stages.ready.astype(float))
        ready[step] = stages.step(step, scaler.wanted(seen))
        wanted[step] = stages.wanted
    return outcomes(traffic, seed_of, ready, wanted, stages.paid), wanted


def outcomes(
    traffic: WeeksTraffic, seed_of: Counts, ready: Counts, wanted: Counts, paid: Series
) -> list[LaneOutcome]:
    """From the replicas of each step to figures, a lane each."""
    found = []
    window = round(WORST_S / STEP_S)
    for lane, seed in enumerate(seed_of.tolist()):
        requests = traffic.requests[:, seed]
        good = requests * traffic.curve.attainment(traffic.felt[:, seed], ready[:, lane].astype(float))
        whole = len(requests) // window * window
        came = requests[:whole].reshape(-1, window).sum(1)
        attained = good[:whole].reshape(-1, window).sum(1)
        busy = came > 0
        found.append(
            LaneOutcome(
                attainment=float(good.sum() / max(1.0, requests.sum())),
                hours=float(paid[lane]) * STEP_S / 3600,
                turns=turns(wanted[:, lane]) * DAY_S / (len(requests) * STEP_S),
                starts=float(np.maximum(0, np.diff(wanted[:, lane].astype(np.int64))).sum()),
                worst=float((attained[busy] / came[busy]).min()) if busy.any() else 1.0,
            )
        )
    return found


def turns(wanted: Counts) -> int:
    """How often it went up after it went down, or down after up."""
    change = np.diff(wanted.astype(np.int64))
    signs = np.sign(change[change != 0])
    return int((signs[1:] != signs[:-1]).sum())
