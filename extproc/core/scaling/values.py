"""What scaling speaks of: work that comes, replicas that bear it, forecasts, needs and plans. Values alone.

Owns the shapes that cross the rooms of scaling (core, service, external scaler, launcher, simulator, page).
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

from extproc.core.predict.timing import Timing

#: What keeps a replica from bearing more: first tokens come late, tokens come slowly, no request permit or no
#: KV memory is left; or nothing does.
Binding = Literal["ttft", "tpot", "permits", "kv", "none"]

#: Of the requests that may miss their targets so many (a share) are aimed at: the target is the least, and
#: what is aimed at is met from both sides. Without it 7 of 15 simulated cells ended below, most by .02 to .2.
AIMED_MISSES: Final = 0.92

#: A replica's life, as scaling counts it.
ReplicaStage = Literal["starting", "loading", "ready", "draining", "failed", "gone"]


class WorkSample(NamedTuple):
    """One request that came: what it asks of a replica. Tokens over all its sequences."""

    service_class: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Work that comes to a pool: arrivals a second, and recent requests as their distribution."""

    requests_per_s: float
    samples: tuple[WorkSample, ...] = ()


class ReplicaKind(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that are alike: their speed as it was learnt (prior until then), bounds and price."""

    name: str
    timing: Timing
    permits: int = 128
    #: 0 where it is not known: then no bound.
    kv_capacity_tokens: int = 0
    prefill_budget_tokens: int = 4096
    price_per_hour: float = 0.0
    hardware: str = ""
    gpus: int = 1


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A forecast of one figure so many seconds ahead: median and an interval from empirical errors."""

    ahead_s: float
    low: float
    median: float
    high: float
    #: Which method made it ("last", "seasonal", "ets", ...).
    method: str = "last"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of one kind that a demand needs for a share of its requests to attain their targets.

    `attainment` (0..1) and `utilization` (0..1) are predicted at `replicas`; `binding` is what keeps one
    replica fewer from being enough. `simulated`: checked by a simulation of the shipped scheduler.
    """

    replicas: int
    attainment: float
    utilization: float
    binding: Binding
    simulated: bool = False


class LoadTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long a replica takes from its start to its first readiness, in seconds, measured or configured."""

    p50_s: float
    p90_s: float
    #: Loads that were measured; 0: this is what the file says.
    measured: int = 0


class PoolScale(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool's replicas may be: the file's `pools[].scaling`, as the planner reads it."""

    pool: str
    min_replicas: int = 1
    max_replicas: int = 1
    #: Share (0..1) of requests that are to attain their class's targets.
    target_attainment: float = 0.99
    #: The most (0..1) of what a replica was seen to bear that is left free where fewer attain.
    margin_max: float = 0.25
    #: Replicas more or fewer in one step; fewer by a quarter of them where it is 0.
    step_up_max: int = 8
    step_down_max: int = 0
    #: How long fewer must have been enough, beyond the load time, before one leaves.
    down_after_s: float = 300.0
    #: From the decision until the orchestrator begins to start one.
    reaction_s: float = 15.0
    #: Before any load was measured.
    load_time_s: float = 60.0
    #: 0: no bound.
    budget_per_hour: float = 0.0
    #: A pool whose last replica may go waits so long without a request before it does.
    zero_after_s: float = 900.0

    @property
    def aimed(self) -> float:
        """The share (0..1) that is aimed at: a little above the target, which is the least."""
        return 1.0 - AIMED_MISSES * (1.0 - self.target_attainment)


class ReplicaFact(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as who goes first is chosen by."""

    address: str
    stage: ReplicaStage
    kind: str = ""
    zone: str = ""
    requests: int = 0
    #: Until its last request is expected to end, in milliseconds.
    empty_in_ms: float = 0.0
    #: Prompt tokens that its prefix cache is believed to hold and are in use.
    cached_value_tokens: float = 0.0
    price_per_hour: float = 0.0
    since_ns: int = 0
    #: Where it runs, "" where nobody says; which share (0..1) of the KV memory of its kind's best it lacks.
    node: str = ""
    memory_lost: float = 0.0
    #: Of its cards: all, what it holds, and what it may hold (all but other processes'). 0: not known.
    total_bytes: int = 0
    used_bytes: int = 0
    room_bytes: int = 0


class SwitchOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that another pool gives up, whose cards might bear this pool's model; `switch` is how long
    such a change took."""

    address: str
    node: str
    pool: str
    switch: LoadTime
    room_bytes: int = 0
    memory_lost: float = 0.0


class ModelSwitch(SwitchOffer, frozen=True, kw_only=True):
    """The offer that is taken rather than a new replica, which takes `load_p50_s`; `passed_over` others have
    too little free memory."""

    load_p50_s: float
    passed_over: int = 0


class PoolFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is so of a pool at a moment.

    `forecast` is of arrivals a second at the horizon. `kinds` are those that there are or may be added, the
    first the pool's usual one. `floor`: what the schedule asks for at the least. `idle_s`: since the last
    request came; None where none ever did. `correction`: replicas bear so much more (above 1) or less than
    the model says; `dispersion`: variance over mean of the counts of arrivals.
    """

    demand: Demand
    forecast: Band
    kinds: tuple[ReplicaKind, ...]
    replicas: tuple[ReplicaFact, ...] = ()
    load_time: LoadTime
    held: int = 0
    floor: int = 0
    idle_s: float | None = None
    correction: float = 1.0
    dispersion: float = 1.0
    #: Requests that ended (or were refused) since the last step, and how many of them attained their targets.
    judged: int = 0
    attained: int = 0
    #: Replicas of the same kind that other pools give up now.
    offers: tuple[SwitchOffer, ...] = ()
    #: Where arrivals are weighed by their work: the milliseconds (`capacity.work_ms`) that count as one.
    unit_ms: float = 0.0


class PlanTerm(msgspec.Struct, frozen=True, kw_only=True):
    """What so many replicas would do with the forecast's upper bound: shares 0..1, as `Need` has them."""

    replicas: int
    attainment: float
    utilization: float
    binding: Binding


class PoolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of one pool now, and why.

    `wanted` is the number that scalers are told; `leaving` are the addresses to drain first, in order, when
    it is fewer than there are. `why` is one line for people. `load_time` and `horizon_s` say how far ahead
    was looked; `forecast` is of arrivals a second then.
    """

    pool: str
    at_ns: int
    wanted: int
    ready: int
    loading: int
    draining: int
    why: str
    #: What kept it from being more or fewer: "min", "max", "budget", "step", "hold", "schedule" or "".
    bound: str = ""
    leaving: tuple[str, ...] = ()
    #: Which kind to add, the cheapest that is enough; "" where the pool has one.
    kind: str = ""
    now: Demand = Demand(requests_per_s=0.0)
    forecast: Band = Band(ahead_s=0.0, low=0.0, median=0.0, high=0.0)
    need: Need = Need(replicas=0, attainment=1.0, utilization=0.0, binding="none")
    #: The same for the forecast's upper bound: never fewer than this within a load time.
    need_high: Need = Need(replicas=0, attainment=1.0, utilization=0.0, binding="none")
    load_time: LoadTime = LoadTime(p50_s=0.0, p90_s=0.0)
    horizon_s: float = 0.0
    held: int = 0
    cost_per_hour: float = 0.0
    #: Around `wanted`: one replica fewer, as many, one more; as if all were of the pool's usual kind.
    terms: tuple[PlanTerm, ...] = ()
    #: What the schedule asks for at the least.
    floor: int = 0
    #: Which share (0..1) of what a replica was seen to bear is left free, since fewer attained than are to.
    margin: float = 0.0
    #: Where more are wanted: the replica of another pool that should change models for it.
    switch: ModelSwitch | None = None

    @property
    def bare(self) -> PoolPlan:
        """Without the requests that it was made of: hundreds, which few readers want."""
        return msgspec.structs.replace(self, now=Demand(requests_per_s=self.now.requests_per_s))

    @property
    def had(self) -> int:
        """Replicas that serve or will: not those that leave."""
        return self.ready + self.loading
