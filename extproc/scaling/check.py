"""Whether so many replicas bear a demand, by a short simulation of the scheduler that serves.

Owns the small world that is played: requests drawn from the pool's own, arriving at random, on replicas with
the speed that was learnt. Simulated; it knows no prefix cache (what was found cached is taken off the
prompts) and no faults. A large pool is played as a slice of it at the same load a replica, which is a little
worse off than the whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

import msgspec

from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Fleet, Member, PoolSpec
from extproc.core.policy import Policy, SchedulerLimits
from extproc.core.predict.prior import Prior
from extproc.core.predict.speed import SpeedModel
from extproc.core.scaling.values import ReplicaKind, WorkSample
from extproc.core.scheduler import Scheduler
from extproc.core.slo import ClassSpec
from extproc.core.tenant import Tenant
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.replica import SimReplica
from extproc.sim.served import met
from extproc.sim.slots import ReplicaLimits
from extproc.sim.timing import Hardware
from extproc.sim.world.world import Delays, World

#: Replicas that are played at the most.
SLICE_MAX: Final = 4
#: Requests of one play: more say it more surely, fewer than these say nothing.
REQUESTS_MAX: Final = 4_000
REQUESTS_MIN: Final = 200
#: Seconds that are played before anything is judged, and the longest play in all.
WARM_S: Final = 30.0
PLAYED_S: Final = 300.0
#: Seconds that are judged, of a pool whose requests would not be too many.
JUDGED_S: Final = 60.0
#: A replica's steps vary by so much.
NOISE: Final = 0.05
#: What is assumed of a replica's memory where nobody said.
KV_TOKENS: Final = 400_000

_POOL: Final = "checked"


class CheckJob(msgspec.Struct, frozen=True, kw_only=True, tag="check"):
    """What is to be played: a rate (requests a second) on each of `replicas` (ascending, what the model says
    in the middle), within about `budget_s` seconds; `target` is the share (0..1) that is to attain."""

    samples: tuple[WorkSample, ...]
    kind: ReplicaKind
    classes: tuple[ClassSpec, ...]
    requests_per_s: float
    replicas: tuple[int, ...]
    budget_s: float = 10.0
    target: float = 0.99
    seed: int = 1


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """The share (0..1) that attained its targets, by replicas; those that there was time for. `requests` were
    judged of each at the least."""

    attained: dict[int, float]
    requests: int
    took_s: float


def check(job: CheckJob, *, requests_per_play_s: float) -> tuple[Checked, float]:
    """Play it, and how many requests a second of real time were played.

    The number in the middle first; then one fewer where that was enough, else one more: the others would say
    nothing new. What there is no time for is left out: on a busy machine that may be all.
    """
    began = time.perf_counter()
    attained: dict[int, float] = {}
    judged, speed = REQUESTS_MAX, requests_per_play_s
    at = len(job.replicas) // 2
    while 0 <= at < len(job.replicas):
        count = job.replicas[at]
        many = int(min(REQUESTS_MAX, max(REQUESTS_MIN, slice_rate(job, count) * (WARM_S + JUDGED_S))))
        begun = time.perf_counter()
        if begun - began + many / max(speed, 1.0) > job.budget_s:
            break
        share, requests, played = play(job, count, many)
        speed = 0.5 * speed + 0.5 * played / max(1e-3, time.perf_counter() - begun)
        attained[count] = share
        judged = min(judged, requests)
        at += -1 if share >= job.target else 1
        if 0 <= at < len(job.replicas) and job.replicas[at] in attained:
            break
    took_s = time.perf_counter() - began
    # A machine that was busy once is asked for less, and may try again later.
    if not attained:
        speed *= 1.2
    return Checked(attained=attained, requests=judged if attained else 0, took_s=took_s), speed


def slice_rate(job: CheckJob, replicas: int) -> float:
    """Requests a second on what is played of so many replicas."""
    return job.requests_per_s * min(replicas, SLICE_MAX) / max(1, replicas)


def play(job: CheckJob, replicas: int, requests: int) -> tuple[float, int, int]:
    """(share attained, requests judged, requests played) of one number of replicas."""
    played, rate = min(replicas, SLICE_MAX), slice_rate(job, replicas)
    classes = {spec.name: spec for spec in job.classes}
    workload = arrivals(job.samples, rate, requests, Random(f"{job.seed}/arrivals"))
    served = _world(job, played, workload, classes).run()
    last_ns = workload.arrivals[-1].at_ns
    warm_ns = min(int(WARM_S * 1e9), last_ns // 3)
    standard = ClassSpec()
    judged = [each for each in served if each.arrival.at_ns >= warm_ns]
    good = sum(met(each, classes.get(each.service_class, standard)) for each in judged)
    return good / max(1, len(judged)), len(judged), len(workload.arrivals)


def arrivals(samples: Sequence[WorkSample], rate: float, requests: int, rng: Random) -> Workload:
    """So many requests (fewer where they would take PLAYED_S) like the samples, arriving at random."""
    at_s = 0.0
    some: list[Arrival] = []
    while len(some) < requests and at_s < PLAYED_S:
        at_s += rng.expovariate(rate)
        service_class, prompt, cached, output = samples[rng.randrange(len(samples))]
        some.append(
            Arrival(
                at_ns=int(at_s * 1e9),
                tenant=service_class or "standard",
                prompt_tokens=max(1, prompt - cached),
                output_tokens=max(1, output),
                max_new_tokens=None,
            )
        )
    return Workload("checked", tuple(some), 16, tuple({each.tenant for each in some}))


def _world(job: CheckJob, replicas: int, workload: Workload, classes: Mapping[str, ClassSpec]) -> World:
    kind = job.kind
    kv_tokens = kind.kv_capacity_tokens or KV_TOKENS
    members = [
        Member(f"10.0.0.{i + 1}:80", max_concurrent=kind.permits, kv_capacity_tokens=kv_tokens)
        for i in range(replicas)
    ]
    spec = PoolSpec(
        name=_POOL,
        models=(_POOL,),
        strategy="steer",
        endpoints=(),
        prefill_budget_tokens=kind.prefill_budget_tokens,
    )
    fleet = Fleet([spec])
    # What the service has learnt is known from the start.
    pool = fleet.pools[_POOL]
    pool.speeds["", 1] = SpeedModel(
        Prior(timing=replace(kind.timing), kv_capacity_tokens=kv_tokens, known=True)
    )
    fleet.set_members({_POOL: members})
    many = len(workload.arrivals) + 1
    scheduler = Scheduler(
        fleet,
        instance="check",
        default_model=_POOL,
        limits=SchedulerLimits(reservation_ttl_ns=600_000_000_000, reservations_max=many),
        rng=Random(f"{job.seed}/scheduler"),
        policy=Policy(
            classes=tuple(classes.values()) or (ClassSpec(),),
            bounds=QueueBounds(
                held_max=many, class_held_max=(many,) * max(1, len(classes)), tenant_held_max=many
            ),
        ),
    )
    hardware = Hardware(
        name=kind.name or _POOL, source="learnt", kv_capacity_tokens=kv_tokens, timing=replace(kind.timing)
    )
    limits = ReplicaLimits(
        kv_capacity_tokens=kv_tokens,
        max_concurrent_requests=kind.permits,
        max_batch_prefill_tokens=kind.prefill_budget_tokens,
    )
    sims = {
        member.address: SimReplica(hardware, limits, rng=Random(f"{job.seed}/{member.address}"), noise=NOISE)
        for member in members
    }
    return World(
        scheduler,
        sims,
        workload,
        model=_POOL,
        pool=_POOL,
        delays=Delays(),
        rng=Random(f"{job.seed}/world"),
        tenants={name: Tenant(name=name, service_class=name) for name in workload.tenants},
        grace_s=60.0,
    )
