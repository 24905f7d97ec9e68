"""The scheduler: the one order of things from a request to its reservation, and what time alone brings.

Owns admission (resolve → reserve the quota → dispatch) and the schedule that the service and the simulator
share. Who waits and where requests go is dispatch.py's, what comes back of them settlement.py's. No I/O; its
caller brings time and chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from msgspec.structs import replace

from extproc.core.accounts import borrows, reserved, spared
from extproc.core.cachekeys.values import CacheCharge, CachedAnswer
from extproc.core.decide import RoutingRequest
from extproc.core.dispatch import Dispatcher
from extproc.core.errors import Error
from extproc.core.events import EventEmitter, raises
from extproc.core.experiment import Experiments
from extproc.core.explain import Explanation, explain, explain_held, explain_hit, explain_kept, refused
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.next_step import NextStep
from extproc.core.outcome import CacheHit, Hold, Reject, Routed
from extproc.core.peers import Peers
from extproc.core.policy import ClassSpec, Policy, SchedulerLimits, SchedulerSettings
from extproc.core.quota import Account, Amounts, Ask, ExactBooks, Granted, QuotaBooks, Refused
from extproc.core.remote.choice import SiteChoices
from extproc.core.request import Request
from extproc.core.resolving import Resolver
from extproc.core.settlement import Settlement
from extproc.core.spill.books import SpillBooks
from extproc.core.spill.moving import Mover
from extproc.core.tenant import Tenant

__all__ = ["AskQuota", "ClassSpec", "Policy", "Scheduler", "SchedulerLimits"]

#: Of what is charged elsewhere.
NO_ACCOUNT = Account("", "", "", ())
#: A pool is idle, and its capacity may be lent, while no more than this share of its permits is taken.
IDLE_BELOW = 0.5
#: How often who is held is tried again without an event, and who waited too long is turned away. Steps are no
#: closer, so that an overdue first token counts as come so much later at the most.
STEP_NS = 20_000_000
#: How often health follows, and what nobody has heard of expires.
ROUND_NS = 250_000_000


@dataclass(frozen=True, slots=True)
class AskQuota:
    """The quota's shared store must be asked before the case goes on (`Scheduler.answered`)."""

    routing: RoutingRequest
    account: Account
    amounts: Amounts
    idle: bool
    degraded: str
    #: What it is answered with once the store has granted it; None where it is to be served.
    cached: CachedAnswer | None = None


