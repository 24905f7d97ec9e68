"""Hears of requests for the analytics: notes what has happened, and leaves the reckoning to a thread.

Owns the waiting line and its bound, and whose requests this service counts. Called on the request's path:
each method appends a tuple.

Every service of several hears of every end, and each counts those that it has decided on. An end of a service
that is no more (it was restarted) belongs to nobody: where this service is the only one it counts it at once;
otherwise it waits until this service surely knows its peers, and goes to the first that claims it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Fleet
from extproc.core.outcome import Reject, Reservation, Routed
from extproc.core.peers import Peers, owner_of
from extproc.observe.analytics import fold
from extproc.observe.analytics.row import UNKNOWN, RowKey

#: What waits for the thread; the newest are dropped above it, and counted.
WAITING_MAX = 50_000
#: Ends of unknown services that wait, and for how long: longer than it takes to hear of a peer.
ORPHANS_MAX, ORPHAN_WAIT_NS = 10_000, 5_000_000_000

#: (when in unix seconds, whose, how it counts, and with what).
Event = tuple[int, RowKey, Callable[..., None], tuple[Any, ...]]


class Listener(Observer):
    """One service's ears.

    `alone`: no other service decides. `connected`: whether peers are known at the moment.
    """

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        *,
        alone: bool,
        clock: Callable[[], int],
        connected: Callable[[], bool] = lambda: False,
        wall_ns: Callable[[], int] = time.time_ns,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.waiting_max = waiting_max
        self._fleet, self._peers = fleet, peers
        self._alone, self._connected = alone, connected
        self._clock, self._wall_ns = clock, wall_ns
        self._offset_ns = wall_ns() - clock()
        self._waiting: list[Event] = []
        #: By reservation, since when.
        self._orphans: dict[str, tuple[int, Event]] = {}
        self._own = f"{peers.own}-"

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> list[Event]:
        """All that waits. On the event loop, like everything here."""
        # The wall clock may have been set since.
        self._offset_ns = self._wall_ns() - self._clock()
        events, self._waiting = self._waiting, []
        return events

    def take_orphans(self, *, now_ns: int) -> dict[str, Event]:
        """Ends that belong to no service that is known, by reservation, each to be claimed first."""
        found: dict[str, Event] = {}
        while self._orphans:
            name, (since_ns, event) = next(iter(self._orphans.items()))
            if now_ns - since_ns < ORPHAN_WAIT_NS:
                break
            del self._orphans[name]
            # Without sharing every peer looks like nobody: then nothing is claimed.
            if self._connected() and owner_of(name) not in self._peers:
                found[name] = event
        return found

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """A request was sent to an endpoint."""
        if routing.choice is not None:
            key = fold.key_of(routed.reservation)
            self._add((self._at_s(now_ns), key, fold.asked, (routing.choice.family,)))

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """A request was turned away."""
        waited_ms = max(0, now_ns - routing.arrived_ns) / 1e6
        what = (reject.code, waited_ms, wanted_room(reject.code))
        self._add((self._at_s(now_ns), self._key(routing), fold.rejected, what))

    def left(
        self,
        reservation_id: str,  # noqa: ARG002
        routing: RoutingRequest | None,
        *,
        gave_up: bool,
        now_ns: int,
    ) -> None:
        """A client left before its request was under way."""
        if routing is None:
            self._add((self._at_s(now_ns), RowKey(UNKNOWN), fold.left, (None, False)))
        else:
            waited_ms = max(0, now_ns - routing.arrived_ns) / 1e6
            self._add((self._at_s(now_ns), self._key(routing), fold.left, (waited_ms, gave_up)))

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """Refused before it was a case."""
        what = (reject.code, None, bool(tenant) and wanted_room(reject.code))
        self._add((self._at_s(now_ns), RowKey(tenant or UNKNOWN), fold.rejected, what))

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended."""
        reservation = event.outcome.reservation
        noted = (self._at_s(now_ns), fold.key_of(reservation), fold.settled, (event,))
        if event.here or self._alone:
            self._add(noted)
        else:
            self._orphan(reservation.id, noted, now_ns)

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """A request's end never came."""
        event = (self._at_s(now_ns), fold.key_of(reservation), fold.expired, ())
        if self._alone or reservation.id.startswith(self._own):
            self._add(event)
        else:
            self._orphan(reservation.id, event, now_ns)

    def _orphan(self, reservation_id: str, event: Event, now_ns: int) -> None:
        if owner_of(reservation_id) in self._peers:
            return
        if len(self._orphans) >= ORPHANS_MAX:
            self.counts["orphans_dropped"] += 1
            return
        self._orphans[reservation_id] = (now_ns, event)

    def _add(self, event: Event) -> None:
        if len(self._waiting) >= self.waiting_max:
            self.counts["dropped"] += 1
            return
        self._waiting.append(event)

    def _at_s(self, now_ns: int) -> int:
        return (now_ns + self._offset_ns) // 1_000_000_000

    def _key(self, routing: RoutingRequest) -> RowKey:
        strategy = routing.strategy.partition("#")[0]
        if not strategy and (pool := self._fleet.pools.get(routing.pool)) is not None:
            strategy = pool.strategy
        tenant = routing.tenant
        return RowKey(tenant.name, routing.pool, routing.model, strategy, routing.arm, tenant.place)
