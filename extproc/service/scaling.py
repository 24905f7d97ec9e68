"""The running service's side of scaling: what comes is counted, plans are made, and who acts on them is told.

Owns the newest plan of each pool, the plans before it, and when each is made: a few pools a step of the
schedule, so that no decision waits for all of them. Whoever acts on plans (the external scaler, the launcher,
the webhook) or shows them hangs on `plans`, `listeners` and `history`. Off unless a pool has `scaling`.

Several services count alike: each hears of the ends of all requests, so what others decided on is counted
when it ends. What others refused they tell with their loads (state/share.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from extproc.config.model import Config
from extproc.core.decide import RoutingRequest
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reject, Routed
from extproc.core.scaling.load_times import LoadTimes
from extproc.core.scaling.switches import ModelSwitches
from extproc.core.scaling.values import PoolPlan, ReplicaFact, SwitchOffer, WorkSample
from extproc.core.scheduler import Scheduler
from extproc.scaling.events import ScheduledFloors
from extproc.scaling.kept import KeptScaling, kept_file
from extproc.scaling.pool import ScaledPool
from extproc.scaling.worker import Job, Worker
from extproc.service.parts import Part
from extproc.service.pool_facts import StageBook, cards_of, kinds_of, model_of
from extproc.state.whole_file import WholeFile

#: Plans kept of each pool, the newest last: four hours of one every five seconds.
PLANS_KEPT: Final = 2_880
#: How often what was learnt is written.
WRITE_EVERY_NS: Final = 300 * 1_000_000_000
#: A pool's plan is checked by simulation, and its trend fitted anew, so often.
CHECK_EVERY_NS: Final = 60 * 1_000_000_000
FIT_EVERY_NS: Final = 1_800 * 1_000_000_000
#: And the worker process rests so many times as long as it worked.
WORKER_REST: Final = 3
#: The worker process is ended when it takes longer than this.
LATE_S: Final = 120.0
#: Replicas that other pools give up that one plan looks at.
OFFERS_MAX: Final = 64
#: Replicas that lack memory of which advice speaks, of one pool.
LACKING_SHOWN: Final = 8
#: Steps of the service's schedule in a second.
STEPS_PER_S: Final = 4.0


class ScalingPart(Part, Observer):
    """Plans of every pool that has `scaling`; `listeners` hear of each new one, on the event loop."""

    name = "scaling"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        failed: Callable[[Exception, str], None],
        wall_s: Callable[[], float] = time.time,
        rng: Random | None = None,
    ) -> None:
        self._scheduler, self._clock, self._failed, self._wall_s = scheduler, clock, failed, wall_s
        self._rng = rng or Random(0)
        #: The newest plan of each pool that has one.
        self.plans: dict[str, PoolPlan] = {}
        #: Who is told of each new plan; an exception of theirs is said and counted.
        self.listeners: list[Callable[[PoolPlan], None]] = []
        #: Replicas of a pool that are being started and no members yet: whoever starts them says it.
        self.starting: Callable[[str], Sequence[ReplicaFact]] = lambda _pool: ()
        self.loads = LoadTimes()
        self.switches = ModelSwitches()
        #: The replicas of each pool's newest plan, by address.
        self._facts: dict[str, dict[str, ReplicaFact]] = {}
        self.pools: dict[str, ScaledPool] = {}
        #: Requests that found no room here since the service began, by pool: for the other services.
        self.lost: dict[str, int] = {}
        self._books: dict[str, StageBook] = {}
        self._kept: dict[str, deque[PoolPlan]] = {}
        #: When each pool is planned for next.
        self._due: dict[str, int] = {}
        #: Unix seconds at the clock's zero, as it was at the last step.
        self._zero_s = wall_s() - clock() / 1e9
        self._file: WholeFile[KeptScaling] | None = None
        self._to_write: KeptScaling | None = None
        self._written_ns = 0
        self.worker = Worker(clock=clock)
        self._asking: asyncio.Task[None] | None = None
        self._quiet_ns = 0
        #: When each pool's next check and fit are due.
        self._jobs: dict[tuple[str, str], int] = {}
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where a pool scales."""
        return (self,) if self.pools else ()

    def apply(self, config: Config) -> None:
        """A new configuration holds: pools that do not scale any more have no plan."""
        self._config = config
        section = config.scaling
        self._pool_configs = {pool.name: pool for pool in config.pools}
        self._floors = ScheduledFloors(section.schedule)
        pools: dict[str, ScaledPool] = {}
        for pool in config.pools:
            if pool.scaling is None:
                continue
            known = self.pools.get(pool.name)
            if known is None or not known.told(pool.scaling, section):
                rng = Random(self._rng.getrandbits(64))
                known = ScaledPool(pool.name, pool.scaling, section, rng=rng)
            pools[pool.name] = known
            self._due.setdefault(pool.name, 0)
            self._books.setdefault(pool.name, StageBook())
        self.pools = pools
        for names in (self.plans, self._kept, self._due, self._books, self._facts):
            for name in [name for name in names if name not in pools]:
                del names[name]

    async def start(self) -> None:
        """Recall what was learnt before."""
        folder = self._config.scaling.dir
        if not self.pools or folder is None:
            return
        self._file = kept_file(Path(folder))
        self._written_ns = self._clock()
        kept, at_s = self._file.load() or KeptScaling(), self._wall_s()
        for name, pool in kept.pools.items():
            if name in self.pools:
                self.pools[name].recall(pool, at_s=at_s)
        for name, hardware, cold, seconds in kept.loads:
            for each in seconds:
                self.loads.loaded(name, hardware, each, cold)
        for name, hardware, _, seconds in kept.switches:
            for each in seconds:
                self.switches.times.loaded(name, hardware, each)

    async def stop(self) -> None:
        """End the worker process, and write what was learnt."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self.worker.stop()
        if self._file is not None:
            self._file.write(self._learnt())

    def history(self, pool: str) -> list[PoolPlan]:
        """The plans of a pool that are kept, the oldest first."""
        return list(self._kept.get(pool, ()))

    def notes(self, pool: str) -> list[str]:
        """What model switches cost a pool, and which of its replicas lack memory: advice, in words."""
        load = self.plans[pool].load_time if pool in self.plans else None
        facts = [each for each in self._facts.get(pool, {}).values() if each.stage == "ready"]
        notes = []
        for kind in sorted({each.kind for each in facts}):
            took = self.switches.of(pool, kind)
            if took.measured and load is not None:
                notes.append(
                    f"a node that changes to this model: {took.p50_s:.0f} s (90 %: {took.p90_s:.0f} s; "
                    f"{took.measured} seen on {kind}); a new replica: {load.p50_s:.0f} s"
                )
        lacking = sorted((each for each in facts if each.memory_lost), key=lambda each: -each.memory_lost)
        for each in lacking[:LACKING_SHOWN]:
            held = ""
            if each.room_bytes and (total := each.total_bytes) > each.room_bytes:
                held = f", and other processes hold {(total - each.room_bytes) / 2**30:.1f} GiB of its cards"
            notes.append(
                f"{each.address}{f' on {each.node}' if each.node else ''} got {each.memory_lost:.0%} less KV "
                f"memory than the best of its kind{held}: it leaves first, and begun anew it may get it back"
            )
        return notes

    def loaded(self, pool: str, hardware: str, seconds: float, cold: bool | None = None) -> None:
        """Whoever starts replicas: one was ready so many seconds after it was begun."""
        self.loads.loaded(pool, hardware, seconds, cold)

    def publish(self, plan: PoolPlan) -> None:
        """A plan holds from now on: keep it, and tell whoever acts on it."""
        self.plans[plan.pool] = plan
        # The requests that it was made of are in the newest alone.
        self._kept.setdefault(plan.pool, deque(maxlen=PLANS_KEPT)).append(plan.bare)
        for listener in tuple(self.listeners):
            try:
                listener(plan)
            except Exception as error:  # noqa: BLE001 (one who acts on plans must not keep it from the others)
                self._failed(error, "telling of a plan")

    def step(self, *, now_ns: int) -> None:
        """Plan for the pools that are due: few of them a step, and those at once that nobody serves."""
        if not self.pools:
            return
        self._zero_s = self._wall_s() - now_ns / 1e9
        held = self._scheduler.dispatcher.queue.by_pool_count
        for name in self.pools:
            plan = self.plans.get(name)
            if plan is not None and plan.wanted == 0 and held(name):
                self._due[name] = 0
        interval_s = self._config.scaling.interval_s
        most = ceil(len(self.pools) / (interval_s * STEPS_PER_S))
        due = sorted((at_ns, name) for name, at_ns in self._due.items() if at_ns <= now_ns)
        for _, name in due[:most]:
            self._due[name] = now_ns + int(interval_s * 1e9)
            self.publish(self._plan(name, now_ns))
        if self._config.scaling.simulate and now_ns >= self._quiet_ns and self.worker.free:
            self._ask(now_ns)
        if self._file is not None and now_ns - self._written_ns >= WRITE_EVERY_NS:
            self._written_ns, self._to_write = now_ns, self._learnt()

    def _ask(self, now_ns: int) -> None:
        """Give the worker the job that is due, one at a time."""
        if self._asking is not None and not self._asking.done():
            return
        for name, plan in self.plans.items():
            pool = self.pools[name]
            for kind, every_ns in (("check", CHECK_EVERY_NS), ("fit", FIT_EVERY_NS)):
                due_ns = self._jobs.setdefault((name, kind), now_ns + every_ns // 4)
                if due_ns > now_ns or (kind == "fit" and pool.settings.forecast not in ("auto", "ets")):
                    continue
                # With many pools each waits for its turn.
                self._jobs[name, kind] = now_ns + every_ns
                job = pool.check_job(plan, seed=now_ns) if kind == "check" else pool.fit_job()
                if job is not None:
                    self._asking = asyncio.get_running_loop().create_task(self._asked(pool, plan, job))
                    return

    async def _asked(self, pool: ScaledPool, plan: PoolPlan, job: Job) -> None:
        began_ns = self._clock()
        answer = await self.worker.ask(job, timeout_s=LATE_S)
        # However many pools there are, it works a fourth of the time at the most.
        self._quiet_ns = self._clock() + WORKER_REST * (self._clock() - began_ns)
        if answer is not None:
            pool.answered(answer, plan, now_ns=self._clock())

    @property
    def waiting(self) -> bool:
        """Whether what was learnt is to be written."""
        return self._to_write is not None

    def write(self) -> None:
        """Write it, in a thread."""
        kept, self._to_write = self._to_write, None
        if kept is not None and self._file is not None:
            self._file.write(kept)

    def status(self) -> dict[str, Any]:
        """For `steersman status`: each pool's newest plan, without its samples, and how it is forecast."""
        return {
            name: {**brief(plan), **self.pools[name].status()}
            for name, plan in self.plans.items()
            if name in self.pools
        }

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """It came, or came a while ago and was held."""
        self._came(routing, now_ns)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """Who found no room is demand; who spent its quota would not be served by more replicas."""
        if wanted_room(reject.code):
            self._came(routing, now_ns, lost=True)

    def left(
        self,
        reservation_id: str,  # noqa: ARG002
        routing: RoutingRequest | None,
        *,
        gave_up: bool,
        now_ns: int,
    ) -> None:
        """Who left while it was held was demand too."""
        if routing is not None:
            self._came(routing, now_ns, lost=gave_up)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """What a request was, in the end; another service's is counted now."""
        outcome = event.outcome
        reservation = outcome.reservation
        pool = self.pools.get(reservation.pool)
        if pool is None or not reservation.permits:
            return
        if event.sample.attained is not None:
            pool.ended(attained=event.sample.attained)
        if not event.here:
            pool.came(
                reservation.input_tokens,
                reservation.output_tokens,
                at_s=self._zero_s + (now_ns - outcome.duration_ns) / 1e9,
            )
        prompt = outcome.prompt_tokens or reservation.input_tokens
        cached = reservation.cached_tokens if outcome.cached_tokens is None else outcome.cached_tokens
        output = outcome.output_tokens
        if output is None:
            output = reservation.output_tokens
        pool.demand.ended(WorkSample(reservation.service_class, prompt, min(cached, prompt), output))

    def _came(self, routing: RoutingRequest, now_ns: int, *, lost: bool = False) -> None:
        pool = self.pools.get(routing.pool)
        if pool is not None and not routing.free:
            if lost:
                self.lost[routing.pool] = self.lost.get(routing.pool, 0) + 1
                pool.ended(attained=False)
            at_s = self._zero_s + now_ns / 1e9
            pool.came(routing.input_tokens, routing.output_tokens, at_s=at_s)

    def lost_elsewhere(self, lost: Mapping[str, int]) -> None:
        """Other services refused so many: demand of the usual work, that did not attain."""
        at_s = self._zero_s + self._clock() / 1e9
        for name, count in lost.items():
            pool = self.pools.get(name)
            if pool is not None:
                pool.lost(count, at_s=at_s)

    def _plan(self, name: str, now_ns: int) -> PoolPlan:
        pool, config = self.pools[name], self._pool_configs[name]
        fleet = self._scheduler.fleet
        known = fleet.pools[name]
        settings, at_s = pool.settings, self._zero_s + now_ns / 1e9
        load = self.loads.of(name, prior_s=settings.load_time_s)
        replicas = self._books[name].read(fleet, known, config, load_time_s=load.p90_s, now_ns=now_ns)
        for fact in replicas:
            self.loads.saw(name, fact.address, fact.stage, fact.kind, now_ns=now_ns)
        self._facts[name] = {fact.address: fact for fact in replicas}
        self._switched(name, now_ns)
        # Who starts them says how long they took.
        known_already = {fact.address for fact in replicas}
        replicas += tuple(each for each in self.starting(name) if each.address not in known_already)
        lead_s = load.p90_s + settings.reaction_s + self._config.scaling.interval_s
        kinds = kinds_of(known, config)
        return pool.step(
            now_ns=now_ns,
            at_s=at_s,
            replicas=replicas,
            kinds=kinds,
            offers=self._offers(name, {kind.name for kind in kinds}),
            classes={spec.name: spec for spec in self._scheduler.settings.policy.classes},
            load_time=load,
            held=self._scheduler.dispatcher.queue.by_pool_count(name),
            floor=self._floors.floor(name, at_s=at_s, lead_s=lead_s),
        )

    def _switched(self, name: str, now_ns: int) -> None:
        """Which model is ready on which cards now: those that had another one were switched."""
        facts = self._facts[name]
        for endpoint in self._scheduler.fleet.pools[name].endpoints:
            fact, cards = facts.get(endpoint.address), cards_of(endpoint)
            if fact is not None and fact.stage == "ready" and cards is not None:
                self.switches.saw(
                    cards, model=model_of(endpoint), pool=name, hardware=fact.kind, now_ns=now_ns
                )

    def _offers(self, name: str, kinds: Collection[str]) -> tuple[SwitchOffer, ...]:
        """Replicas of these kinds that other pools give up now, the first of them."""
        offers = []
        for other, plan in self.plans.items():
            for address in plan.leaving if other != name else ():
                fact = self._facts.get(other, {}).get(address)
                if fact is not None and fact.node and fact.kind in kinds:
                    offers.append(
                        SwitchOffer(
                            address=address,
                            node=fact.node,
                            pool=other,
                            switch=self.switches.of(name, fact.kind),
                            room_bytes=fact.room_bytes,
                            memory_lost=fact.memory_lost,
                        )
                    )
        return tuple(offers[:OFFERS_MAX])

    def _learnt(self) -> KeptScaling:
        return KeptScaling(
            pools={name: pool.kept() for name, pool in self.pools.items()},
            loads=self.loads.kept(),
            switches=self.switches.times.kept(),
        )


def brief(plan: PoolPlan) -> dict[str, Any]:
    """A plan as plain values, without the requests that its demand holds."""
    told: dict[str, Any] = msgspec.to_builtins(plan.bare)
    told["now"] = {"requests_per_s": plan.now.requests_per_s}
    return told