class Scheduler:
    """Admission to one fleet, and the parts that a request goes through, for who needs one of them.

    `instance` is unique to this process's life: reservation ids are `instance-number`, so a
    restarted service cannot take its predecessor's records for its own.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        instance: str,
        default_model: str,
        limits: SchedulerLimits,
        rng: Random,
        zone: str = "",
        policy: Policy | None = None,
        quotas: QuotaBooks | None = None,
        experiments: Experiments | None = None,
    ) -> None:
        self.fleet = fleet
        # Without a policy nobody waits: full is a refusal.
        policy = policy or Policy(classes=(ClassSpec(hold_ns=0),))
        self.settings = SchedulerSettings(
            default_model=default_model, limits=limits, policy=policy, zone=zone
        )
        #: When `step` is due.
        self.next_step = NextStep()
        self.ledger = Ledger(
            ttl_ns=limits.reservation_ttl_ns,
            remembered_max=limits.settled_remembered_max,
            next_step=self.next_step,
        )
        self.quotas: QuotaBooks = quotas if quotas is not None else ExactBooks()
        self.experiments = experiments or Experiments(rng=rng)
        self.peers = Peers(instance, fleet, self.ledger, self.settings)
        self.counts: Counter[str] = Counter()
        #: Tells of all that becomes of requests.
        self.events = EventEmitter()
        self.dispatcher = Dispatcher(
            fleet,
            self.ledger,
            self.quotas,
            self.settings,
            peers=self.peers,
            experiments=self.experiments,
            events=self.events,
            counts=self.counts,
            rng=rng,
        )
        self.settlement = Settlement(
            fleet,
            self.ledger,
            self.quotas,
            self.settings,
            self.dispatcher,
            peers=self.peers,
            experiments=self.experiments,
            events=self.events,
            counts=self.counts,
        )
        #: What went to other pools, and for how much.
        self.spills = SpillBooks(self.settings, self.peers)
        #: What is known of other sites, and which requests they get.
        self.sites = SiteChoices()
        self.resolver = Resolver(
            fleet, self.ledger, self.settings, self.dispatcher, spills=self.spills, sites=self.sites
        )
        #: Who waits and goes on to another pool.
        self.mover = Mover(
            fleet,
            self.quotas,
            self.settings,
            self.dispatcher,
            resolver=self.resolver,
            experiments=self.experiments,
            spills=self.spills,
        )
        self.dispatcher.elsewhere = self.mover.moved
        #: Hears of what a step could not do.
        self.failed: Callable[[Exception, str], None] = raises
        self._rng = rng
        self._round_ns = 0

    @property
    def instance(self) -> str:
        """This service, among those before the fleet."""
        return self.peers.own

    @property
    def policy(self) -> Policy:
        """What the configuration says of use."""
        return self.settings.policy

    def admit(
        self,
        request: Request,
        tenant: Tenant,
        *,
        now_ns: int,
        key: str = "",
        degraded: str = "",
        cached: CachedAnswer | None = None,
    ) -> Routed | Reject | Hold | AskQuota | CacheHit:
        """Decide and enter the reservation; or hold the request until a replica would start it.

        `cached` answers it, where its tenant may ask for it and its quota allows.
        """
        self.dispatcher.number += 1
        name = f"{self.instance}-{self.dispatcher.number}"
        routing = self.resolve(request, tenant, name, key=key, now_ns=now_ns)
        if isinstance(routing, Reject):
            self.turned_away(tenant.name, routing, now_ns=now_ns)
            return routing
        if routing.tier is not None:
            self.sites.went(routing.tier, now_ns=now_ns)
        if routing.spill is not None:
            self.spills.enter(routing)
        elif routing.then is not None:
            self.spills.keep_free(routing, routing.then)
        # Who sends it on has reserved its tenant's quota, and charges it.
        account = NO_ACCOUNT if routing.site else self.policy.accounts.of(tenant.name, key, routing.model)
        price = self.policy.price(routing.pool)
        if cached is None:
            routing = self.experiments.assign(routing, request)
        if not account.scopes or (cached is not None and cached.charge is CacheCharge.NOTHING):
            return self._go_on(routing, None, now_ns=now_ns, degraded=degraded, cached=cached)
        amounts = (
            reserved(routing, self.fleet.pools[routing.pool], price)
            if cached is None
            else spared(cached, price)
        )
        if routing.then is not None and cached is None:
            there = self.policy.price(routing.then.to).of(routing.input_tokens, routing.output_tokens)
            amounts = replace(amounts, cost=max(amounts.cost, there))
        idle = borrows(account) and self.idle(routing.pool)
        answer = self.quotas.reserve(account, routing.id, amounts, now_ns=now_ns, idle_capacity=idle)
        asked = AskQuota(routing, account, amounts, idle, degraded, cached)
        return asked if isinstance(answer, Ask) else self.answered(asked, answer, now_ns=now_ns)

    def resolve(
        self, request: Request, tenant: Tenant, reservation_id: str, *, key: str = "", now_ns: int
    ) -> RoutingRequest | Reject:
        """What a request is here and now (`decide.resolve`), and which pool serves it; changes nothing."""
        return self.resolver.resolve(request, tenant, reservation_id, key=key, now_ns=now_ns)

    def may_rename(self, model: str | None, tenant: Tenant) -> bool:
        """Whether a request for a model may go on under another name (`Resolver.may_rename`)."""
        return self.resolver.may_rename(model, tenant)

    def explain(self, request: Request, tenant: Tenant, *, now_ns: int, key: str = "") -> Explanation:
        """What would be done with a request now, endpoint by endpoint; changes nothing, asks no quota."""
        routing = self.resolve(request, tenant, "", key=key, now_ns=now_ns)
        if isinstance(routing, Reject):
            return Explanation(id="", tenant=tenant.name, outcome=refused(routing), of="now")
        return explain(
            routing,
            self.fleet,
            now_ns=now_ns,
            rng=self._rng,
            deciders=self.peers.deciders,
            waiting=self.dispatcher.queue.by_pool_count(routing.pool),
        )

    def explained(self, name: str, *, now_ns: int) -> Explanation | None:
        """What was done with a request, or keeps it waiting, by its reservation's id or a name noted for it.

        None when it is neither held nor among the last decisions.
        """
        reservation_id = self.dispatcher.decisions.reservation_of(name)
        held = self.dispatcher.waiting.get(reservation_id)
        if held is not None:
            everyone, rng = self.dispatcher.waiting.values(), self._rng
            return explain_held(
                held, everyone, self.fleet, now_ns=now_ns, rng=rng, deciders=self.peers.deciders
            )
        if (hit := self.dispatcher.decisions.hit(reservation_id)) is not None:
            return explain_hit(hit, now_ns=now_ns)
        kept = self.dispatcher.decisions.get(reservation_id)
        if kept is None:
            return None
        state = "in flight" if reservation_id in self.ledger else "no longer in flight"
        rng, deciders = self._rng, self.peers.deciders
        return explain_kept(kept, self.fleet, now_ns=now_ns, rng=rng, deciders=deciders, state=state)

    def answered(
        self, asked: AskQuota, answer: Granted | Refused, *, now_ns: int
    ) -> Routed | Reject | Hold | CacheHit:
        """The quota has answered: the case goes on, or is refused."""
        return self._go_on(
            asked.routing,
            answer,
            now_ns=now_ns,
            degraded=asked.degraded,
            cached=asked.cached,
            reserved_of=(asked.account, asked.amounts),
        )

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """A request was refused before it was a case; `tenant` is empty where nobody knows whose it is."""
        self.counts[f"rejected.{reject.code}"] += 1
        self.events.turned_away(tenant, reject, now_ns=now_ns)

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """The client left before the decision reached Envoy."""
        reservation = self.ledger.cancel(reservation_id, now_ns=now_ns)
        self.quotas.cancel(reservation_id, now_ns=now_ns)
        self.spills.gave_up(reservation_id, now_ns=now_ns)
        if reservation is not None:
            self.counts["cancelled"] += 1
            self.events.left(reservation_id, None, gave_up=False, now_ns=now_ns)
            self.dispatcher.pump(reservation.pool, now_ns=now_ns)

    def leave(self, reservation_id: str, *, now_ns: int) -> None:
        """The client of a held request has left."""
        self.dispatcher.leave(reservation_id, now_ns=now_ns)
        self.quotas.cancel(reservation_id, now_ns=now_ns)

    def step(self, *, now_ns: int) -> int:
        """Let time pass; returns when to step again at the latest. The service and the simulator do alike.

        Who waits is tried again, here and then elsewhere, and overdue first tokens count as come; every
        ROUND_NS health follows, and what nobody has heard of expires. The room that this made first: who has
        waited as long as its class allows is turned away last. Where nobody waits, the next step is due with
        the next timer or round; `next_step` tells of what comes meanwhile and is due sooner.
        """
        if now_ns >= self._round_ns:
            self._round_ns = now_ns + ROUND_NS
            self._guarded("expiry", self.settlement.expire, now_ns)
            self._guarded("stepping the fleet", self.fleet.step, now_ns)
        self._guarded("pumping", self.dispatcher.try_again, now_ns)
        self._guarded("sending on", self.mover.step, now_ns)
        self._guarded("shedding", self.dispatcher.shed, now_ns)
        self.next_step.due_ns = due_ns = min(self._round_ns, self._busy_ns(now_ns))
        return due_ns

    def _busy_ns(self, now_ns: int) -> int:
        """When who waits, or a first token, needs a step."""
        if len(self.dispatcher.queue):
            return now_ns + STEP_NS
        timer_ns = self.ledger.next_timer_ns()
        return self._round_ns if timer_ns is None else max(now_ns + STEP_NS, timer_ns)

    def _guarded(self, what: str, work: Callable[..., object], now_ns: int) -> None:
        try:
            work(now_ns=now_ns)
        except Exception as error:  # noqa: BLE001 (one fault must not end what else time brings)
            self.failed(error, what)

    def apply(self, settings: SchedulerSettings, *, now_ns: int) -> None:
        """A new configuration holds; who waits goes on waiting."""
        before = self.settings.policy
        self.settings.take(settings)
        sites = {pool.name: pool.site for pool in self.fleet.pools.values() if pool.site}
        self.sites.links.put(sites)
        self.ledger.ttl_ns = settings.limits.reservation_ttl_ns
        self.ledger.remembered_max = settings.limits.settled_remembered_max
        self.dispatcher.apply(before, now_ns=now_ns)

    def idle(self, pool_name: str) -> bool:
        """Whether a pool has capacity to lend: nobody waits, and most permits are free."""
        if self.dispatcher.queue.by_pool.get(pool_name):
            return False
        pool = self.fleet.pools[pool_name]
        taken = room = 0
        for endpoint in pool.endpoints:
            if endpoint.ready:
                taken += endpoint.load_permits
                room += endpoint.max_concurrent
        return taken <= room * IDLE_BELOW

    def _go_on(
        self,
        routing: RoutingRequest,
        answer: Granted | Refused | None,
        *,
        now_ns: int,
        degraded: str,
        cached: CachedAnswer | None = None,
        reserved_of: tuple[Account, Amounts] | None = None,
    ) -> Routed | Reject | Hold | CacheHit:
        headers = answer.figures.headers() if answer is not None else ()
        if isinstance(answer, Refused):
            return self.dispatcher.refuse(_spent(answer, headers), routing, now_ns=now_ns)
        if isinstance(answer, Granted) and answer.borrowed:
            self.counts["borrowed"] += 1
        if cached is not None:
            return self._from_cache(routing, cached, headers, reserved_of, now_ns=now_ns)
        if routing.spill is not None:
            headers += routing.spill.headers()
        elif routing.choice is not None:
            headers += routing.choice.headers()
        try:
            decision = self.dispatcher.go(routing, headers, now_ns=now_ns, degraded=degraded)
        except Exception:
            self.spills.gave_up(routing.id, now_ns=now_ns)
            raise
        if isinstance(decision, Hold):
            self.next_step.by(now_ns + STEP_NS)
        return decision

    def _from_cache(
        self,
        routing: RoutingRequest,
        cached: CachedAnswer,
        headers: tuple[tuple[str, str], ...],
        reserved_of: tuple[Account, Amounts] | None,
        *,
        now_ns: int,
    ) -> CacheHit:
        """It ends as it begins: what was reserved is charged at once, and the ledger never hears of it."""
        if reserved_of is not None:
            account, charged = reserved_of
            self.quotas.settle(routing.id, charged, now_ns=now_ns, account=account)
        self.spills.gave_up(routing.id, now_ns=now_ns)
        self.counts["cache.hits"] += 1
        self.events.cached(routing, cached, now_ns=now_ns)
        return CacheHit(id=routing.id, answer=cached, headers=headers)


def _spent(answer: Refused, headers: tuple[tuple[str, str], ...]) -> Reject:
    """A quota's 429, which says which limit and when."""
    scope = "" if answer.scope == "tenant" else f" of {answer.scope.replace(':', ' ', 1)}"
    wait_s = max(1, math.ceil(answer.retry_after_s))
    return Error.QUOTA.reject(limit=f"{answer.limit}{scope}", retry_after_s=wait_s, headers=headers)
