"""What spilled requests have cost in the last hour, what rate limits leave in a minute, and who was in time.

Owns sums over sliding times. A spilled request is entered before it goes with the most that it can cost; its
end puts what it was charged in that place. So no sum is ever below the truth, and no budget is passed while
charges are true. Each of several services has its share of budgets and limits.
"""

from __future__ import annotations

from typing import NamedTuple

from extproc.core.contract import FAILED_LATE
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Outcome, Reject, Reservation, Routed
from extproc.core.peers import Peers
from extproc.core.policy import SchedulerSettings
from extproc.core.spill.limits import ProviderAccount, told_limits
from extproc.core.spill.sliding import SlidingSum
from extproc.core.spill.values import FAILED, GIVES_WAY, RateLimits, SpillCost, Spilled, SpillRule
from extproc.core.tenant import Tenant

HOUR_NS, MINUTE_NS = 3_600 * 1_000_000_000, 60 * 1_000_000_000
#: Requests of the last minute below which their share in time says nothing.
ATTAINED_REQUESTS_MIN = 20
#: How long a provider is left alone, at the least, that has refused or failed.
BACK_OFF_NS = 5 * 1_000_000_000
NO_LIMITS = RateLimits()


class _Entered(NamedTuple):
    """A spilled request under way."""

    pool: str
    to: str
    tenant: str
    most: SpillCost
    #: It goes only where its own pool fails.
    kept_free: bool = False


class _Minute:
    """What went to a pool in the last minute."""

    __slots__ = ("requests", "tokens")

    def __init__(self) -> None:
        self.requests, self.tokens = SlidingSum(MINUTE_NS), SlidingSum(MINUTE_NS)


class _Attained:
    """Who of a pool's requests was in time."""

    __slots__ = ("all", "met")

    def __init__(self) -> None:
        self.all, self.met = SlidingSum(MINUTE_NS), SlidingSum(MINUTE_NS)


