"""Request by request: the shipped scheduler over replicas that come and go as a scaler wants.

Owns the world whose members change, and what is measured in it by step. A replica that is ready again begins
with an empty cache, and one that leaves ends what it has (`Fleet.set_members`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from extproc.core.endpoint import Member
from extproc.lab.scaling.rates import Series
from extproc.lab.scaling.replicas import Counts, ReplicaStages, Scaler, Seen
from extproc.lab.scaling.smooth import Smoothed
from extproc.lab.scaling.traffic import STEP_S, WorkModel
from extproc.sim.arrival import Workload
from extproc.sim.parallel import replica_of
from extproc.sim.served import SLO_70B, Slo, met
from extproc.sim.world import Setting, SimFleet, World
from extproc.sim.world.run import POOL, set_up

STEP_NS = int(STEP_S * 1e9)


@dataclass(frozen=True, slots=True)
class Steps:
    """What was measured, a value a step: requests that came, those that attained, replicas ready and paid,
    requests in flight or held at the step's end, and the work that came."""

    requests: Series
    attained: Series
    ready: Series
    paid: Series
    concurrency: Series
    load: Series

    @property
    def attainment(self) -> float:
        """Share of all requests."""
        return float(self.attained.sum() / max(1.0, self.requests.sum()))


class ElasticWorld(World):
    """A world whose fleet's members are those that a scaler wants, once they have loaded."""

    def govern(self, scaler: Scaler, stages: ReplicaStages, work: Series, full: float) -> None:
        """Before `run`: who decides, the work of each step, and the load at which a replica is full."""
        steps = len(work)
        self._full = full
        self._scaler, self._stages, self._work = scaler, stages, work
        self._members: dict[str, Member] = {
            endpoint.address: Member(
                endpoint.address,
                max_concurrent=endpoint.configured_max_concurrent,
                hardware=endpoint.hardware,
                gpus=endpoint.gpus,
                kv_capacity_tokens=endpoint.kv_capacity_tokens,
                price_per_hour=endpoint.price_per_hour,
            )
            for endpoint in self.scheduler.fleet.endpoints
        }
        self._smoothed = Smoothed(1)
        self._present = -1
        self._good = self._ended = 0
        self.ready = np.zeros(steps)
        self.paid = np.zeros(steps)
        self.concurrency = np.zeros(steps)
        self._came = np.bincount(
            [min(steps - 1, one.at_ns // STEP_NS) for one in self.workload.arrivals], minlength=steps
        )
        self._change(int(stages.ready[0]))
        self._at(0, self._turn, 0)

    def _turn(self, step: int) -> None:
        if step >= len(self.ready):
            return
        last = step - 1
        load = self._work[last : last + 1] if step else np.zeros(1)
        stages = self._stages
        in_flight = float(len(self._flights) + len(self._held))
        if step:
            self.concurrency[last] = in_flight
        seen = Seen(
            step=step,
            ready=stages.ready,
            wanted=stages.wanted,
            requests=np.array([float(self._came[last]) if step else 0.0]),
            ended=np.array([float(self._ended)]),
            attained=np.array([float(self._good)]),
            load=load / self._full,
            utilization=np.minimum(1.0, self._smoothed.step(load) / self._full / np.maximum(1, stages.ready)),
            concurrency=np.array([in_flight]),
        )
        self._good = self._ended = 0
        ready = int(stages.step(step, self._scaler.wanted(seen))[0])
        self._change(ready)
        self.ready[step] = ready
        self.paid[step] = int(stages.wanted[0]) + len(self.scheduler.fleet.leaving)
        self._at(self.now_ns + STEP_NS, self._turn, step + 1)

    def _end(self, flight: Any, outcome: str, endpoint: str, *, at_ns: int | None = None) -> None:
        super()._end(flight, outcome, endpoint, at_ns=at_ns)
        served = self._served[flight.index]
        self._ended += 1
        self._good += served is not None and met(served, SLO_70B)

    def _change(self, ready: int) -> None:
        if ready == self._present:
            return
        addresses = list(self._members)
        for address in addresses[max(0, self._present) : ready]:
            if self.replicas[address].idle:
                self._fresh(address)
        self._present = ready
        self.scheduler.fleet.set_members({POOL: [self._members[one] for one in addresses[:ready]]})

    def _fresh(self, address: str) -> None:
        """Another process: nothing is in its cache."""
        before = self.replicas[address]
        replicas: dict[str, Any] = self.replicas  # type: ignore[assignment]
        replicas[address] = replica_of(
            before.hardware, before.limits, rng=self._chance, noise=0.05, slowdown=before.slowdown
        )


def play_requests(
    workload: Workload,
    fleet: SimFleet,
    scaler: Scaler,
    *,
    work: WorkModel,
    load_steps: int,
    first: int,
    duration_s: float,
    seed: int,
    full: float = 1.0,
    slo: Slo = SLO_70B,
) -> Steps:
    """Plays it; the fleet's replicas are the most that there may be."""
    steps = int(np.ceil(duration_s / STEP_S))
    world = set_up(ElasticWorld, workload, fleet, Setting(strategy="steer", seed=seed, slo=SLO_70B))
    place = np.array([one.at_ns // STEP_NS for one in workload.arrivals], dtype=np.int64)
    place = np.minimum(place, steps - 1)
    seconds = work.seconds(
        np.array([one.prompt_tokens for one in workload.arrivals]),
        np.array([one.output_tokens for one in workload.arrivals]),
    )
    load = np.bincount(place, weights=seconds, minlength=steps) / STEP_S
    at_first: Counts = np.array([first])
    stages = ReplicaStages(
        load_steps=np.array([load_steps]), first=at_first, most=len(fleet.replicas), drain_steps=0
    )
    world.govern(scaler, stages, load, full)
    served = world.run()
    good = [min(steps - 1, row.arrival.at_ns // STEP_NS) for row in served if met(row, slo)]
    return Steps(
        requests=np.bincount(place, minlength=steps).astype(float),
        attained=np.bincount(np.array(good, dtype=np.int64), minlength=steps).astype(float),
        ready=world.ready,
        paid=world.paid,
        concurrency=world.concurrency,
        load=load,
    )
