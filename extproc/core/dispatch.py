"""Dispatch: who waits, and who goes when there is room.

Owns the fair queue and the requests in it. Where they go is placing.py's. No I/O; its caller brings time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random

from msgspec.structs import replace

from extproc.core.decide import RoutingRequest
from extproc.core.decisions import Decisions
from extproc.core.endpoint import Endpoint
from extproc.core.errors import Error, wanted_room
from extproc.core.events import EventEmitter
from extproc.core.experiment import Experiments
from extproc.core.fairqueue import FairQueue, QueuedRequest, Shed
from extproc.core.feedback import MS_NS, late
from extproc.core.fleet import Fleet
from extproc.core.forecast import fastest_prefill_ms
from extproc.core.ledger import Ledger
from extproc.core.outcome import Hold, Reject, Reservation, Routed
from extproc.core.peers import Peers
from extproc.core.placement import WAITS, Full, cold, full
from extproc.core.placing import Placer
from extproc.core.policy import Policy, SchedulerSettings
from extproc.core.quota import QuotaBooks
from extproc.core.shortlist import Shortlist
from extproc.core.strategies import SchedulingContext, Work

#: Requests released to a freed replica in one go.
RELEASES_MAX = 64
#: In pools of up to so many endpoints a request may wait for the one that holds more of its prefix.
AFFINITY_ENDPOINTS_MAX = 64
#: How often in a reservation's time to live the quotas of held requests are renewed.
RENEWALS = 4

Released = list[tuple[str, Routed | Reject]]


def _nobody(_id: str, _decision: Routed | Reject) -> None:
    """Nobody waits for releases yet."""


def _nowhere(_held: QueuedRequest, _now_ns: int) -> None:
    """No request goes to another pool."""


class Dispatcher:
    """The fair queue before one fleet. `on_release` hears what became of a held request."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        quotas: QuotaBooks,
        settings: SchedulerSettings,
        *,
        peers: Peers,
        experiments: Experiments,
        events: EventEmitter,
        counts: Counter[str],
        rng: Random,
    ) -> None:
        self._fleet, self._ledger, self._quotas, self._settings = fleet, ledger, quotas, settings
        self._peers, self._experiments = peers, experiments
        self._events, self._counts = events, counts
        self.queue = FairQueue(settings.policy.bounds)
        #: The last decisions, for who asks why.
        self.decisions = Decisions()
        self._placer = Placer(
            fleet,
            ledger,
            decisions=self.decisions,
            peers=peers,
            experiments=experiments,
            events=events,
            counts=counts,
            rng=rng,
        )
        self.on_release: Callable[[str, Routed | Reject], None] = _nobody
        #: Finds a place in another pool for a held request that its own refuses.
        self.elsewhere: Callable[[QueuedRequest, int], Routed | None] = _nowhere
        #: Hear at once of a pool that a request has found without a ready replica, once until there is one.
        self.on_cold: list[Callable[[str, int], None]] = []
        #: How many requests have been admitted.
        self.number = 0
        #: QueuedRequest requests, whose quota must outlive their wait; when it was last renewed.
        self._waiting: dict[str, QueuedRequest] = {}
        self._renewed_ns = 0

    @property
    def waiting(self) -> Mapping[str, QueuedRequest]:
        """Who is held now, by id."""
        return self._waiting

    def goes_elsewhere(self, reservation_id: str) -> bool:
        """Whether a held request will be served by another pool than its model's."""
        held = self._waiting.get(reservation_id)
        return held is not None and held.payload[0].spill is not None

    def stays(self, reservation_id: str) -> None:
        """A held request can be served by its own pool alone: its body is not kept."""
        held = self._waiting.get(reservation_id)
        if held is not None:
            routing, headers = held.payload
            held.payload = (replace(routing, asked=None, then=None), headers)

    def move(
        self,
        held: QueuedRequest,
        routing: RoutingRequest,
        headers: tuple[tuple[str, str], ...],
        *,
        now_ns: int,
        before: Callable[[], None],
    ) -> Routed | None:
        """Place a held request in another pool, as `routing` has it; None where it goes on waiting.

        `before` is called once it has a place, before anybody hears of that.
        """
        placed = self._placer.surely(routing, now_ns)
        if not isinstance(placed, Routed):
            return None
        before()
        self.queue.remove(held.id)
        self._waiting.pop(held.id, None)
        self.charge(routing.tenant.name, routing.tenant.service_class, pool=routing.pool, work=routing.work)
        self._placer.enter(placed, routing, now_ns, number=self.number)
        self._counts["routed"] += 1
        self._counts["released.elsewhere"] += 1
        return replace(placed, headers=headers) if headers else placed

    def go(
        self,
        routing: RoutingRequest,
        headers: tuple[tuple[str, str], ...],
        *,
        now_ns: int,
        degraded: str = "",
    ) -> Routed | Reject | Hold:
        """Place a request whose quota is reserved, or let it wait. After an exception nothing is reserved."""
        # Nobody goes past those who wait for the same pool, unless what it asks for costs no place.
        if routing.permits and (
            self.queue.by_pool_count(routing.pool) or self._peers.contended(routing.pool)
        ):
            return self._hold(routing, headers, now_ns)
        try:
            placed = self._placer.place(routing, now_ns, degraded=degraded)
        except Exception:
            # Decided again with less, or not at all: under another id in either routing.
            self._quotas.cancel(routing.id, now_ns=now_ns)
            raise
        if isinstance(placed, Full):
            return self._hold(routing, headers, now_ns)
        if isinstance(placed, Reject):
            self._quotas.cancel(routing.id, now_ns=now_ns)
            return self.refuse(placed, routing, now_ns=now_ns)
        if routing.permits:
            self.charge(
                routing.tenant.name, routing.tenant.service_class, pool=routing.pool, work=routing.work
            )
        self._placer.enter(placed, routing, now_ns, number=self.number)
        self._counts["routed.degraded" if degraded else "routed"] += 1
        return replace(placed, headers=headers) if headers else placed

    def refuse(self, reject: Reject, routing: RoutingRequest, *, now_ns: int) -> Reject:
        """A request is turned away; what it had reserved is given back already."""
        self._counts[f"rejected.{reject.code}"] += 1
        if routing.arm and wanted_room(reject.code):
            self._experiments.turned_away(routing, now_ns=now_ns)
        self._events.refused(routing, reject, now_ns=now_ns)
        return reject

    def leave(self, reservation_id: str, *, now_ns: int) -> None:
        """The client of a held request has left."""
        held = self.queue.remove(reservation_id)
        if held is not None:
            self._counts["held.left"] += 1
            routing: RoutingRequest = held.payload[0]
            policy = self._settings.policy
            spec, waited_ns = (
                policy.classes[policy.rank(routing.tenant.service_class)],
                now_ns - routing.arrived_ns,
            )
            gave_up = routing.permits > 0 and spec.given_up(routing.input_tokens, waited_ns) is False
            if gave_up:
                self._experiments.turned_away(routing, now_ns=now_ns)
            self._events.left(reservation_id, routing, gave_up=gave_up, now_ns=now_ns)
        self._waiting.pop(reservation_id, None)

    def charge(self, tenant: str, service_class: str, *, pool: str, work: Work) -> None:
        """Charge a tenant in the queue for what was placed without waiting here."""
        policy = self._settings.policy
        klass, weight = policy.rank(service_class), policy.weight(tenant)
        self.queue.charge(tenant, pool=pool, klass=klass, weight=weight, work=work)

    def correct(self, reservation: Reservation, actual: Work) -> None:
        """A request that was charged in the queue has ended; `actual` is what it was."""
        policy = self._settings.policy
        self.queue.settled(
            reservation.tenant,
            pool=reservation.pool,
            klass=policy.rank(reservation.service_class),
            weight=policy.weight(reservation.tenant),
            predicted=Work(reservation.input_tokens, reservation.output_tokens),
            actual=actual,
            id=reservation.id,
        )

    def pump(self, pool: str, *, now_ns: int, at: Endpoint | None = None) -> None:
        """Release held requests of a pool to whatever has room now; `at`: only there anything changed."""
        if self.queue.by_pool_count(pool):
            self._tell(self._pump(pool, now_ns, at=at))

    def pump_all(self, *, now_ns: int) -> None:
        """The same for every pool with someone waiting: members or health have changed."""
        for pool, waiting in self.queue.by_pool.items():
            if waiting:
                self.pump(pool, now_ns=now_ns)

    def try_again(self, *, now_ns: int) -> None:
        """Overdue first tokens count as come, and who waits is tried again."""
        self._ledger.past_retries(now_ns=now_ns)
        for entry in self._ledger.overdue(now_ns=now_ns):
            self._counts["first_token.overdue"] += 1
            late(entry, now_ns=now_ns)
        if len(self.queue):
            self.pump_all(now_ns=now_ns)

    def shed(self, *, now_ns: int) -> None:
        """Turn away who has waited as long as its class allows, and whom no replica would start even now."""
        for held, placed in self.queue.last_chance(lambda held: self._last(held, now_ns), now_ns=now_ns):
            self._counts["released.last"] += 1
            self._tell([(held.id, self._release(held, placed, now_ns))])
        self._shed(self.queue.expire(now_ns=now_ns), now_ns)

    def renew(self, *, now_ns: int) -> None:
        """A hold may last longer than a reservation of quota lives unheard of."""
        if now_ns - self._renewed_ns >= self._settings.limits.reservation_ttl_ns // RENEWALS:
            self._renewed_ns = now_ns
            for reservation_id in self._waiting:
                self._quotas.renew(reservation_id, now_ns=now_ns)

    def apply(self, before: Policy, *, now_ns: int) -> None:
        """The policy is another than `before`; who waits goes on waiting where the classes are the same."""
        policy = self._settings.policy
        if [each.name for each in policy.classes] == [each.name for each in before.classes]:
            self.queue.bounds = policy.bounds
            return
        waiting, self.queue = self.queue, FairQueue(policy.bounds)
        for pool in list(waiting.by_pool):
            self._shed(waiting.close(pool, now_ns=now_ns), now_ns)

    def _hold(
        self, routing: RoutingRequest, headers: tuple[tuple[str, str], ...], now_ns: int
    ) -> Routed | Reject | Hold:
        policy, work = self._settings.policy, routing.work
        spec = policy.classes[policy.rank(routing.tenant.service_class)]
        pool = self._fleet.pools[routing.pool]
        starting = pool.starting
        if starting and routing.permits and pool.cold.asked(now_ns=now_ns):
            for told in self.on_cold:
                told(pool.name, now_ns)
        wait_ns = spec.cold_hold_ns if starting else spec.wait_ns(work.input_tokens)
        if wait_ns <= 0 or not routing.permits:
            self._quotas.cancel(routing.id, now_ns=now_ns)
            refusal = cold(pool, now_ns=now_ns) if starting else full(routing)
            return self.refuse(refusal, routing, now_ns=now_ns)
        until_ns = now_ns + wait_ns
        held = QueuedRequest(
            id=routing.id,
            tenant=routing.tenant.name,
            weight=policy.weight(routing.tenant.name),
            klass=work.rank,
            pool=routing.pool,
            work=work,
            arrived_ns=now_ns,
            shed_at_ns=until_ns,
            ttft_deadline_ns=work.deadline_ns or now_ns + spec.ttft_ns,
            prefill_ns=int(fastest_prefill_ms(work, pool.endpoints) * MS_NS),
            permits=routing.permits,
            affinity_group=routing.affinity_group,
            order=pool.strategy_named(routing.strategy or pool.strategy).order,
            payload=(routing, headers),
        )
        self._counts["held"] += 1
        self._counts["held.cold"] += starting
        self._waiting[routing.id] = held
        sheds = [
            (each.held.id, self._shed_one(each, now_ns)) for each in self.queue.push(held, now_ns=now_ns)
        ]
        own = self._tell(sheds, but=routing.id)
        # Its own caller hears of it at once.
        own = self._tell(self._pump(routing.pool, now_ns), but=routing.id) or own
        return own if own is not None else Hold(id=routing.id, until_ns=until_ns)

    def _tell(
        self, released: Iterable[tuple[str, Routed | Reject]], *, but: str = ""
    ) -> Routed | Reject | None:
        """Say what became of held requests, of all but one: that decision is returned."""
        own = None
        for reservation_id, decision in released:
            if reservation_id == but:
                own = decision
            else:
                self.on_release(reservation_id, decision)
        return own

    def _pump(self, pool_name: str, now_ns: int, *, at: Endpoint | None = None) -> Released:
        """Take who goes next, while anybody fits.

        First with patience: who would gain from a replica that is about to be free lets the next go
        first. Whoever is then left over is placed wherever there is room: nobody waits for nothing.
        """
        released: Released = []
        pool = self._fleet.pools.get(pool_name)
        if pool is not None and pool.starting:
            return released  # nobody can go, and each step would ask for all who wait
        # Of a pool that is no more everybody is told so.
        context = SchedulingContext(now_ns=now_ns, deciders=self._peers.deciders)
        shortlist = None if pool is None else Shortlist(pool, at, context)
        patient = self.queue.by_pool_count(pool_name) > 1
        waited = False

        def fits(held: QueuedRequest) -> Routed | Reject | None:
            nonlocal waited
            routing: RoutingRequest = held.payload[0]
            among = None
            if shortlist is not None:
                among = shortlist.of(routing)
                if not shortlist.may(routing, among):
                    return None
                if patient and routing.work.prefix and len(shortlist) <= AFFINITY_ENDPOINTS_MAX:
                    # A replica that cannot take it now may be the one worth waiting for.
                    among = None
            placed = self._placer.surely(routing, now_ns, among=among, patient=patient)
            if placed is WAITS:
                waited = True
            return None if isinstance(placed, Full) else placed

        while len(released) < RELEASES_MAX and (shortlist is None or shortlist.open):
            turn = "" if pool is None else self._peers.turn(pool_name, self.queue, now_ns=now_ns)
            if turn is None:
                break
            taken: tuple[QueuedRequest, Routed | Reject] | None = self.queue.take(
                pool_name, fits, first=turn, now_ns=now_ns
            )
            if taken is None:
                if not (patient and waited):
                    break
                patient = waited = False
                continue
            held, placed = taken
            released.append((held.id, self._release(held, placed, now_ns)))
            if shortlist is not None:
                shortlist.changed()
            if isinstance(placed, Routed) and held.affinity_group is not None:
                released += self._pump_affinity_group(held, placed, RELEASES_MAX - len(released), now_ns)
        return released

    def _pump_affinity_group(self, held: QueuedRequest, placed: Routed, most: int, now_ns: int) -> Released:
        """Those that begin alike go along to the same replica, within the fairness slack."""
        endpoint = self._fleet.endpoint(held.pool, placed.reservation.address)
        released: Released = []

        def fits(other: QueuedRequest) -> Routed | None:
            routing: RoutingRequest = other.payload[0]
            there = self._placer.surely(routing, now_ns, among=[endpoint] if endpoint is not None else None)
            return there if isinstance(there, Routed) else None

        while endpoint is not None and len(released) < most:
            if self._peers.turn(held.pool, self.queue, now_ns=now_ns) is None:
                break
            taken: tuple[QueuedRequest, Routed] | None = self.queue.take_affinity_group(
                held, fits, now_ns=now_ns
            )
            if taken is None:
                break
            self._counts["released.kin"] += 1
            released.append((taken[0].id, self._release(taken[0], taken[1], now_ns)))
        return released

    def _last(self, held: QueuedRequest, now_ns: int) -> Routed | None:
        """A place for one that would be turned away: where nothing but a prior says that it must wait."""
        placed = self._placer.surely(held.payload[0], now_ns, last=True)
        at = self._fleet.endpoint(held.pool, placed.addresses[0]) if isinstance(placed, Routed) else None
        # Another service's turn is its own; but an idle replica it has left to nobody.
        asks = at is not None and at.load_permits > 0
        if asks and self._peers.turn(held.pool, self.queue, now_ns=now_ns) is None:
            return None
        return placed if isinstance(placed, Routed) else None

    def _release(self, held: QueuedRequest, placed: Routed | Reject, now_ns: int) -> Routed | Reject:
        self._waiting.pop(held.id, None)
        routing: RoutingRequest = held.payload[0]
        if isinstance(placed, Reject):
            if wanted_room(placed.code) and (moved := self.elsewhere(held, now_ns)) is not None:
                return moved
            self._quotas.cancel(held.id, now_ns=now_ns)
            return self.refuse(placed, routing, now_ns=now_ns)
        self._placer.enter(placed, routing, now_ns, number=self.number)
        self._counts["routed"] += 1
        self._counts["released"] += 1
        headers: tuple[tuple[str, str], ...] = held.payload[1]
        return replace(placed, headers=headers) if headers else placed

    def _shed(self, sheds: list[Shed], now_ns: int) -> None:
        for each in sheds:
            self.on_release(each.held.id, self._shed_one(each, now_ns))

    def _shed_one(self, shed: Shed, now_ns: int) -> Reject:
        held = shed.held
        self._counts["shed"] += 1
        if self._placer.idle(held.payload[0], now_ns):
            # Never, by law (bind late, waste nothing): shown, so that nobody has to believe it.
            self._counts["shed.idle"] += 1
        self._waiting.pop(held.id, None)
        self._quotas.cancel(held.id, now_ns=now_ns)
        waited_s = (now_ns - held.arrived_ns) / 1e9
        pool = self._fleet.pools.get(held.pool)
        if pool is not None and pool.starting:
            return self.refuse(cold(pool, now_ns=now_ns, waited_s=waited_s), held.payload[0], now_ns=now_ns)
        message = f"no replica of pool {held.pool!r} had room within {waited_s:.1f} s"
        reject = Error.OVERLOADED.reject(message, retry_after_s=max(1, shed.retry_after_s))
        return self.refuse(reject, held.payload[0], now_ns=now_ns)
