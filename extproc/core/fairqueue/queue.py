"""The fair queue: requests wait here while no replica would start them at once.

Across service classes strict order, softened by ageing; inside a class virtual token counters over the
tenants (priority_band.py); inside a tenant a policy (order.py). Owns who is held and why somebody is not.
Asks its caller where a request would fit and knows nothing of replicas; the caller brings the time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from extproc.core.fairqueue.drop_policy import DropPolicy
from extproc.core.fairqueue.flow import FlowEntry
from extproc.core.fairqueue.order import EarliestDeadline, Order
from extproc.core.fairqueue.pool_queue import PoolQueue
from extproc.core.fairqueue.queued import Cost, QueueBounds, QueuedRequest, Shed, Tokens
from extproc.core.fairqueue.timers import Timers

T = TypeVar("T")

#: Requests offered beyond the first, when the first fits nowhere.
TRIES_MAX = 6


@dataclass(slots=True)
class Waits:
    """How one class's requests left: how many, and how long the dispatched had waited."""

    dispatched: int = 0
    shed: int = 0
    removed: int = 0
    aged: int = 0
    waited_ns: int = 0
    waited_max_ns: int = 0


class FairQueue:
    """Held requests of all pools; not thread-safe (one event loop owns it).

    `fits` callbacks must not call the queue. `bounds` may be replaced while requests are held, with as
    many classes as before: what is over a lower bound is shed at the next push.
    """

    def __init__(self, bounds: QueueBounds, *, order: Order | None = None, cost: Cost | None = None) -> None:
        self.bounds = bounds
        self.order: Order = order or EarliestDeadline()
        self.cost = cost or Cost()
        classes = len(bounds.class_held_max)
        self.by_tenant: Counter[str] = Counter()
        self.waits = [Waits() for _ in range(classes)]
        self._drop_policies = [DropPolicy() for _ in range(classes)]
        self._pool_queues: dict[str, PoolQueue] = {}
        self._entries: dict[str, FlowEntry] = {}
        self._last = Timers()
        self._ageing = Timers()
        self._number = 0
        #: At which band those were served that were served as guests, until they end.
        self._guests: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: str) -> bool:  # noqa: A002 (a request's own word)
        return id in self._entries

    def push(self, held: QueuedRequest, *, now_ns: int) -> list[Shed]:
        """Hold a request; whom the bounds turn away for it, perhaps itself.

        Over its tenant's bound the tenant's own newest goes, over a class's the newest of the tenant that
        holds most of it for its weight, over the total that of the lowest class that is held.
        """
        assert held.id not in self._entries, held.id
        assert held.weight > 0, held.weight
        self._number += 1
        order = self._order_of(held)
        entry = FlowEntry(
            held,
            number=self._number,
            key=order.key(held),
            lost_ns=order.lost_ns(held),
            last_ns=order.last_ns(held),
            owed_ns=held.arrived_ns + self.bounds.oldest_after_ns,
        )
        self._pool_queue(held.pool).enter(entry, self.bounds, now_ns=now_ns)
        self._entries[held.id] = entry
        self._drop_policies[held.klass].add(entry)
        self.by_tenant[held.tenant] += 1
        self._last.set(entry, entry.last_ns)
        if held.klass:
            self._ageing.set(entry, held.arrived_ns + self.bounds.ageing_ns)
        return self._keep_bounds(held, now_ns)

    def remove(self, id: str) -> QueuedRequest | None:  # noqa: A002
        """Its client has left: the request, None when it is not held (any more)."""
        entry = self._entries.get(id)
        if entry is None:
            return None
        self._pool_queue(entry.held.pool).leave(entry)
        self._forget(entry)
        self.waits[entry.held.klass].removed += 1
        return entry.held

    def take(
        self,
        pool: str,
        fits: Callable[[QueuedRequest], T | None],
        *,
        first: str = "",
        now_ns: int,
        tries_max: int = TRIES_MAX,
    ) -> tuple[QueuedRequest, T] | None:
        """The next request of a pool for which `fits` finds a place, with that place; charged and gone.

        A tenant that is `first` goes before fair order at the best band where it waits: its turn was found
        over several services. `fits` is called at most 1 + tries_max times. None means that none of those
        fitted.
        """
        pool_queue = self._pool_queues.get(pool)
        if pool_queue is None or not pool_queue:
            return None
        self._age(now_ns)
        return self._dispatch(
            pool_queue, pool_queue.first_fit(fits, first=first, now_ns=now_ns, tries_max=tries_max), now_ns
        )

    def take_affinity_group(
        self, after: QueuedRequest, fits: Callable[[QueuedRequest], T | None], *, now_ns: int
    ) -> tuple[QueuedRequest, T] | None:
        """One more of a taken request's affinity group, for the same place, within the fairness slack.

        `fits` tries that place alone. The caller enters each in its books before it asks for the next.
        """
        pool_queue = self._pool_queues.get(after.pool)
        if pool_queue is None or not pool_queue:
            return None
        return self._dispatch(
            pool_queue, pool_queue.affinity_group_fit(after, fits, self.bounds, now_ns=now_ns), now_ns
        )

    def last_chance(
        self, fits: Callable[[QueuedRequest], T | None], *, now_ns: int
    ) -> Iterator[tuple[QueuedRequest, T]]:
        """Of those that `expire` would shed now, whom `fits` finds a place for: charged and gone.

        The caller enters each in its books before it asks for the next.
        """
        left: list[tuple[int, FlowEntry]] = []
        try:
            while (timer := self._last.pop_due(now_ns)) is not None:
                left.append(timer)
                entry = timer[1]
                place = fits(entry.held)
                found = None
                if place is not None:
                    left.pop()
                    found = self._dispatch(self._pool_queue(entry.held.pool), (entry, place), now_ns)
                if found is not None:
                    yield found
        finally:
            for at_ns, entry in left:
                self._last.set(entry, at_ns)

    def expire(self, *, now_ns: int) -> list[Shed]:
        """Shed what has waited as long as its class allows, or past the policy's hope."""
        due: list[QueuedRequest] = []
        while (timer := self._last.pop_due(now_ns)) is not None:
            due.append(self._shed(timer[1]))
        return [self._turned_away(held, now_ns) for held in due]

    def close(self, pool: str, *, now_ns: int) -> list[Shed]:
        """The pool is no more: shed who waits for it and forget its counters."""
        due = [self._shed(entry) for entry in list(self._entries.values()) if entry.held.pool == pool]
        sheds = [self._turned_away(held, now_ns) for held in due]
        self._pool_queues.pop(pool, None)
        return sheds

    def charge(self, tenant: str, *, pool: str, klass: int, weight: float, work: Tokens) -> None:
        """Charge a request that was dispatched without being held: a replica was free."""
        self._pool_queue(pool).bands[klass].charge(
            tenant, self.cost.of(work), weight=weight, counters_max=self.bounds.counters_max
        )

    def settled(
        self,
        tenant: str,
        *,
        pool: str,
        klass: int,
        weight: float,
        predicted: Tokens,
        actual: Tokens,
        id: str = "",  # noqa: A002 (a request's own word)
    ) -> None:
        """A dispatched request has ended: correct its tenant's counters by what the prediction missed.

        Wherever it was charged: in its own class and, if it was served as a guest (its id tells), there too.
        """
        tokens = self.cost.of(actual) - self.cost.of(predicted)
        charged = {klass, self._guests.pop(id, klass)}
        pool_queue = self._pool_queues.get(pool)
        if not tokens or pool_queue is None:
            return
        for band in sorted(charged):
            pool_queue.bands[band].correct(
                tenant, tokens, weight=weight, counters_max=self.bounds.counters_max
            )

    def next_event_ns(self) -> int | None:
        """When `expire` next has somebody to shed; None when nobody is held."""
        return self._last.next_ns()

    @property
    def by_class(self) -> list[int]:
        """Held requests by service class."""
        return [drop_policy.size for drop_policy in self._drop_policies]

    @property
    def by_pool(self) -> dict[str, int]:
        """Held requests by pool."""
        return {pool: len(pool_queue) for pool, pool_queue in self._pool_queues.items()}

    def by_pool_count(self, pool: str) -> int:
        """Held requests of one pool."""
        pool_queue = self._pool_queues.get(pool)
        return len(pool_queue) if pool_queue is not None else 0

    def wait_s(self, pool: str, klass: int, *, now_ns: int) -> float | None:
        """How long one more of a class would wait for a pool, by its measured drain; None while that is not
        known."""
        pool_queue = self._pool_queues.get(pool)
        return None if pool_queue is None else pool_queue.wait_s(klass, now_ns=now_ns)

    def backlog(self, pool: str) -> Iterator[tuple[str, int, int, int]]:
        """Who waits for a pool: tenant, band, how many, and when the oldest of them came."""
        pool_queue = self._pool_queues.get(pool)
        if pool_queue is not None:
            for number, band in enumerate(pool_queue.bands):
                if band.size:
                    for tenant, flow in band.flows.items():
                        if flow.size:
                            yield tenant, number, flow.size, flow.oldest_ns

    def counters(self, pool: str, klass: int = 0) -> dict[str, float]:
        """The virtual token counters of a pool and band, by tenant: tokens over weight."""
        pool_queue = self._pool_queues.get(pool)
        return (
            {}
            if pool_queue is None
            else {t: flow.counter for t, flow in pool_queue.bands[klass].flows.items()}
        )

    def counter(self, pool: str, klass: int, tenant: str) -> float:
        """One of those counters; 0 of who is not known there."""
        pool_queue = self._pool_queues.get(pool)
        flow = None if pool_queue is None else pool_queue.bands[klass].flows.get(tenant)
        return 0.0 if flow is None else flow.counter

    def _order_of(self, held: QueuedRequest) -> Order:
        order: Order = held.order or self.order
        return order

    def _pool_queue(self, pool: str) -> PoolQueue:
        pool_queue = self._pool_queues.get(pool)
        if pool_queue is None:
            pool_queue = self._pool_queues[pool] = PoolQueue(len(self._drop_policies))
        return pool_queue

    def _dispatch(
        self, pool_queue: PoolQueue, found: tuple[FlowEntry, T] | None, now_ns: int
    ) -> tuple[QueuedRequest, T] | None:
        if found is None:
            return None
        entry, place = found
        held = entry.held
        pool_queue.dispatch(entry, self.cost.of(held.work), self.bounds, now_ns=now_ns)
        self._forget(entry)
        if entry.band != held.klass:
            self._guests[held.id] = entry.band
            if len(self._guests) > self.bounds.guests_max:
                self._guests.popitem(last=False)
        waits, waited_ns = self.waits[held.klass], max(0, now_ns - held.arrived_ns)
        waits.dispatched += 1
        waits.waited_ns += waited_ns
        waits.waited_max_ns = max(waits.waited_max_ns, waited_ns)
        return held, place

    def _keep_bounds(self, pushed: QueuedRequest, now_ns: int) -> list[Shed]:
        bounds, sheds = self.bounds, []
        tenant_max = bounds.of_tenant(pushed.tenant)
        while self.by_tenant[pushed.tenant] > tenant_max:
            newest = (drop_policy.newest_of(pushed.tenant) for drop_policy in reversed(self._drop_policies))
            sheds.append(self._shed(next(entry for entry in newest if entry is not None)))
        for drop_policy, most in zip(self._drop_policies, bounds.class_held_max, strict=True):
            while drop_policy.size > most:
                sheds.append(self._shed(drop_policy.newest_of_fullest()))
        while len(self._entries) > bounds.held_max:
            lowest = next(drop_policy for drop_policy in reversed(self._drop_policies) if drop_policy.size)
            sheds.append(self._shed(lowest.newest_of_fullest()))
        return [self._turned_away(held, now_ns) for held in sheds]

    def _shed(self, entry: FlowEntry) -> QueuedRequest:
        self._pool_queue(entry.held.pool).leave(entry)
        self._forget(entry)
        self.waits[entry.held.klass].shed += 1
        return entry.held

    def _turned_away(self, held: QueuedRequest, now_ns: int) -> Shed:
        last_ns = self._order_of(held).last_ns(held)
        return Shed(held, self._pool_queue(held.pool).retry_after_s(held, last_ns=last_ns, now_ns=now_ns))

    def _forget(self, entry: FlowEntry) -> None:
        held = entry.held
        del self._entries[held.id]
        self._drop_policies[held.klass].drop(entry)
        left = self.by_tenant[held.tenant] - 1
        if left:
            self.by_tenant[held.tenant] = left
        else:
            del self.by_tenant[held.tenant]
        self._last.trim(len(self._entries))
        self._ageing.trim(len(self._entries))

    def _age(self, now_ns: int) -> None:
        while (timer := self._ageing.pop_due(now_ns)) is not None:
            due_ns, entry = timer
            self._pool_queue(entry.held.pool).age(entry, self.bounds)
            self.waits[entry.held.klass].aged += 1
            if entry.band:
                self._ageing.set(entry, due_ns + self.bounds.ageing_ns)
