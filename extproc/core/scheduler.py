"""Admits, holds, keeps the books, and settles: what the server, the tests and the simulator run.

Owns the one order of things: resolve → reserve the quota → place, or wait in the fair queue → enter the
reservation → settle from the record, or expire. No I/O; its caller brings time and chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from extproc.core.accounts import Price, borrows, reserved, used
from extproc.core.decide import WAITS, Full, RoutingRequest, full, place, resolve
from extproc.core.endpoint import Endpoint
from extproc.core.errors import Error
from extproc.core.events import Events, Settled, raises
from extproc.core.experiment import Experiments
from extproc.core.explain import Decisions, Explanation, explain, explain_held, explain_kept, refused
from extproc.core.fairqueue import FairQueue, QueuedRequest, Shed
from extproc.core.families import NONE, Family
from extproc.core.feedback import MS_NS, Feedback, coming
from extproc.core.fleet import Fleet
from extproc.core.forecast import fastest_prefill_ms
from extproc.core.ledger import Ledger
from extproc.core.meter import metered
from extproc.core.outcome import (
    End,
    Hold,
    Outcome,
    Reject,
    Reservation,
    Routed,
    wanted_room,
)
from extproc.core.policy import ClassSpec, DeskLimits, Policy
from extproc.core.quota import Account, Amounts, Ask, ExactBooks, Granted, QuotaBooks, Refused
from extproc.core.request import Request
from extproc.core.shortlist import Shortlist
from extproc.core.slo import sample_of
from extproc.core.strategies import SchedulingContext, Work
from extproc.core.tenant import Tenant
from extproc.core.turns import TurnRow, Turns

__all__ = ["AskQuota", "ClassSpec", "DeskLimits", "Policy", "Scheduler"]

#: A pool is idle, and its capacity may be lent, while no more than this share of its permits is taken.
IDLE_BELOW = 0.5
#: Requests released to a freed replica in one go; the rest at the next event.
RELEASES_MAX = 64
#: In pools of up to so many endpoints a request may wait for the one that holds more of its prefix.
AFFINITY_ENDPOINTS_MAX = 64
#: How often in a reservation's time to live the quotas of held requests are renewed.
RENEWALS = 4
#: How often who is held is tried again without an event, who waited too long is turned away, and overdue
#: first tokens count as come.
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


def _nobody(_id: str, _decision: Routed | Reject) -> None:
    """Nobody waits for releases yet."""


class Scheduler:
    """Fleet, ledger, quotas and the fair queue under one roof.

    `instance` is unique to this process's life: reservation ids are `instance-number`, so a
    restarted service cannot take its predecessor's records for its own. `on_release` hears what became
    of a held request.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        instance: str,
        default_model: str,
        limits: DeskLimits,
        rng: Random,
        zone: str = "",
        policy: Policy | None = None,
        quotas: QuotaBooks | None = None,
        experiments: Experiments | None = None,
    ) -> None:
        self.fleet = fleet
        self.ledger = Ledger(ttl_ns=limits.reservation_ttl_ns, remembered_max=limits.settled_remembered_max)
        self.instance = instance
        self.default_model = default_model
        #: Where we are; endpoints elsewhere carry their pool's handicap.
        self.zone = zone
        #: Instances whose in-flight work is known by sharing, and so is not adopted from heartbeats.
        self.peers: frozenset[str] = frozenset()
        #: What peers hold: whose turn it is.
        self.turns = Turns(instance)
        #: Endpoints (pool, address) whose peers' load was reckoned on; what peers say of it is true again.
        self.reckoned: set[tuple[str, str]] = set()
        self.limits = limits
        #: What has ended, and first tokens, teach.
        self.feedback = Feedback(fleet)
        # Without a policy nobody waits: full is a refusal.
        self.policy = policy or Policy(classes=(ClassSpec(hold_ns=0),))
        #: By name, what clients may ask for instead of a model.
        self.families: Mapping[str, Family] = NONE
        #: The last decisions, for who asks why.
        self.decisions = Decisions()
        self.quotas: QuotaBooks = quotas if quotas is not None else ExactBooks()
        self.queue = FairQueue(self.policy.bounds)
        self.experiments = experiments or Experiments(rng=rng)
        self.counts: Counter[str] = Counter()
        self.on_release: Callable[[str, Routed | Reject], None] = _nobody
        #: Tells of all that becomes of requests.
        self.events = Events()
        #: Hears of what a step could not do.
        self.failed: Callable[[Exception, str], None] = raises
        self._rng = rng
        self._number = 0
        self._round_ns = 0
        #: Held requests, whose quota must outlive their wait; when it was last renewed.
        self._waiting: dict[str, QueuedRequest] = {}
        self._renewed_ns = 0

    def admit(
        self, request: Request, tenant: Tenant, *, now_ns: int, key: str = "", degraded: str = ""
    ) -> Routed | Reject | Hold | AskQuota:
        """Decide and enter the reservation; or hold the request until a replica would start it."""
        self._number += 1
        routing = self.resolve(request, tenant, f"{self.instance}-{self._number}", key=key, now_ns=now_ns)
        if isinstance(routing, Reject):
            self.turned_away(tenant.name, routing, now_ns=now_ns)
            return routing
        routing = self.experiments.assign(routing, request)
        account = self.policy.accounts.of(tenant.name, key, routing.model)
        if not account.scopes:
            return self._go_on(routing, None, now_ns=now_ns, degraded=degraded)
        amounts = reserved(routing, self.fleet.pools[routing.pool], self._price(routing.pool))
        idle = borrows(account) and self.idle(routing.pool)
        answer = self.quotas.reserve(account, routing.id, amounts, now_ns=now_ns, idle_capacity=idle)
        if isinstance(answer, Ask):
            return AskQuota(routing, account, amounts, idle, degraded)
        return self._go_on(routing, answer, now_ns=now_ns, degraded=degraded)

    def resolve(
        self, request: Request, tenant: Tenant, reservation_id: str, *, key: str = "", now_ns: int
    ) -> RoutingRequest | Reject:
        """What a request is here and now (`decide.resolve`); changes nothing."""
        rank = self.policy.rank(tenant.service_class)
        return resolve(
            request,
            tenant,
            self.fleet,
            self.ledger,
            id=reservation_id,
            default_model=self.default_model,
            reservations_max=self.limits.reservations_max,
            zone=self.zone,
            key=key,
            rank=rank,
            spec=self.policy.classes[rank],
            now_ns=now_ns,
            families=self.families,
            waiting=self.queue.by_pool_count,
        )

    def explain(self, request: Request, tenant: Tenant, *, now_ns: int, key: str = "") -> Explanation:
        """What would be done with a request now, endpoint by endpoint; changes nothing, asks no quota."""
        routing = self.resolve(request, tenant, "", key=key, now_ns=now_ns)
        if isinstance(routing, Reject):
            return Explanation(id="", tenant=tenant.name, outcome=refused(routing), scores_of="now")
        return explain(
            routing,
            self.fleet,
            now_ns=now_ns,
            rng=self._rng,
            deciders=self._deciders,
            waiting=self.queue.by_pool_count(routing.pool),
        )

    def explained(self, name: str, *, now_ns: int) -> Explanation | None:
        """What was done with a request, or keeps it waiting, by its reservation's id or a name noted for it.

        None when it is neither held nor among the last decisions.
        """
        reservation_id = self.decisions.reservation_of(name)
        held = self._waiting.get(reservation_id)
        if held is not None:
            everyone, rng = self._waiting.values(), self._rng
            return explain_held(held, everyone, self.fleet, now_ns=now_ns, rng=rng, deciders=self._deciders)
        kept = self.decisions.get(reservation_id)
        if kept is None:
            return None
        state = "in flight" if reservation_id in self.ledger else "no longer in flight"
        return explain_kept(kept, self.fleet, now_ns=now_ns, deciders=self._deciders, state=state)

    def answered(self, asked: AskQuota, answer: Granted | Refused, *, now_ns: int) -> Routed | Reject | Hold:
        """The shared store has answered: the case goes on, or is refused."""
        return self._go_on(asked.routing, answer, now_ns=now_ns, degraded=asked.degraded)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """A request was refused before it was a case; `tenant` is empty where nobody knows whose it is."""
        self.counts[f"rejected.{reject.code}"] += 1
        self.events.turned_away(tenant, reject, now_ns=now_ns)

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """The client left before the decision reached Envoy."""
        reservation = self.ledger.cancel(reservation_id, now_ns=now_ns)
        self.quotas.cancel(reservation_id, now_ns=now_ns)
        if reservation is not None:
            self.counts["cancelled"] += 1
            self.events.left(reservation_id, None, now_ns=now_ns)
            self.pump(reservation.pool, now_ns=now_ns)

    def leave(self, reservation_id: str, *, now_ns: int) -> None:
        """The client of a held request has left."""
        held = self.queue.remove(reservation_id)
        if held is not None:
            self.counts["held.left"] += 1
            self.experiments.turned_away(held.payload[0], now_ns=now_ns, left=True)
            self.events.left(reservation_id, held.payload[0], now_ns=now_ns)
        self._waiting.pop(reservation_id, None)
        self.quotas.cancel(reservation_id, now_ns=now_ns)

    def first_token(self, reservation_id: str, *, now_ns: int, refused: bool = False) -> bool:
        """The first chunk of a stream was seen; true when the request is one that we placed.

        `refused`: it says inside a 200 that the engine is overloaded. Its place is no better known than
        before, but the endpoint is suspect, and the request's end will come in its record.
        """
        entry = self.ledger.get(reservation_id)
        if entry is None:
            return False
        if refused:
            self.counts["refused_in_stream"] += 1
            entry.endpoint.failed(now_ns)
        else:
            self.ledger.answering(reservation_id)
            if self.ledger.first_token(reservation_id, now_ns=now_ns) is not None:
                self.counts["first_token"] += 1
                entry.heard_first = True
                self.feedback.first_token(entry, now_ns=now_ns)
                self.pump(entry.reservation.pool, now_ns=now_ns, at=entry.endpoint)
        self.events.first_token(reservation_id, refused=refused, now_ns=now_ns)
        return True

    def settle(self, outcome: Outcome, *, now_ns: int) -> bool:
        """Take a record into the books; true when it ended a request for the first time.

        A heartbeat renews the reservation, or adopts one that another process made: after a restart
        the ledger knows of the streams that outlived its predecessor.
        """
        reservation = outcome.reservation
        pool = self.fleet.pools.get(reservation.pool)
        outcome = metered(outcome, pool.calibration.meters if pool is not None else None)
        if not outcome.final:
            self._heartbeat(outcome, now_ns)
            self.quotas.renew(reservation.id, now_ns=now_ns, so_far=self._so_far(outcome))
            return False
        neighbours = self._neighbours(outcome)
        ended = self.ledger.first_end(reservation.id, now_ns=now_ns)
        if ended is None:
            self.counts["settled.duplicate"] += 1
            return False
        self.counts[f"settled.{outcome.end.value}"] += 1
        self._count_metered(outcome)
        self.feedback.judge(outcome, now_ns=now_ns)
        charged = self._charge(outcome, neighbours, now_ns)
        self.feedback.ended(outcome, ended, now_ns=now_ns)
        sample = sample_of(outcome, self.policy.classes[self.policy.rank(reservation.service_class)])
        if reservation.arm:
            self.experiments.ended(outcome, sample, now_ns=now_ns)
        self._place_freed(outcome, ended.entry.endpoint if ended.entry else None, now_ns)
        here = reservation.id.startswith(f"{self.instance}-")
        self.events.settled(Settled(outcome, charged, sample, here), now_ns=now_ns)
        return True

    def step(self, *, now_ns: int) -> int:
        """Let time pass; returns when to step again at the latest. The service and the simulator do alike.

        Who waits is tried again, and overdue first tokens count as come; every ROUND_NS health follows, and
        what nobody has heard of expires. The room that this made first: who has waited as long as its class
        allows is turned away last.
        """
        if now_ns >= self._round_ns:
            self._round_ns = now_ns + ROUND_NS
            self._guarded("expiry", self.expire, now_ns)
            self._guarded("stepping the fleet", self.fleet.step, now_ns)
        self._guarded("pumping", self.try_again, now_ns)
        self._guarded("shedding", self.shed, now_ns)
        return min(now_ns + STEP_NS, self._round_ns)

    def _guarded(self, what: str, work: Callable[..., object], now_ns: int) -> None:
        try:
            work(now_ns=now_ns)
        except Exception as error:  # noqa: BLE001 (one fault must not end what else time brings)
            self.failed(error, what)

    def try_again(self, *, now_ns: int) -> None:
        """Overdue first tokens count as come, and who waits is tried again."""
        self.ledger.past_retries(now_ns=now_ns)
        self.counts["first_token.overdue"] += len(self.ledger.overdue(now_ns=now_ns))
        if len(self.queue):
            self.pump_all(now_ns=now_ns)

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release what nobody has heard of for the reservation's time to live."""
        expired = self.ledger.expire(now_ns=now_ns)
        if expired:
            self.counts["expired"] += len(expired)
        self._renew_waiting(now_ns)
        self.quotas.expire(now_ns=now_ns)
        for reservation in expired:
            self.events.expired(reservation, now_ns=now_ns)
        return expired

    def shed(self, *, now_ns: int) -> None:
        """Turn away who has waited as long as its class allows."""
        self._shed(self.queue.expire(now_ns=now_ns), now_ns)

    @property
    def waiting(self) -> Collection[QueuedRequest]:
        """Who is held now."""
        return self._waiting.values()

    def pump(self, pool: str, *, now_ns: int, at: Endpoint | None = None) -> None:
        """Release held requests of a pool to whatever has room now; `at`: only there anything changed."""
        if not self.queue.by_pool_count(pool):
            return
        for reservation_id, decision in self._pump(pool, now_ns, at=at):
            self.on_release(reservation_id, decision)

    def pump_all(self, *, now_ns: int) -> None:
        """The same for every pool with someone waiting: members or health have changed."""
        for pool, waiting in self.queue.by_pool.items():
            if waiting:
                self.pump(pool, now_ns=now_ns)

    def apply(self, policy: Policy, *, now_ns: int) -> None:
        """A new configuration's classes, quotas and prices; who waits goes on waiting."""
        classes_before = [each.name for each in self.policy.classes]
        self.policy = policy
        if [each.name for each in policy.classes] == classes_before:
            self.queue.bounds = policy.bounds
            return
        waiting, self.queue = self.queue, FairQueue(policy.bounds)
        for pool in list(waiting.by_pool):
            self._shed(waiting.close(pool, now_ns=now_ns), now_ns)

    def idle(self, pool_name: str) -> bool:
        """Whether a pool has capacity to lend: nobody waits, and most permits are free."""
        if self.queue.by_pool.get(pool_name):
            return False
        pool = self.fleet.pools[pool_name]
        taken = room = 0
        for endpoint in pool.endpoints:
            if endpoint.ready:
                taken += endpoint.load_permits
                room += endpoint.max_concurrent
        return taken <= room * IDLE_BELOW

    def _go_on(
        self, routing: RoutingRequest, answer: Granted | Refused | None, *, now_ns: int, degraded: str
    ) -> Routed | Reject | Hold:
        headers = answer.figures.headers() if answer is not None else ()
        if isinstance(answer, Refused):
            return self._refused(_spent(answer, headers), routing, now_ns)
        if isinstance(answer, Granted) and answer.borrowed:
            self.counts["borrowed"] += 1
        if routing.choice is not None:
            headers += routing.choice.headers()
        # Nobody goes past those who wait for the same pool, unless what it asks for costs no place.
        if routing.permits and (self.queue.by_pool_count(routing.pool) or self.turns.contended(routing.pool)):
            return self._hold(routing, headers, now_ns)
        try:
            placed = place(
                routing,
                self.fleet,
                now_ns=now_ns,
                rng=self._rng,
                degraded=degraded,
                deciders=self._deciders,
            )
        except Exception:
            # Decided again with less, or not at all: under another id in either case.
            self.quotas.cancel(routing.id, now_ns=now_ns)
            raise
        if isinstance(placed, Full):
            return self._hold(routing, headers, now_ns)
        if isinstance(placed, Reject):
            self.quotas.cancel(routing.id, now_ns=now_ns)
            return self._refused(placed, routing, now_ns)
        if routing.permits:
            self.queue.charge(
                routing.tenant.name,
                pool=routing.pool,
                klass=self.policy.rank(routing.tenant.service_class),
                weight=self._weight(routing.tenant.name),
                work=routing.work,
            )
        self._enter(placed, routing, now_ns)
        self.counts["routed.degraded" if degraded else "routed"] += 1
        return replace(placed, headers=headers) if headers else placed

    def _hold(
        self, routing: RoutingRequest, headers: tuple[tuple[str, str], ...], now_ns: int
    ) -> Routed | Reject | Hold:
        spec = self.policy.classes[self.policy.rank(routing.tenant.service_class)]
        if spec.hold_ns <= 0 or not routing.permits:
            self.quotas.cancel(routing.id, now_ns=now_ns)
            return self._refused(full(routing), routing, now_ns)
        pool = self.fleet.pools[routing.pool]
        work = routing.work
        until_ns = now_ns + spec.wait_ns(work.input_tokens)
        held = QueuedRequest(
            id=routing.id,
            tenant=routing.tenant.name,
            weight=self._weight(routing.tenant.name),
            klass=work.rank,
            pool=routing.pool,
            work=work,
            arrived_ns=now_ns,
            shed_at_ns=until_ns,
            ttft_deadline_ns=work.deadline_ns or now_ns + spec.ttft_ns,
            prefill_ns=int(fastest_prefill_ms(work, pool.endpoints) * MS_NS),
            permits=routing.permits,
            affinity_group=routing.affinity_group,
            order=getattr(pool.strategy_named(routing.strategy or pool.strategy), "order", None),
            payload=(routing, headers),
        )
        self.counts["held"] += 1
        self._waiting[routing.id] = held
        own: Routed | Reject | None = None
        for shed in self.queue.push(held, now_ns=now_ns):
            refusal = self._shed_one(shed, now_ns)
            if shed.held.id == routing.id:
                own = refusal
            else:
                self.on_release(shed.held.id, refusal)
        for reservation_id, decision in self._pump(routing.pool, now_ns):
            if reservation_id == routing.id:
                own = decision
            else:
                self.on_release(reservation_id, decision)
        return own if own is not None else Hold(id=routing.id, until_ns=until_ns)

    def _pump(
        self, pool_name: str, now_ns: int, *, at: Endpoint | None = None
    ) -> list[tuple[str, Routed | Reject]]:
        """Take who goes next, while anybody fits.

        First with patience: who would gain from a replica that is about to be free lets the next go
        first. Whoever is then left over is placed wherever there is room: nobody waits for nothing.
        """
        released: list[tuple[str, Routed | Reject]] = []
        pool = self.fleet.pools.get(pool_name)
        # Of a pool that is no more everybody is told so.
        context = SchedulingContext(now_ns=now_ns, deciders=self._deciders)
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
            placed = self._placed(routing, now_ns, among=among, patient=patient)
            if placed is WAITS:
                waited = True
            return None if isinstance(placed, Full) else placed

        while len(released) < RELEASES_MAX and (shortlist is None or shortlist.open):
            if pool is not None and not self._may(pool_name, now_ns):
                break
            taken: tuple[QueuedRequest, Routed | Reject] | None = self.queue.take(
                pool_name, fits, now_ns=now_ns
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

    def needs(self, *, now_ns: int) -> dict[str, list[TurnRow]]:
        """What waits and runs here, for the pools that somebody waits for, here or elsewhere."""
        pools = {pool for pool, waiting in self.queue.by_pool.items() if waiting} | self.turns.pools
        found = {pool: self._rows(pool, now_ns) for pool in pools if pool in self.fleet.pools}
        self.turns.tell(found)
        return found

    def _rows(self, pool: str, now_ns: int) -> list[TurnRow]:
        rows: dict[tuple[str, int], list[int]] = {}
        for tenant, level, held, oldest_ns in self.queue.backlog(pool):
            rows[tenant, level] = [held, 0, max(0, now_ns - oldest_ns) // MS_NS]
        for (tenant, klass), running in self.ledger.by_pool.get(pool, {}).items():
            rows.setdefault((tenant, self.policy.rank(klass)), [0, 0, 0])[1] += running
        return [TurnRow(*name, *figures) for name, figures in rows.items()]

    def _may(self, pool: str, now_ns: int) -> bool:
        """Whether one more may begin here now, for all that waits at other services."""
        if not self.turns.contended(pool):
            return True
        return self.turns.mine(pool, self._rows(pool, now_ns), weights=self.policy.weights, now_ns=now_ns)

    def _place_freed(self, outcome: Outcome, at: Endpoint | None, now_ns: int) -> None:
        """A request of this or of another service has ended: who waits for its place has it."""
        reservation = outcome.reservation
        pool, owner = reservation.pool, reservation.id.partition("-")[0]
        peer = owner in self.peers
        if (
            not reservation.permits
            or pool not in self.fleet.pools
            or not (peer or self.turns.contended(pool))
        ):
            self.pump(pool, now_ns=now_ns, at=at)
            return
        filled = self.turns.ended(owner, pool, reservation.tenant, weights=self.policy.weights)
        endpoint = at or self.fleet.endpoint(pool, outcome.served_by or reservation.address)
        tokens = reservation.input_tokens + reservation.output_tokens
        if endpoint is not None:
            self.reckoned.add((endpoint.pool, endpoint.address))
            if peer and filled == self.instance:
                endpoint.peer_ended(reservation.permits, tokens)
            elif not peer and filled != self.instance:
                endpoint.peer_begins(reservation.permits, tokens)
        if filled == self.instance:
            self.pump(pool, now_ns=now_ns, at=endpoint)
            self.turns.spent(pool)

    @property
    def _deciders(self) -> int:
        return len(self.peers) + 1

    def _pump_affinity_group(
        self, held: QueuedRequest, placed: Routed, most: int, now_ns: int
    ) -> list[tuple[str, Routed | Reject]]:
        """Those that begin alike go along to the same replica, within the fairness slack."""
        endpoint = self.fleet.endpoint(held.pool, placed.reservation.address)
        released: list[tuple[str, Routed | Reject]] = []

        def fits(other: QueuedRequest) -> Routed | None:
            routing: RoutingRequest = other.payload[0]
            there = self._placed(routing, now_ns, among=[endpoint] if endpoint is not None else None)
            return there if isinstance(there, Routed) else None

        while endpoint is not None and len(released) < most and self._may(held.pool, now_ns):
            taken: tuple[QueuedRequest, Routed] | None = self.queue.take_affinity_group(
                held, fits, now_ns=now_ns
            )
            if taken is None:
                break
            self.counts["released.kin"] += 1
            released.append((taken[0].id, self._release(taken[0], taken[1], now_ns)))
        return released

    def _placed(
        self,
        routing: RoutingRequest,
        now_ns: int,
        *,
        among: Sequence[Endpoint] | None = None,
        patient: bool = False,
    ) -> Routed | Reject | Full:
        """Where a held case goes; a fault must lose neither it nor the others of the same event."""
        for degraded in ("", "internal error"):
            try:
                return place(
                    routing,
                    self.fleet,
                    now_ns=now_ns,
                    rng=self._rng,
                    degraded=degraded,
                    among=among,
                    patient=patient,
                    deciders=self._deciders,
                )
            except Exception:  # noqa: BLE001 (law: every exception becomes a decision)
                self.counts["exception.release"] += 1
        return Error.INTERNAL.reject("the gateway could not release this request")

    def _renew_waiting(self, now_ns: int) -> None:
        """A hold may last longer than a reservation of quota lives unheard of."""
        if now_ns - self._renewed_ns >= self.limits.reservation_ttl_ns // RENEWALS:
            self._renewed_ns = now_ns
            for reservation_id in self._waiting:
                self.quotas.renew(reservation_id, now_ns=now_ns)

    def _release(self, held: QueuedRequest, placed: Routed | Reject, now_ns: int) -> Routed | Reject:
        self._waiting.pop(held.id, None)
        if isinstance(placed, Reject):
            self.quotas.cancel(held.id, now_ns=now_ns)
            return self._refused(placed, held.payload[0], now_ns)
        routing: RoutingRequest = held.payload[0]
        self._enter(placed, routing, now_ns)
        self.counts["routed"] += 1
        self.counts["released"] += 1
        headers: tuple[tuple[str, str], ...] = held.payload[1]
        return replace(placed, headers=headers) if headers else placed

    def _shed(self, sheds: list[Shed], now_ns: int) -> None:
        for shed in sheds:
            self.on_release(shed.held.id, self._shed_one(shed, now_ns))

    def _shed_one(self, shed: Shed, now_ns: int) -> Reject:
        self.counts["shed"] += 1
        self._waiting.pop(shed.held.id, None)
        self.quotas.cancel(shed.held.id, now_ns=now_ns)
        waited_s = (now_ns - shed.held.arrived_ns) / 1e9
        message = f"no replica of pool {shed.held.pool!r} had room within {waited_s:.1f} s"
        refusal = Error.OVERLOADED.reject(message, retry_after_s=max(1, shed.retry_after_s))
        return self._refused(refusal, shed.held.payload[0], now_ns)

    def _enter(self, placed: Routed, routing: RoutingRequest, now_ns: int) -> None:
        reservation = placed.reservation
        endpoint = self.fleet.endpoint(reservation.pool, reservation.address)
        assert endpoint is not None, reservation.address
        pool = self.fleet.pools[reservation.pool]
        self.experiments.placed(routing, placed, pool, endpoint, now_ns=now_ns, deciders=self._deciders)
        endpoint.picked = self._number
        pool.turn = max(pool.turn, endpoint.turn)
        endpoint.turn = pool.turn + 1.0 / endpoint.weight
        # An arm's own instance hears of its own picks; what took its place, by the plain name.
        own = "#" in routing.strategy and routing.strategy.startswith(f"{reservation.strategy}#")
        strategy = pool.strategy_named(routing.strategy if own else reservation.strategy)
        picked = getattr(strategy, "picked", None)
        if picked is not None:
            picked(
                pool.endpoints,
                endpoint,
                routing.work,
                at=SchedulingContext(now_ns=now_ns, deciders=self._deciders),
            )
        if placed.plan is not None:
            coming(pool, endpoint, placed.plan)
        standby = [self.fleet.endpoint(reservation.pool, each) for each in placed.addresses[1:]]
        self.ledger.enter(
            reservation,
            endpoint,
            now_ns=now_ns,
            plan=placed.plan,
            standby=[each for each in standby if each is not None],
        )
        self.decisions.note(routing, placed, now_ns=now_ns)
        self.events.placed(routing, placed, now_ns=now_ns)

    def _refused(self, reject: Reject, routing: RoutingRequest, now_ns: int) -> Reject:
        self.counts[f"rejected.{reject.code}"] += 1
        if routing.arm and wanted_room(reject.status, reject.code):
            self.experiments.turned_away(routing, now_ns=now_ns)
        self.events.refused(routing, reject, now_ns=now_ns)
        return reject

    def _weight(self, tenant: str) -> float:
        return self.policy.weights.get(tenant, 1.0)

    def _price(self, pool: str) -> Price:
        return self.policy.prices.get(pool, FREE)

    def _neighbours(self, outcome: Outcome) -> int:
        """Requests that shared the replica with one that has just ended, itself included."""
        endpoint = self.ledger.endpoint_of(outcome.reservation.id)
        return max(1, endpoint.load_requests) if endpoint is not None else 1

    def _charge(self, outcome: Outcome, neighbours: int, now_ns: int) -> Amounts:
        reservation = outcome.reservation
        pool = self.fleet.pools.get(reservation.pool)
        gpu_ms = outcome.duration_ns / 1e6 / neighbours if outcome.duration_ns else None
        amounts = used(outcome, pool, self._price(reservation.pool), gpu_ms=gpu_ms)
        account = self.policy.accounts.of(reservation.tenant, reservation.key, reservation.model)
        if account.scopes:
            self.quotas.settle(reservation.id, amounts, now_ns=now_ns, account=account)
        if not reservation.permits:
            return amounts
        if pool is not None and gpu_ms is not None and outcome.end is End.OK:
            pool.calibration.saw_gpu(gpu_ms, amounts.input_tokens, amounts.output_tokens)
        if not reservation.id.startswith(f"{self.instance}-"):
            # Charged in another service's queue: there is nothing to correct in ours, but its tenant had it.
            if reservation.id.partition("-")[0] in self.peers and pool is not None:
                self.queue.charge(
                    reservation.tenant,
                    pool=reservation.pool,
                    klass=self.policy.rank(reservation.service_class),
                    weight=self._weight(reservation.tenant),
                    work=Work(amounts.input_tokens, amounts.output_tokens),
                )
            return amounts
        self.queue.settled(
            reservation.tenant,
            pool=reservation.pool,
            klass=self.policy.rank(reservation.service_class),
            weight=self._weight(reservation.tenant),
            predicted=Work(reservation.input_tokens, reservation.output_tokens),
            actual=Work(amounts.input_tokens, amounts.output_tokens),
            id=reservation.id,
        )
        return amounts

    def _count_metered(self, outcome: Outcome) -> None:
        if outcome.impossible:
            self.counts["metered.impossible"] += 1
        if outcome.output_tokens is None or not outcome.reservation.permits:
            return
        self.counts[f"metered.{outcome.counted.value}"] += 1

    def _so_far(self, outcome: Outcome) -> Amounts | None:
        """What a running request has used; None where nothing of it was seen."""
        if not outcome.output_tokens:
            return None
        reservation = outcome.reservation
        pool, price = self.fleet.pools.get(reservation.pool), self._price(reservation.pool)
        return used(outcome, pool, price, gpu_ms=None)

    def _heartbeat(self, outcome: Outcome, now_ns: int) -> None:
        reservation = outcome.reservation
        serving = self.fleet.endpoint(reservation.pool, outcome.served_by or reservation.address)
        if self.ledger.renew(reservation.id, now_ns=now_ns):
            # Between two attempts nobody serves it: the load stays where it was.
            moved = outcome.served_by and self.ledger.endpoint_of(reservation.id) is not serving
            if serving is not None and moved:
                self.ledger.move(reservation.id, serving, now_ns=now_ns)
                self.counts["moved"] += 1
        elif (
            serving is not None
            and not self.ledger.ended(reservation.id)
            and reservation.id.partition("-")[0] not in self.peers
            and len(self.ledger) < self.limits.reservations_max
        ):
            self.ledger.enter(reservation, serving, now_ns=now_ns)
            self.counts["adopted"] += 1


FREE = Price()


def _spent(answer: Refused, headers: tuple[tuple[str, str], ...]) -> Reject:
    """A quota's 429, which says which limit and when."""
    scope = "" if answer.scope == "tenant" else f" of {answer.scope.replace(':', ' ', 1)}"
    wait_s = max(1, math.ceil(answer.retry_after_s))
    return Error.QUOTA.reject(limit=f"{answer.limit}{scope}", retry_after_s=wait_s, headers=headers)
