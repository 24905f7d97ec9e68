"""A run: a strategy, a workload, a fleet and a seed to what became of each request.

Owns how a scheduler is set up for a strategy: ours hold what nobody would start, the peers
do not, and know nothing of an engine's permits. Pure but for `time_s` (how long the
simulation itself took), which its caller measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

from extproc.core.adapters import PoolAdapters
from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.policy import ClassSpec, Policy, SchedulerLimits
from extproc.core.scheduler import Scheduler
from extproc.core.strategies import PEERS
from extproc.core.tenant import Tenant
from extproc.engines import DEFAULT
from extproc.sim.arrival import Workload
from extproc.sim.parallel import replica_of
from extproc.sim.served import SLO_8B, Served
from extproc.sim.slots import ReplicaLimits
from extproc.sim.world.fleets import Group, SimFleet
from extproc.sim.world.oracle import ORACLE, enlighten
from extproc.sim.world.world import Delays, World, WorldFault

POOL, MODEL = "sim", "sim"
#: What a gateway that knows of no permits believes.
UNBOUNDED_PERMITS = 1_000_000
#: Requests held at once: deep enough that a simulation sheds by time and not by number.
HELD_MAX = 1_000_000
#: What other proxies do without any model of a replica, by the names of their reports: our strategies of that
#: kind, run as a peer is.
CLASSICS = {
    "envoy-least-request": "least_request",
    "power-of-two": "power_of_two",
    "round-robin": "round_robin",
    "envoy-random": "random",
}

AnyWorld = TypeVar("AnyWorld", bound=World)

#: What other projects do, as their own projects would run it.
_PEERS = frozenset((*(strategy.name for strategy in PEERS), *CLASSICS))


def registered(name: str) -> str:
    """The name in the registry of a strategy that a report names."""
    return "steer" if name == ORACLE else CLASSICS.get(name, name)


def is_peer(name: str) -> bool:
    """Whether it is another project's policy; a package's strategy is run as ours are."""
    return name in _PEERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything of a run but its workload and its fleet.

    `step_noise` is the standard deviation of a step's length, `model_error` that of a replica's true speed
    about its kind's. `peer` strategies hold nothing and see no permits. `weights` are tenants' in the fair
    queue.
    """

    strategy: str
    seed: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slo: ClassSpec = SLO_8B
    step_noise: float = 0.05
    model_error: float = 0.10
    delays: Delays = field(default_factory=Delays)
    faults: Sequence[WorldFault] = ()
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    prefix_caching: bool = True
    #: As which the gateway knows the engines (extproc/engines.py).
    engine: str = DEFAULT
    hold_ms: float = 5_000.0
    hold_long_ms: float = 9_000.0
    #: When the first replicas are ready; until then the pool is at zero, and its requests may wait so long.
    cold_s: float = 0.0
    #: LoRA adapters of the replicas' base; whether the gateway knows of them, and whether engines tell all
    #: that are loaded, or those at work alone.
    adapters: PoolAdapters | None = None
    adapters_known: bool = True
    adapters_told: bool = False
    cold_hold_ms: float = 120_000.0

    @property
    def peer(self) -> bool:
        """Whether it is another project's policy, as that project would run it."""
        return is_peer(self.strategy)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of each request, the scheduler as it was at the end, how long each replica had work, and
    how long after each change of speed it was known (None: never). Of two sites the edge's scheduler."""

    served: Sequence[Served]
    scheduler: Scheduler
    busy_ns: Mapping[str, int]
    change_known_s: Mapping[str, float | None] = field(default_factory=dict)
    #: Of two sites: how many requests were placed for each reason (core/tiers).
    placed: Mapping[str, int] = field(default_factory=dict)


def run(workload: Workload, fleet: SimFleet, setting: Setting) -> Result:
    """Play a workload on a fleet under a strategy; `play_sites` where it has two sites."""
    assert fleet.way is None, fleet
    world = set_up(World, workload, fleet, setting)
    return Result(world.run(), world.scheduler, world.busy_ns, world.upsets.change_known_s)


def set_up(
    kind: type[AnyWorld],
    workload: Workload,
    fleet: SimFleet,
    setting: Setting,
    *,
    beside: Sequence[PoolSpec] = (),
) -> AnyWorld:
    """A world that is ready to `run`; of a kind of one's own where more is to happen in it.

    `beside` are pools that its scheduler knows and it has no replicas of.
    """
    oracle = setting.strategy == ORACLE
    strategy = registered(setting.strategy)
    hold_ns = 0 if setting.peer else int(setting.hold_ms * 1e6)
    members = tuple(fleet.members(permits=UNBOUNDED_PERMITS if setting.peer else None))
    spec = PoolSpec(
        name=POOL,
        models=(MODEL, *sorted(setting.adapters.names)) if setting.adapters is not None else (MODEL,),
        adapters=setting.adapters if setting.adapters_known else None,
        engine=setting.engine,
        strategy=strategy,
        parameters={strategy: setting.parameters},
        endpoints=() if setting.cold_s else members,
        starts=setting.cold_s > 0.0,
        load_ns=int(setting.cold_s * 1e9),
    )
    policy = Policy(
        classes=(
            replace(
                setting.slo,
                hold_ns=hold_ns,
                long_hold_ns=int(setting.hold_long_ms * 1e6),
                cold_hold_ns=int(setting.cold_hold_ms * 1e6),
            ),
        ),
        bounds=QueueBounds(
            held_max=HELD_MAX,
            class_held_max=(HELD_MAX,),
            tenant_held_max=HELD_MAX,
        ),
        weights=setting.weights,
    )
    scheduler = Scheduler(
        Fleet([spec, *beside]),
        instance="sim",
        default_model=MODEL,
        limits=SchedulerLimits(reservation_ttl_ns=600_000_000_000, reservations_max=10_000_000),
        rng=Random(f"{setting.seed}/scheduler"),
        policy=policy,
    )
    errors = fleet.model_error(Random(f"{setting.seed}/error"), setting.model_error)
    replicas = {
        address: replica_of(
            group.timing,
            _limits(group, workload, setting),
            rng=Random(f"{setting.seed}/{address}"),
            noise=setting.step_noise,
            slowdown=group.slowdown * errors[address],
        )
        for address, group in fleet.replicas
    }
    world = kind(
        scheduler,
        replicas,
        workload,
        model=MODEL,
        pool=POOL,
        delays=setting.delays,
        rng=Random(f"{setting.seed}/world"),
        faults=setting.faults,
        tenants=setting.tenants,
        conducts=dict(fleet.replicas),
        own_share=fleet.own_share,
        chance=Random(f"{setting.seed}/conduct"),
        adapters_told=setting.adapters_told,
    )
    if setting.cold_s:
        world.happens(int(setting.cold_s * 1e9), lambda: scheduler.fleet.set_members({POOL: members}))
    if oracle:
        enlighten(
            scheduler.fleet.pools[POOL],
            replicas,
            asked=lambda: world.asked_output,
            prefix_caching=setting.prefix_caching,
        )
    return world


def _limits(group: Group, workload: Workload, setting: Setting) -> ReplicaLimits:
    limits = group.limits(block_tokens=workload.block_tokens)
    if setting.adapters is None:
        return limits
    of = setting.adapters
    # Loaded by calls, it is there when its first request comes.
    return replace(limits, adapter_places=of.loaded_max, adapter_load_ms=0.0 if of.by_call else of.load_ms)