class SpillBooks(Observer):
    """The books of one service, beside its peers. Rules and limits are those of the settings now."""

    def __init__(self, settings: SchedulerSettings, peers: Peers) -> None:
        self._settings, self._peers = settings, peers
        #: Requests that went elsewhere, by (pool, other pool, why).
        self.counts: dict[tuple[str, str, str], int] = {}
        #: Those that failed there and were tried in their own pool, by it.
        self.returned: dict[str, int] = {}
        #: Those that went there after they had waited at home, by their own pool.
        self.moved: dict[str, int] = {}
        #: How often something was spent.
        self.changes = 0
        self._entered: dict[str, _Entered] = {}
        #: By pool and tenant; the tenant "" is all of a pool's.
        self._spent: dict[tuple[str, str], SlidingSum] = {}
        self._under_way: dict[tuple[str, str], float] = {}
        self._minutes: dict[str, _Minute] = {}
        self._attained: dict[str, _Attained] = {}
        self._closed_until_ns: dict[str, int] = {}
        #: What providers say themselves, by pool.
        self._accounts: dict[str, ProviderAccount] = {}

    def has_room(
        self, rule: SpillRule, tenant: Tenant, most: SpillCost, *, own_id: str = "", now_ns: int
    ) -> bool:
        """Whether budgets and rate limits have room for a request; what is kept free for it already, by its
        reservation's id `own_id`, is its own."""
        if self.closed(rule.to, now_ns=now_ns):
            return False
        own = None if tenant.spill is None else tenant.spill.budget_per_hour
        services = self._peers.deciders
        account = self._accounts.get(rule.to)
        if account is not None and not account.has_room(most.tokens, share=services, now_ns=now_ns):
            return False
        entered = self._entered.get(own_id)
        kept = 0.0 if entered is None else entered.most.cost
        for name, budget in (("", rule.budget_per_hour), (tenant.name, own)):
            if budget is None:
                continue
            if self.spent(rule.pool, name, now_ns=now_ns) - kept + most.cost > budget / services:
                return False
        limits = self._settings.rate_limits.get(rule.to, NO_LIMITS)
        minute = self._minutes.get(rule.to)
        requests = tokens = 0.0
        if minute is not None:
            requests, tokens = minute.requests.value(now_ns=now_ns), minute.tokens.value(now_ns=now_ns)
        per_minute, tokens_per_minute = limits.requests_per_minute, limits.tokens_per_minute
        return (per_minute is None or requests + 1 <= per_minute / services) and (
            tokens_per_minute is None or tokens + most.tokens <= tokens_per_minute / services
        )

    def closed(self, pool: str, *, now_ns: int) -> bool:
        """Whether a pool is left alone, for it has refused."""
        return self._closed_until_ns.get(pool, 0) > now_ns

    def kept(self, *, now_ns: int) -> list[tuple[str, str, list[tuple[int, float]]]]:
        """What was spent, for `restore`: pool, tenant, and when how much."""
        for key in [key for key, each in self._spent.items() if not each.value(now_ns=now_ns)]:
            del self._spent[key]
        return [(*key, each.parts(now_ns=now_ns)) for key, each in self._spent.items()]

    def restore(self, pool: str, tenant: str, cost: float, *, at_ns: int) -> None:
        """Another process spent it, for a tenant or all together (""); oldest first."""
        self._spent.setdefault((pool, tenant), SlidingSum(HOUR_NS)).add(cost, now_ns=at_ns)

    def spent(self, pool: str, tenant: str = "", *, now_ns: int) -> float:
        """What a pool's spilled requests cost in the last hour, of a tenant or all: at least that much."""
        key = (pool, tenant)
        kept = self._spent.get(key)
        return (0.0 if kept is None else kept.value(now_ns=now_ns)) + self._under_way.get(key, 0.0)

    def attained(self, pool: str, *, now_ns: int) -> float | None:
        """The share of a pool's requests of the last minute that were in time; None where too few were."""
        seen = self._attained.get(pool)
        if seen is None or (requests := seen.all.value(now_ns=now_ns)) < ATTAINED_REQUESTS_MIN:
            return None
        return seen.met.value(now_ns=now_ns) / requests

    def enter(self, routing: RoutingRequest) -> None:
        """A spilled request goes on its way; every event that can end it gives back what it did not cost."""
        spill = routing.spill
        assert spill is not None, routing
        self._enter(routing.id, _Entered(spill.pool, routing.pool, routing.tenant.name, spill.most))
        self._count(spill.pool, routing.pool, spill.why)

    def keep_free(self, routing: RoutingRequest, then: Spilled) -> None:
        """A request is served at home, and elsewhere if that fails: what that can cost is kept free until its
        end."""
        entered = _Entered(then.pool, then.to, routing.tenant.name, then.most, kept_free=True)
        self._enter(routing.id, entered)

    def _count(self, pool: str, to: str, why: str) -> None:
        key = (pool, to, why)
        self.counts[key] = self.counts.get(key, 0) + 1

    def _enter(self, reservation_id: str, entered: _Entered) -> None:
        self._entered[reservation_id] = entered
        for of in ("", entered.tenant):
            where = (entered.pool, of)
            self._under_way[where] = self._under_way.get(where, 0.0) + entered.most.cost

    @property
    def under_way(self) -> int:
        """Spilled requests whose end has not come."""
        return sum(not each.kept_free for each in self._entered.values())

    def gave_up(self, reservation_id: str, *, now_ns: int) -> None:
        """It went nowhere."""
        self._leave(reservation_id, 0.0, now_ns)

    # -- what becomes of requests --------------------------------------------------------------------------

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """It goes: what a provider's minute is used for, spilled or asked for by its own name."""
        if routing.pool not in self._settings.rate_limits:
            return
        reservation = routed.reservation
        most = routing.spill.most.tokens if routing.spill is not None else None
        tokens = reservation.input_tokens + reservation.output_tokens if most is None else most
        self._went(routing.pool, routing.id, tokens, now_ns)

    def _went(self, pool: str, reservation_id: str, tokens: float, now_ns: int) -> None:
        self._accounts.setdefault(pool, ProviderAccount()).went(reservation_id, tokens)
        minute = self._minutes.setdefault(pool, _Minute())
        minute.requests.add(1, now_ns=now_ns)
        minute.tokens.add(tokens, now_ns=now_ns)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """It has ended: what it was charged is what it has cost."""
        outcome, reservation = event.outcome, event.outcome.reservation
        if outcome.failed_home and reservation.then in self._settings.rate_limits:
            tokens = reservation.input_tokens + reservation.output_tokens
            self._went(reservation.then, reservation.id, tokens, now_ns)
            self._told(reservation.then, outcome, now_ns)
        elif reservation.pool in self._settings.rate_limits:
            self._told(reservation.pool, outcome, now_ns)
        if reservation.pool in self._settings.spills and event.sample.attained is not None:
            seen = self._attained.setdefault(reservation.pool, _Attained())
            seen.all.add(1, now_ns=now_ns)
            seen.met.add(event.sample.attained, now_ns=now_ns)
        entered = self._entered.get(reservation.id)
        if entered is not None and outcome.failed_there:
            # It was served at home. Who did not wait for the answer does not know what it has cost there.
            self.returned[entered.pool] = self.returned.get(entered.pool, 0) + 1
            unknown = outcome.failed_there == FAILED_LATE
            self._leave(reservation.id, entered.most.cost if unknown else 0.0, now_ns)
        elif outcome.failed_home:
            self._count(reservation.pool, reservation.then, FAILED)
            self._leave(reservation.id, event.charged.cost, now_ns)
            if entered is None and event.charged.cost and not self._peers.made(reservation.id):
                self._pay(reservation.pool, reservation.tenant, event.charged.cost, now_ns)
        elif entered is not None:
            self._leave(reservation.id, 0.0 if entered.kept_free else event.charged.cost, now_ns)
        elif outcome.failed_there:
            pass
        elif reservation.spilled_from and event.charged.cost and not self._peers.made(reservation.id):
            # Of a process that is no more: nobody else counts it.
            self._pay(reservation.spilled_from, reservation.tenant, event.charged.cost, now_ns)

    def _told(self, pool: str, outcome: Outcome, now_ns: int) -> None:
        """What the answer says of its provider: its limits, that it refuses, or fails."""
        told = told_limits(outcome.provider) if outcome.provider else None
        account = self._accounts.setdefault(pool, ProviderAccount())
        account.gone(outcome.reservation.id, told, now_ns=now_ns)
        if outcome.failed_there or outcome.status in GIVES_WAY:
            after_s = None if told is None else told.retry_after_s
            rest_ns = BACK_OFF_NS if after_s is None else int(after_s * 1e9)
            until_ns = now_ns + max(rest_ns, BACK_OFF_NS)
            self._closed_until_ns[pool] = max(until_ns, self._closed_until_ns.get(pool, 0))

    def provider_left(self, pool: str, *, now_ns: int) -> dict[str, float | None]:
        """Requests and tokens that a provider has left by its own word; None where it says nothing."""
        account = self._accounts.get(pool)
        return {"requests": None, "tokens": None} if account is None else account.left(now_ns=now_ns)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """It was turned away after all."""
        self._leave(routing.id, 0.0, now_ns)

    def left(
        self,
        reservation_id: str,
        routing: RoutingRequest | None,  # noqa: ARG002 (the observer's)
        *,
        gave_up: bool,  # noqa: ARG002
        now_ns: int,
    ) -> None:
        """Its client left before it was anywhere."""
        self._leave(reservation_id, 0.0, now_ns)

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """Nobody has heard of its end: it may have cost all that it could."""
        account = self._accounts.get(reservation.pool)
        if account is not None:
            account.gone(reservation.id, None, now_ns=now_ns)
        entered = self._entered.get(reservation.id)
        if entered is not None:
            # At home most likely, but nobody knows.
            self._leave(reservation.id, entered.most.cost, now_ns)

    def _leave(self, reservation_id: str, cost: float, now_ns: int) -> None:
        entered = self._entered.pop(reservation_id, None)
        if entered is None:
            return
        for of in ("", entered.tenant):
            where = (entered.pool, of)
            left = self._under_way[where] - entered.most.cost
            # What rounding has left is nothing.
            self._under_way[where] = left if left > 1e-12 else 0.0
        if cost:
            self._pay(entered.pool, entered.tenant, cost, now_ns)

    def _pay(self, pool: str, tenant: str, cost: float, now_ns: int) -> None:
        self.changes += 1
        for of in ("", tenant):
            self._spent.setdefault((pool, of), SlidingSum(HOUR_NS)).add(cost, now_ns=now_ns)
