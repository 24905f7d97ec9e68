"""A record of made-up traffic: the real scheduler and recorder over simulated replicas, in-process."""

from __future__ import annotations

from pathlib import Path
from random import Random

from extproc.config.model import Record
from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome
from extproc.core.policy import ClassSpec, Policy, SchedulerLimits
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.observe.record import Recorder
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.replica import SimReplica
from extproc.sim.served import Served
from extproc.sim.world.fleets import SimFleet, parse_fleet
from extproc.sim.world.world import Delays, World
from tests.stand.schedulers import make_settled

#: Unix time at which the made-up traffic begins.
BEGIN_NS = 1_790_000_000_000_000_000


def traffic(seed: int, *, requests: int, per_s: float) -> Workload:
    """Two tenants; a third of the prompts begin with one of five long prefixes."""
    rng = Random(seed)
    arrivals, at_s = [], 0.0
    shared = [tuple(rng.getrandbits(62) for _ in range(10)) for _ in range(5)]
    for _ in range(requests):
        at_s += rng.expovariate(per_s)
        prompt = max(16, int(rng.lognormvariate(6.3, 0.9)))
        blocks = shared[rng.randrange(5)] if rng.random() < 0.33 else ()
        prompt = max(prompt, 64 * len(blocks) + 32)
        own = tuple(rng.getrandbits(62) for _ in range(prompt // 64 - len(blocks)))
        arrivals.append(
            Arrival(
                int(at_s * 1e9),
                "acme" if rng.random() < 0.6 else "globex",
                prompt,
                max(1, int(rng.lognormvariate(4.6, 0.7))),
                512,
                blocks + own,
            )
        )
    return Workload("made-up", tuple(arrivals), 64, ("acme", "globex"))


def record(
    path: Path,
    *,
    seed: int = 1,
    requests: int = 400,
    per_s: float = 20.0,
    fleet: str = "3*a100-80g/llama-3-8b:permits=64",
    strategy: str = "steer",
    parameters: dict[str, float | int | bool | str] | None = None,
    settings: Record | None = None,
) -> list[Served]:
    """Play traffic on a scheduler that records it; what became of each request, as the world knows it."""
    machines: SimFleet = parse_fleet(fleet)
    scheduler = Scheduler(
        Fleet(
            [
                PoolSpec(
                    name="chat",
                    models=("m",),
                    strategy=strategy,
                    endpoints=tuple(machines.members()),
                    parameters={strategy: parameters or {}},
                )
            ]
        ),
        instance="test",
        default_model="m",
        limits=SchedulerLimits(reservation_ttl_ns=600_000_000_000),
        rng=Random(seed),
        policy=Policy(
            classes=(ClassSpec(name="premium"), ClassSpec(name="standard")),
            bounds=QueueBounds(class_held_max=(1_000, 1_000)),
            weights={"globex": 2.0},
        ),
    )
    workload = traffic(seed, requests=requests, per_s=per_s)
    replicas = {
        address: SimReplica(
            group.timing,
            group.limits(block_tokens=workload.block_tokens),
            rng=Random(f"{seed}/{address}"),
            noise=0.05,
            slowdown=group.slowdown,
        )
        for address, group in machines.replicas
    }
    world = World(
        scheduler,
        replicas,
        workload,
        model="m",
        pool="chat",
        delays=Delays(),
        rng=Random(seed),
        tenants={"acme": Tenant(name="acme", service_class="premium"), "globex": Tenant(name="globex")},
    )
    recorder = Recorder(
        settings or Record(file=str(path)),
        instance="test",
        clock=lambda: world.now_ns,
        wall_ns=lambda: BEGIN_NS,
    )
    scheduler.events.observers = (recorder,)
    settle = scheduler.settlement.settle

    def settled(outcome: Outcome, *, now_ns: int) -> bool:
        first = settle(outcome, now_ns=now_ns)
        if first:
            recorder.settled(make_settled(outcome), now_ns=now_ns)
        recorder.watch(scheduler, now_ns=now_ns)
        if recorder.waiting:
            recorder.flush()
        return first

    scheduler.settlement.settle = settled
    recorder.watch(scheduler, now_ns=0)
    served = world.run()
    recorder.flush(last=True)
    return served
