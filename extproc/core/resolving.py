"""What a request is, and which pool serves it: its own, another where it cannot wait, or another site's.

Owns the order of these questions. What a request may have is decide.py's, when it leaves its pool is
core/spill's, which of two sites serves it core/tiers'. Pure, and changes nothing.
"""

from __future__ import annotations

from msgspec.structs import replace

from extproc.core.decide import RoutingRequest, resolve, serving
from extproc.core.dispatch import Dispatcher
from extproc.core.errors import Error
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject
from extproc.core.policy import SchedulerSettings
from extproc.core.remote.choice import Offers, SiteChoices
from extproc.core.remote.offers import offer_here
from extproc.core.remote.values import Tiered
from extproc.core.request import Request, prefix_of, without_text
from extproc.core.spill.books import SpillBooks
from extproc.core.spill.choice import after_failure, elsewhere, may_cross, may_spill
from extproc.core.spill.values import SpillCost, Spilled, SpillRule
from extproc.core.tenant import Tenant
from extproc.core.tiers import HERE, SMALLER, THERE, TierChoice, TierRule


class Resolver:
    """Of one scheduler. Who waits is its dispatcher's; what may be spent elsewhere is in `spills`."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        settings: SchedulerSettings,
        dispatcher: Dispatcher,
        *,
        spills: SpillBooks,
        sites: SiteChoices,
    ) -> None:
        self._fleet, self._ledger, self._settings = fleet, ledger, settings
        # Its queue is another one after a change of classes.
        self._dispatcher, self._spills, self._sites = dispatcher, spills, sites

    def resolve(
        self, request: Request, tenant: Tenant, reservation_id: str, *, key: str = "", now_ns: int
    ) -> RoutingRequest | Reject:
        """What a request is here and now (`decide.resolve`); changes nothing."""
        leaves = self._settings.spills or self._sites.links.by_pool
        if leaves:
            # It may be resolved for a second pool as well, and is hashed once for both.
            request = replace(request, prefix=prefix_of(request))
        routing = self._resolved(request, tenant, reservation_id, key=key, now_ns=now_ns)
        if isinstance(routing, Reject) or not leaves:
            return routing
        if routing.pool in self._sites.links.by_pool:
            return self._only_there(request, tenant, routing, key=key, now_ns=now_ns)
        rule = self._settings.spills.get(routing.pool)
        if rule is None or (tenant.spill is None and rule.tiers is None):
            return routing
        tiered: Tiered | None = None
        choice: TierChoice | None = None
        if rule.tiers is not None and rule.to in self._sites.links.by_pool:
            tiered = self._tiered(request, tenant, routing, rule, rule.tiers, now_ns=now_ns)
            choice = tiered.choice
            routing = replace(routing, tier=tiered)
        elif rule.to in self._sites.links.by_pool and request.hops >= self._settings.hops_max:
            return routing
        spill = elsewhere(
            request,
            routing.model,
            tenant,
            self._fleet,
            rule,
            self._spills,
            self._dispatcher.queue,
            price=self._settings.policy.price(rule.to),
            rank=routing.work.rank,
            tier=choice,
            now_ns=now_ns,
        )
        stays = routing
        if tiered is not None and tiered.choice.where == THERE:
            # Whatever keeps it here is what it is told and counted by, and nothing is on its way there.
            here = TierChoice(HERE, "budget", tiered.choice.unsure)
            stays = replace(routing, tier=tiered._replace(choice=here))
        if spill is None:
            return self._may_go_on(request, tenant, stays, rule, now_ns=now_ns)
        there = self._resolved(
            request, tenant, reservation_id, key=key, now_ns=now_ns, spill=spill, to=rule.to
        )
        return replace(there, tier=tiered) if isinstance(there, RoutingRequest) else stays

    def _may_go_on(
        self, request: Request, tenant: Tenant, routing: RoutingRequest, rule: SpillRule, *, now_ns: int
    ) -> RoutingRequest:
        """One that stays, with what sends it on while it waits or when home fails, if it may go."""
        to = self._fleet.pools.get(rule.to)
        if rule.tiers is not None or to is None:
            return routing
        if not may_spill(request, self._fleet.pools[rule.pool], tenant, to):
            return routing
        price = self._settings.policy.price(rule.to)
        then = after_failure(
            request, routing.model, tenant, self._fleet, rule, self._spills, price=price, now_ns=now_ns
        )
        return replace(routing, asked=without_text(request), then=then)

    def onward(self, routing: RoutingRequest, *, now_ns: int) -> RoutingRequest | None:
        """One that waits at home as the other pool has it, if it has waited too long and may go there."""
        request, rule = routing.asked, self._settings.spills.get(routing.pool)
        if request is None or rule is None or rule.tiers is not None:
            return None
        spill = elsewhere(
            request,
            routing.model,
            routing.tenant,
            self._fleet,
            rule,
            self._spills,
            self._dispatcher.queue,
            price=self._settings.policy.price(rule.to),
            rank=routing.work.rank,
            waited_ns=now_ns - routing.arrived_ns,
            own_id=routing.id,
            now_ns=now_ns,
        )
        if spill is None:
            return None
        # As of when it came: its targets and what it has waited are counted from there.
        found = self._resolved(
            request,
            routing.tenant,
            routing.id,
            key=routing.key,
            now_ns=routing.arrived_ns,
            spill=spill,
            to=rule.to,
        )
        return found if isinstance(found, RoutingRequest) else None

    def _tiered(
        self,
        request: Request,
        tenant: Tenant,
        routing: RoutingRequest,
        rule: SpillRule,
        tiers: TierRule,
        *,
        now_ns: int,
    ) -> Tiered:
        """Whether a request that is served here goes to the centre that its pool's rule names."""
        home, there = self._fleet.pools[rule.pool], self._fleet.pools[rule.to]
        price = self._settings.policy.price
        return self._sites.choose(
            request,
            routing.work,
            tenant,
            home=home,
            there=there,
            called=rule.model(routing.model),
            rule=tiers,
            offers=Offers(self._dispatcher.queue, price(home.name), price(there.name)),
            may_leave=may_cross(request, home, there, rule),
            now_ns=now_ns,
        )

    def _only_there(
        self, request: Request, tenant: Tenant, routing: RoutingRequest, *, key: str, now_ns: int
    ) -> RoutingRequest | Reject:
        """A model that is only at another site: sent on; by a smaller one here while that is away, where the
        tenant says so."""
        price, queue = self._settings.policy.price, self._dispatcher.queue
        smaller = None
        home = None if tenant.away_model is None else serving(tenant.away_model, tenant, self._fleet)
        if home is not None and not home.site:
            smaller = offer_here(home, routing.work, tenant, queue, price=price(home.name), now_ns=now_ns)
        there = self._fleet.pools[routing.pool]
        tiered = self._sites.choose(
            request,
            routing.work,
            tenant,
            home=None,
            there=there,
            called=routing.model,
            rule=TierRule(hops_max=self._settings.hops_max),
            offers=Offers(queue, price(there.name), price(there.name)),
            smaller=smaller,
            now_ns=now_ns,
        )
        where, reason = tiered.choice.where, tiered.choice.reason
        if where == SMALLER and home is not None and tenant.away_model is not None:
            spill = Spilled(there.name, tenant.away_model, reason, SpillCost(0, 0.0))
            found = self._resolved(
                request, tenant, routing.id, key=key, now_ns=now_ns, spill=spill, to=home.name
            )
            if isinstance(found, RoutingRequest):
                return replace(found, tier=tiered)
        if reason == "hops":
            return Error.LOOP.reject(hops=request.hops)
        return replace(routing, tier=tiered)

    def _resolved(
        self,
        request: Request,
        tenant: Tenant,
        reservation_id: str,
        *,
        key: str,
        now_ns: int,
        spill: Spilled | None = None,
        to: str = "",
    ) -> RoutingRequest | Reject:
        settings = self._settings
        policy = settings.policy
        rank = policy.rank(tenant.service_class)
        return resolve(
            request,
            tenant,
            self._fleet,
            self._ledger,
            id=reservation_id,
            default_model=settings.default_model,
            reservations_max=settings.limits.reservations_max,
            zone=settings.zone,
            key=key,
            rank=rank,
            spec=policy.classes[rank],
            now_ns=now_ns,
            families=settings.families,
            waiting=self._dispatcher.queue.by_pool_count,
            spill=spill,
            to=to,
        )

    def may_rename(self, model: str | None, tenant: Tenant) -> bool:
        """Whether a request for a model may go on under another name: its pool may send it elsewhere, or its
        engines have their own for an adapter."""
        settings = self._settings
        stays = not settings.spills or (
            tenant.spill is None and tenant.away_model is None and not self._sites.links.by_pool
        )
        if stays and not self._fleet.adapters_by_base:
            return False
        if model in settings.families:
            return True
        pool = serving(model or tenant.default_model or settings.default_model, tenant, self._fleet)
        if pool is None:
            return False
        if pool.adapters_by_base or stays:
            return pool.adapters_by_base
        rule = settings.spills.get(pool.name)
        if rule is None:
            return bool(pool.site) and tenant.away_model is not None
        return rule.renames if rule.tiers is not None else tenant.spill is not None
