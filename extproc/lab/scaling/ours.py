"""The shipped planner in a simulation: the same forecast, capacity model and rules as the service's.

Owns what stands in for the service: counts by bucket, recent requests as samples, replicas by stage. A lane
has a planner of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.core.scaling.capacity import work_ms
from extproc.core.scaling.demand import UNIT_REQUESTS
from extproc.core.scaling.forecast import Forecaster
from extproc.core.scaling.planner import Planner
from extproc.core.scaling.values import (
    Demand,
    LoadTime,
    PoolFacts,
    PoolScale,
    ReplicaFact,
    ReplicaKind,
    ReplicaStage,
    WorkSample,
)
from extproc.core.slo import ClassSpec
from extproc.lab.scaling.cases import work_model
from extproc.lab.scaling.rates import Series
from extproc.lab.scaling.replicas import Seen
from extproc.lab.scaling.traffic import STEP_S, CountedTraffic
from extproc.sim.served import SLO_70B
from extproc.sim.timing import Hardware
from extproc.sim.world.oracle import true_timing

POOL: Final = "pool"
NS: Final = 1_000_000_000
#: A window's requests are known to the planner so long after it began: as many have ended by then.
KNOWN_S: Final = 60.0


def kind_of(hardware: Hardware, *, permits: int = 128) -> ReplicaKind:
    """The pool's kind, its speed as it would have been learnt."""
    return ReplicaKind(
        name=hardware.name,
        timing=true_timing(hardware, 1.0),
        permits=permits,
        kv_capacity_tokens=hardware.kv_capacity_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLane:
    """A lane's setting: whose traffic, how long a load takes, what is aimed at."""

    traffic: CountedTraffic
    load_s: float
    target: float
    slo: ClassSpec = SLO_70B
    method: str = "auto"
    interval_s: float = 10.0
    down_after_s: float = 300.0
    #: A replica's full load: what `Seen.load` is told in.
    full: float = 1.0


class ShippedPlanner:
    """`core/scaling` as a scaler; its interval is its bucket."""

    name = "steersman"

    def __init__(self, lanes: Sequence[PlannedLane], kind: ReplicaKind, *, most: int) -> None:
        self.lanes = len(lanes)
        self._each = [_Lane(lane, kind, most) for lane in lanes]
        self._wanted: Series | None = None
        #: The last word of each lane's planner, for people.
        self.why = [""] * len(lanes)

    def wanted(self, seen: Seen) -> Series:
        """Each lane's planner in turn, when its interval is over."""
        if self._wanted is None:
            self._wanted = seen.wanted.astype(float)
        for index, lane in enumerate(self._each):
            found = lane.step(seen, index)
            if found is not None:
                self._wanted[index] = found
        return self._wanted


class _Lane:
    def __init__(self, lane: PlannedLane, kind: ReplicaKind, most: int) -> None:
        self._lane, self._kind = lane, kind
        self._every = max(1, round(lane.interval_s / STEP_S))
        self._count = self._judged = self._good = 0.0
        #: Requests that the usual work is the mean of, and that: replica-seconds as `Seen.load` tells them.
        self._known_requests = self._unit = 0.0
        self._last_s: float | None = None
        self._load_time = LoadTime(p50_s=lane.load_s, p90_s=lane.load_s, measured=10)
        scale = PoolScale(
            pool=POOL,
            max_replicas=most,
            target_attainment=lane.target,
            reaction_s=STEP_S,
            load_time_s=lane.load_s,
            down_after_s=lane.down_after_s,
        )
        self._planner = Planner(scale, {"standard": lane.slo})
        self._forecaster = Forecaster(lane.interval_s, method=lane.method)
        self._ahead_s = self._planner.horizon_s(self._load_time, lane.interval_s)
        self._forecaster.look(self._ahead_s)
        self._ratio: float | None = None
        self._samples: dict[int, tuple[WorkSample, ...]] = {}

    def step(self, seen: Seen, index: int) -> int | None:
        """What is wanted now, where an interval ended."""
        now_s = seen.step * STEP_S
        if seen.step:
            self._judged += float(seen.ended[index])
            self._good += float(seen.attained[index])
            self._came(float(seen.requests[index]), float(seen.load[index]))
            if seen.requests[index]:
                self._last_s = now_s
        if not seen.step or seen.step % self._every:
            return None
        self._forecaster.saw(seen.step // self._every - 1, self._count)
        judged, attained = round(self._judged), min(round(self._good), round(self._judged))
        self._count = self._judged = self._good = 0.0
        ready, wanted = int(seen.ready[index]), int(seen.wanted[index])
        plan = self._planner.step(
            int(now_s * NS),
            PoolFacts(
                demand=Demand(requests_per_s=self._forecaster.rate, samples=self._known(seen.step)),
                forecast=self._forecaster.band(self._ahead_s),
                kinds=(self._kind,),
                replicas=tuple(_fact(place, ready) for place in range(max(ready, wanted))),
                load_time=self._load_time,
                idle_s=None if self._last_s is None else now_s - self._last_s,
                dispersion=self._forecaster.dispersion,
                judged=judged,
                attained=attained,
                unit_ms=self._unit * self._ms_of_unit(seen.step),
            ),
        )
        return plan.wanted

    def _came(self, requests: float, load: float) -> None:
        """Count a step's requests, weighed by their work as the service weighs each (`PoolDemand.worked`)."""
        if requests:
            self._known_requests = min(UNIT_REQUESTS, self._known_requests + requests)
            each = load * STEP_S / requests
            self._unit += (each - self._unit) * min(1.0, requests / self._known_requests)
            self._count += load * STEP_S / self._unit

    def _ms_of_unit(self, step: int) -> float:
        """Milliseconds of the planner's work a replica-second here, by the requests of late."""
        samples = self._known(step)
        if self._ratio is None and samples:
            timing = self._kind.timing
            planned = sum(work_ms(timing, one.prompt_tokens, 0, one.output_tokens) for one in samples)
            lengths = np.array([(one.prompt_tokens, one.output_tokens) for one in samples])
            seconds = work_model().seconds(lengths[:, 0], lengths[:, 1])
            self._ratio = planned / float(seconds.sum()) * self._lane.full
        return self._ratio or 0.0

    def _known(self, step: int) -> tuple[WorkSample, ...]:
        """Requests that ended of late: those of the window, once it is a minute old."""
        traffic = self._lane.traffic
        known = round(KNOWN_S / STEP_S)
        window = min(len(traffic.samples) - 1, max(0, (step - known) // traffic.sample_steps))
        found = self._samples.get(window)
        if found is None:
            self._samples = {
                window: tuple(
                    WorkSample("standard", prompt, 0, output) for prompt, output in traffic.samples[window]
                )
            }
            found = self._samples[window]
        return found


_FACTS: dict[tuple[int, ReplicaStage], ReplicaFact] = {}


def _fact(place: int, ready: int) -> ReplicaFact:
    """A place's replica; the same values again and again."""
    stage: ReplicaStage = "ready" if place < ready else "loading"
    found = _FACTS.get((place, stage))
    if found is None:
        found = _FACTS[place, stage] = ReplicaFact(address=f"10.0.0.{place + 1}:80", stage=stage)
    return found


def first_ready(traffic: CountedTraffic, each: float = 0.7) -> int:
    """Replicas at the beginning: what its first minutes need."""
    return max(1, int(np.ceil(traffic.load[: round(300 / STEP_S)].mean() / each)))
