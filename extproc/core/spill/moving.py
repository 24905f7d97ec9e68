"""Requests that wait at home go on to another pool once they have waited too long, or home has nobody left.

Owns who goes first while there is room for some: the best class, in it the tenant that has had the least of
the other pool (the fair queue's counters there), of a tenant's the one that has waited longest. What each may
do is choice.py's; its hold's own end stands. Pure.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from extproc.core.decide import RoutingRequest
from extproc.core.dispatch import Dispatcher
from extproc.core.experiment import Experiments
from extproc.core.fairqueue import QueuedRequest
from extproc.core.fleet import Fleet
from extproc.core.load import MS_NS
from extproc.core.outcome import Routed
from extproc.core.policy import SchedulerSettings
from extproc.core.quota import Amounts, QuotaBooks
from extproc.core.quota.values import KINDS, MONEY
from extproc.core.resolving import Resolver
from extproc.core.spill.books import SpillBooks
from extproc.core.spill.values import SpillRule

#: How often those who wait are looked at.
LOOK_NS = 100 * MS_NS
#: Requests that go on at one look.
MOVES_MAX = 32
#: Of one tenant, and of all, so many are tried at one look that cannot go.
TRIES_MAX, TRIED_MAX = 4, 256
_BUDGETS = frozenset(kind.name for kind in KINDS if kind.unit == MONEY)
#: A class and a tenant, and who of theirs waits.
_Whose = tuple[int, str]
_Tenants = dict[_Whose, deque[QueuedRequest]]
#: Class, whether it comes later, what its tenant has had, and when the first of its requests came.
_Turn = tuple[int, bool, float, int, _Whose]


class Mover:
    """Of one scheduler."""

    def __init__(
        self,
        fleet: Fleet,
        quotas: QuotaBooks,
        settings: SchedulerSettings,
        dispatcher: Dispatcher,
        *,
        resolver: Resolver,
        experiments: Experiments,
        spills: SpillBooks,
    ) -> None:
        self._fleet, self._quotas, self._settings = fleet, quotas, settings
        self._dispatcher, self._resolver = dispatcher, resolver
        self._experiments, self._spills = experiments, spills
        self._next_ns = 0
        #: Of whom one could not go at the last looks: pool, class and tenant.
        self._passed: set[tuple[str, int, str]] = set()

    def step(self, *, now_ns: int) -> None:
        """Send on who may go."""
        if not self._settings.spills or now_ns < self._next_ns or not self._dispatcher.waiting:
            return
        self._next_ns = now_ns + LOOK_NS
        rules = {pool: rule for pool, rule in self._settings.spills.items() if self._open(rule, now_ns)}
        moves, tried = MOVES_MAX, TRIED_MAX
        overdue = self._overdue(rules, now_ns)
        waiting = {(pool, *whose) for pool, tenants in overdue.items() for whose in tenants}
        self._passed &= waiting
        if len(self._passed) == len(waiting):
            self._passed.clear()
        for pool, tenants in overdue.items():
            for held in self._in_turn(rules[pool], tenants):
                if held.id not in self._dispatcher.waiting:
                    continue
                if (moved := self.moved(held, now_ns)) is not None:
                    self._dispatcher.on_release(held.id, moved)
                    moves -= 1
                else:
                    self._passed.add((pool, held.klass, held.tenant))
                tried -= 1
                if not moves or not tried:
                    return

    def moved(self, held: QueuedRequest, now_ns: int) -> Routed | None:
        """Place a held request in the other pool; None where it stays."""
        routing: RoutingRequest = held.payload[0]
        found = None if routing.asked is None else self._resolver.onward(routing, now_ns=now_ns)
        if routing.asked is None or found is None or found.spill is None:
            return None
        if not self._affords(routing, found, now_ns):
            return None
        told = found.spill.headers()
        found = self._experiments.assign(found, routing.asked)
        own = () if routing.choice is None else routing.choice.headers()
        headers = tuple(each for each in held.payload[1] if each not in own) + told
        going = found

        def enter() -> None:
            self._spills.gave_up(going.id, now_ns=now_ns)  # what was kept free for another cause
            self._spills.enter(going)
            self._spills.moved[routing.pool] = self._spills.moved.get(routing.pool, 0) + 1
            # It is charged what it costs there; until then that much is reserved.
            cost = self._cost(going)
            self._quotas.renew(going.id, now_ns=now_ns, so_far=Amounts(0, 0, 0, 0.0, cost))

        return self._dispatcher.move(held, found, headers, now_ns=now_ns, before=enter)

    def _open(self, rule: SpillRule, now_ns: int) -> bool:
        """Whether anybody of a pool may go on at the moment."""
        return (
            rule.tiers is None
            and self._dispatcher.queue.by_pool_count(rule.pool) > 0
            and rule.to in self._fleet.pools
            and not self._spills.closed(rule.to, now_ns=now_ns)
        )

    def _overdue(self, rules: dict[str, SpillRule], now_ns: int) -> dict[str, _Tenants]:
        """Who has waited too long, of each pool and class and tenant the longest first."""
        found: dict[str, _Tenants] = defaultdict(lambda: defaultdict(deque))
        shortest_ns = min((_bound_ns(rule) for rule in rules.values()), default=0)
        # They stand as they came.
        for held in self._dispatcher.waiting.values() if rules else ():
            waited_ns = now_ns - held.arrived_ns
            if waited_ns < shortest_ns:
                break
            rule = rules.get(held.pool)
            if rule is not None and waited_ns >= _bound_ns(rule) and held.payload[0].asked is not None:
                found[held.pool][held.klass, held.tenant].append(held)
        return found

    def _in_turn(self, rule: SpillRule, tenants: _Tenants) -> Iterator[QueuedRequest]:
        """In the order of classes and of what tenants have had there; each is asked for after the one before
        has gone, or has not. A tenant of whom one could not comes after the others, at the next look too."""
        tries = dict.fromkeys(tenants, TRIES_MAX)
        heap = [self._turn(rule, whose, waiting) for whose, waiting in tenants.items()]
        heapify(heap)
        while heap:
            whose = heappop(heap)[-1]
            held = tenants[whose].popleft()
            yield held
            if held.id in self._dispatcher.waiting:
                tries[whose] -= 1
            if tenants[whose] and tries[whose]:
                heappush(heap, self._turn(rule, whose, tenants[whose]))

    def _turn(self, rule: SpillRule, whose: _Whose, waiting: deque[QueuedRequest]) -> _Turn:
        rank, tenant = whose
        had = self._dispatcher.queue.counter(rule.to, rank, tenant)
        return rank, (rule.pool, *whose) in self._passed, had, waiting[0].arrived_ns, whose

    def _affords(self, routing: RoutingRequest, found: RoutingRequest, now_ns: int) -> bool:
        """Whether its tenant's own budgets have room for what it may cost there beyond what is reserved."""
        more = self._cost(found) - self._cost(routing)
        if more <= 0 or routing.site:
            return True
        account = self._settings.policy.accounts.of(routing.tenant.name, routing.key, routing.model)
        if not any(bucket.unit == MONEY for _, limits in account.scopes for bucket in limits.buckets):
            return True
        return all(
            each.used + more <= each.allowed
            for each in self._quotas.usage(account, now_ns=now_ns)
            if each.limit in _BUDGETS
        )

    def _cost(self, routing: RoutingRequest) -> float:
        return self._settings.policy.price(routing.pool).of(routing.input_tokens, routing.output_tokens)


def _bound_ns(rule: SpillRule) -> float:
    return float("inf") if rule.wait_ms is None else rule.wait_ms * MS_NS
