"""Plays a scene under a choice of strategy: the project's own scheduler over simulated replicas.

Owns how a scheduler is set up from a record: classes, weights and holds, the strategy's parameters, and the
learned timings, known from the beginning as in the service. Another project's strategy
holds nothing and knows of no permits, as in `extproc.sim.world.run`. Every figure is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.policy import Policy, SchedulerLimits
from extproc.core.predict.prior import Prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.scheduler import Scheduler
from extproc.core.slo import ClassSpec
from extproc.core.strategies.parameter import Value
from extproc.core.tenant import Tenant
from extproc.lab.replay.log import LogError
from extproc.lab.replay.rebuild import Scene
from extproc.lab.strategies import check_strategy
from extproc.sim.replica import SimReplica
from extproc.sim.served import Served
from extproc.sim.slots import ReplicaLimits
from extproc.sim.world.oracle import ORACLE, enlighten
from extproc.sim.world.run import HELD_MAX, UNBOUNDED_PERMITS, is_peer, registered
from extproc.sim.world.world import Delays, World

#: A step's length about its mean, and a replica's true speed about the learned one (standard deviations).
STEP_NOISE: Final = 0.05
SPEED_ERROR: Final = 0.05
#: The way there is inside the learned timings.
DELAYS: Final = Delays(hop_ms=0.0, event_ms=1.0, report_interval_ms=250.0, report_delay_ms=50.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is done otherwise: the strategy with its parameters, tenants' weights, replicas more or fewer.

    `name` is its column. An empty strategy is the recorded one; parameters go on top of the recorded ones of
    the same strategy, weights on top of the recorded ones.
    """

    name: str
    strategy: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    replicas: int = 0


RECORDED: Final = Choice(name="as recorded")


def slo_of(scene: Scene) -> Mapping[str, ClassSpec]:
    """The targets of a scene's classes, by name; a class that is no more is the last."""
    known = {spec.name: spec for spec in scene.classes}
    named = {*scene.class_of.values(), "standard"}
    return {name: known.get(name, scene.classes[-1]) for name in named}


def check(strategy: str, parameters: Mapping[str, Value]) -> str:
    """A strategy's name in the registry; LogError where nobody has it, or it has not a parameter."""
    try:
        return check_strategy(strategy, parameters)
    except ValueError as error:
        raise LogError(str(error)) from error


def play(
    scene: Scene, choice: Choice = RECORDED, *, seed: int = 1, speed_error: float = SPEED_ERROR
) -> list[Served]:
    """What would have become of each request of a scene, in order of arrival. Raises LogError.

    `speed_error` is how far, in standard deviations, replicas are off their learned speeds.
    """
    return world_of(scene, choice, seed=seed, speed_error=speed_error).run()


def world_of(scene: Scene, choice: Choice, *, seed: int, speed_error: float = SPEED_ERROR) -> World:
    """The same, before it is run: who wants more than the ends of requests looks on. Raises LogError."""
    if choice.replicas:
        scene = scene.replicas(choice.replicas)
    strategy = choice.strategy or scene.strategy
    given = {**scene.parameters.get(registered(strategy), {}), **choice.parameters}
    own, peer = check(strategy, given), is_peer(strategy)
    scheduler = _scheduler(scene, own, given, {**scene.weights, **choice.weights}, peer=peer, seed=seed)
    chance = Random(f"{seed}/error")
    errors = [chance.gauss(0.0, speed_error) for _ in scene.machines]
    # The fleet's speed as a whole is what was measured: only the replicas' are off, some this way, some that.
    common = sum(errors) / len(errors)
    replicas = {
        machine.member.address: SimReplica(
            machine.hardware,
            ReplicaLimits(
                kv_capacity_tokens=machine.kv_tokens,
                max_concurrent_requests=machine.member.max_concurrent,
                max_batch_prefill_tokens=machine.budget_tokens,
                block_tokens=scene.workload.block_tokens,
            ),
            rng=Random(f"{seed}/{machine.member.address}"),
            noise=STEP_NOISE,
            slowdown=machine.factor * max(0.5, 1.0 + error - common),
        )
        for machine, error in zip(scene.machines, errors, strict=True)
    }
    world = World(
        scheduler,
        replicas,
        scene.workload,
        model=scene.model,
        pool=scene.pool,
        delays=DELAYS,
        rng=Random(f"{seed}/world"),
        tenants={name: Tenant(name=name, service_class=klass) for name, klass in scene.class_of.items()},
    )
    if strategy == ORACLE:
        pool = scheduler.fleet.pools[scene.pool]
        enlighten(pool, replicas, asked=lambda: world.asked_output, prefix_caching=True)
    return world


def _scheduler(
    scene: Scene,
    strategy: str,
    given: Mapping[str, Any],
    weights: Mapping[str, float],
    *,
    peer: bool,
    seed: int,
) -> Scheduler:
    members = [machine.member for machine in scene.machines]
    if peer:
        members = [member._replace(max_concurrent=UNBOUNDED_PERMITS) for member in members]
    classes: Sequence[ClassSpec] = scene.classes
    if peer:
        classes = [replace(each, hold_ns=0, long_hold_ns=0) for each in classes]
    scheduler = Scheduler(
        Fleet(
            [
                PoolSpec(
                    name=scene.pool,
                    models=(scene.model,),
                    strategy=strategy,
                    parameters={**scene.parameters, strategy: given},
                    endpoints=tuple(members),
                    bytes_per_token=scene.bytes_per_token,
                    output_tokens=scene.output_tokens,
                    engine=scene.engine,
                    prefill_budget_tokens=scene.machines[0].budget_tokens,
                )
            ]
        ),
        instance="replay",
        default_model=scene.model,
        limits=SchedulerLimits(reservation_ttl_ns=600_000_000_000, reservations_max=10_000_000),
        rng=Random(f"{seed}/scheduler"),
        policy=Policy(
            classes=tuple(classes),
            bounds=QueueBounds(
                held_max=HELD_MAX, class_held_max=(HELD_MAX,) * len(classes), tenant_held_max=HELD_MAX
            ),
            weights=weights,
        ),
    )
    _teach(scheduler, scene)
    return scheduler


def _teach(scheduler: Scheduler, scene: Scene) -> None:
    """Give the scheduler what the service had learned of its replicas."""
    models: dict[tuple[str, int], SpeedModel] = {}
    for endpoint, machine in zip(scheduler.fleet.endpoints, scene.machines, strict=True):
        kind = (machine.member.hardware, machine.member.gpus)
        if kind not in models:
            models[kind] = SpeedModel(Prior(machine.timing, machine.kv_tokens, known=True))
        endpoint.speed = Speed(models[kind])
        endpoint.speed.factor = machine.factor
    scheduler.fleet.pools[scene.pool].speeds.update(models)
