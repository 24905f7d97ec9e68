"""The desk: admits, holds, keeps the books, and settles. What the server, the tests and the simulator run.

Owns the one order of things: resolve → reserve the quota → place, or wait in the fair queue → enter the
reservation → settle from the record, or expire. No I/O; its caller brings time and chance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from extproc.core.accounts import Price, borrows, reserved, used
from extproc.core.decide import Case, Full, full, overloaded, place, resolve
from extproc.core.endpoint import Endpoint
from extproc.core.fairness import FairQueue, Held, Shed
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import End, Hold, Outcome, Reject, Reservation, Routed
from extproc.core.policy import ClassSpec, DeskLimits, Policy
from extproc.core.quota import Account, Amounts, Ask, Books, Granted, QuotaBooks, Refused
from extproc.core.request import Request
from extproc.core.strategies import Work
from extproc.core.tenant import Tenant

__all__ = ["AskQuota", "ClassSpec", "Desk", "DeskLimits", "Policy"]

#: A pool is idle, and its capacity may be lent, while no more than this share of its permits is taken.
IDLE_BELOW = 0.5
#: The code of a 429 for want of quota.
QUOTA_EXCEEDED = "quota_exceeded"
#: Requests released to a freed replica in one go; the rest at the next event.
RELEASES_MAX = 64
#: How often in a reservation's time to live the quotas of held requests are renewed.
RENEWALS = 4


@dataclass(frozen=True, slots=True)
class AskQuota:
    """The quota's shared store must be asked before the case goes on (`Desk.answered`)."""

    case: Case
    account: Account
    amounts: Amounts
    idle: bool
    degraded: str


def _nobody(_id: str, _decision: Routed | Reject) -> None:
    """Nobody waits for releases yet."""


class Desk:
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
    ) -> None:
        self.fleet = fleet
        self.ledger = Ledger(ttl_ns=limits.reservation_ttl_ns, remembered_max=limits.settled_remembered_max)
        self.instance = instance
        self.default_model = default_model
        #: Where we are; endpoints elsewhere carry their pool's handicap.
        self.zone = zone
        #: Instances whose in-flight work is known by sharing, and so is not adopted from heartbeats.
        self.peers: frozenset[str] = frozenset()
        self.limits = limits
        # Without a policy nobody waits: full is a refusal.
        self.policy = policy or Policy(classes=(ClassSpec(hold_ns=0),))
        self.quotas: QuotaBooks = quotas if quotas is not None else Books()
        self.queue = FairQueue(self.policy.bounds)
        self.counts: Counter[str] = Counter()
        self.on_release: Callable[[str, Routed | Reject], None] = _nobody
        self._rng = rng
        self._number = 0
        #: Held requests, whose quota must outlive their wait; when it was last renewed.
        self._waiting: set[str] = set()
        self._renewed_ns = 0

    def admit(
        self, request: Request, tenant: Tenant, *, now_ns: int, key: str = "", degraded: str = ""
    ) -> Routed | Reject | Hold | AskQuota:
        """Decide and enter the reservation; or hold the request until a replica would start it."""
        self._number += 1
        case = resolve(
            request,
            tenant,
            self.fleet,
            self.ledger,
            id=f"{self.instance}-{self._number}",
            default_model=self.default_model,
            reservations_max=self.limits.reservations_max,
            zone=self.zone,
            key=key,
        )
        if isinstance(case, Reject):
            return self._refused(case)
        account = self.policy.accounts.of(tenant.name, key, case.model)
        if not account.scopes:
            return self._go_on(case, None, now_ns=now_ns, degraded=degraded)
        amounts = reserved(case, self.fleet.pools[case.pool], self._price(case.pool))
        idle = borrows(account) and self.idle(case.pool)
        answer = self.quotas.reserve(account, case.id, amounts, now_ns=now_ns, idle_capacity=idle)
        if isinstance(answer, Ask):
            return AskQuota(case, account, amounts, idle, degraded)
        return self._go_on(case, answer, now_ns=now_ns, degraded=degraded)

    def answered(self, asked: AskQuota, answer: Granted | Refused, *, now_ns: int) -> Routed | Reject | Hold:
        """The shared store has answered: the case goes on, or is refused."""
        return self._go_on(asked.case, answer, now_ns=now_ns, degraded=asked.degraded)

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """The client left before the decision reached Envoy."""
        reservation = self.ledger.cancel(reservation_id)
        self.quotas.cancel(reservation_id, now_ns=now_ns)
        if reservation is not None:
            self.counts["cancelled"] += 1
            self.pump(reservation.pool, now_ns=now_ns)

    def leave(self, reservation_id: str, *, now_ns: int) -> None:
        """The client of a held request has left."""
        if self.queue.remove(reservation_id) is not None:
            self.counts["held.left"] += 1
        self._waiting.discard(reservation_id)
        self.quotas.cancel(reservation_id, now_ns=now_ns)

    def settle(self, outcome: Outcome, *, now_ns: int) -> bool:
        """Take a record into the books; true when it ended a request for the first time.

        A heartbeat renews the reservation, or adopts one that another process made: after a restart
        the ledger knows of the streams that outlived its predecessor.
        """
        reservation = outcome.reservation
        if not outcome.final:
            self._heartbeat(outcome, now_ns)
            self.quotas.renew(reservation.id, now_ns=now_ns)
            return False
        neighbours = self._neighbours(outcome)
        if not self.ledger.first_end(reservation.id):
            self.counts["settled.duplicate"] += 1
            return False
        self.counts[f"settled.{outcome.end.value}"] += 1
        self._judge(outcome, now_ns)
        self._charge(outcome, neighbours, now_ns)
        self._learn(outcome)
        self.pump(reservation.pool, now_ns=now_ns)
        return True

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release what nobody has heard of for the reservation's time to live; shed who waited too long."""
        expired = self.ledger.expire(now_ns=now_ns)
        if expired:
            self.counts["expired"] += len(expired)
        self._renew_waiting(now_ns)
        self.quotas.expire(now_ns=now_ns)
        # The room that this made first: nobody is shed for want of it.
        for pool in {reservation.pool for reservation in expired}:
            self.pump(pool, now_ns=now_ns)
        self._shed(self.queue.expire(now_ns=now_ns), now_ns)
        return expired

    def pump(self, pool: str, *, now_ns: int) -> None:
        """Release held requests of a pool to whatever has room now."""
        for reservation_id, decision in self._pump(pool, now_ns):
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
        self, case: Case, answer: Granted | Refused | None, *, now_ns: int, degraded: str
    ) -> Routed | Reject | Hold:
        headers = answer.figures.headers() if answer is not None else ()
        if isinstance(answer, Refused):
            return self._refused(_spent(answer, headers))
        if isinstance(answer, Granted) and answer.borrowed:
            self.counts["borrowed"] += 1
        # Nobody goes past those who wait for the same pool, unless what it asks for costs no place.
        if case.permits and self.queue.by_pool.get(case.pool) and not degraded:
            return self._hold(case, headers, now_ns)
        try:
            placed = place(case, self.fleet, now_ns=now_ns, rng=self._rng, degraded=degraded)
        except Exception:
            # Decided again with less, or not at all: under another id in either case.
            self.quotas.cancel(case.id, now_ns=now_ns)
            raise
        if isinstance(placed, Full):
            return self._hold(case, headers, now_ns)
        if isinstance(placed, Reject):
            self.quotas.cancel(case.id, now_ns=now_ns)
            return self._refused(placed)
        if case.permits:
            self.queue.charge(
                case.tenant.name,
                pool=case.pool,
                klass=self.policy.rank(case.tenant.service_class),
                weight=self._weight(case.tenant.name),
                work=case.work,
            )
        self._enter(placed, now_ns)
        self.counts["routed.degraded" if degraded else "routed"] += 1
        return replace(placed, headers=headers) if headers else placed

    def _hold(self, case: Case, headers: tuple[tuple[str, str], ...], now_ns: int) -> Routed | Reject | Hold:
        spec = self.policy.classes[self.policy.rank(case.tenant.service_class)]
        if spec.hold_ns <= 0 or not case.permits:
            self.quotas.cancel(case.id, now_ns=now_ns)
            return self._refused(full(case))
        until_ns = now_ns + spec.hold_ns
        held = Held(
            id=case.id,
            tenant=case.tenant.name,
            weight=self._weight(case.tenant.name),
            klass=self.policy.rank(case.tenant.service_class),
            pool=case.pool,
            work=case.work,
            arrived_ns=now_ns,
            shed_at_ns=until_ns,
            ttft_deadline_ns=now_ns + spec.ttft_ns,
            permits=case.permits,
            kin=case.kin,
            payload=(case, headers),
        )
        self.counts["held"] += 1
        self._waiting.add(case.id)
        own: Routed | Reject | None = None
        for shed in self.queue.push(held, now_ns=now_ns):
            turned_away = self._turned_away(shed, now_ns)
            if shed.held.id == case.id:
                own = turned_away
            else:
                self.on_release(shed.held.id, turned_away)
        for reservation_id, decision in self._pump(case.pool, now_ns):
            if reservation_id == case.id:
                own = decision
            else:
                self.on_release(reservation_id, decision)
        return own if own is not None else Hold(id=case.id, until_ns=until_ns)

    def _pump(self, pool: str, now_ns: int) -> list[tuple[str, Routed | Reject]]:
        """Take who goes next, while anybody fits."""
        released: list[tuple[str, Routed | Reject]] = []

        def fits(held: Held) -> Routed | Reject | None:
            case: Case = held.payload[0]
            placed = self._placed(case, now_ns)
            return None if isinstance(placed, Full) else placed

        while len(released) < RELEASES_MAX:
            taken: tuple[Held, Routed | Reject] | None = self.queue.take(pool, fits, now_ns=now_ns)
            if taken is None:
                break
            held, placed = taken
            released.append((held.id, self._release(held, placed, now_ns)))
            if isinstance(placed, Routed) and held.kin is not None:
                released += self._pump_kin(held, placed, RELEASES_MAX - len(released), now_ns)
        return released

    def _pump_kin(
        self, held: Held, placed: Routed, most: int, now_ns: int
    ) -> list[tuple[str, Routed | Reject]]:
        """Those that begin alike go along to the same replica, within the fairness slack."""
        endpoint = self.fleet.endpoint(held.pool, placed.reservation.address)
        released: list[tuple[str, Routed | Reject]] = []

        def fits(other: Held) -> Routed | None:
            case: Case = other.payload[0]
            there = self._placed(case, now_ns, only=endpoint)
            return there if isinstance(there, Routed) else None

        while endpoint is not None and len(released) < most:
            taken: tuple[Held, Routed] | None = self.queue.take_kin(held, fits, now_ns=now_ns)
            if taken is None:
                break
            self.counts["released.kin"] += 1
            released.append((taken[0].id, self._release(taken[0], taken[1], now_ns)))
        return released

    def _placed(self, case: Case, now_ns: int, *, only: Endpoint | None = None) -> Routed | Reject | Full:
        """Where a held case goes; a fault must lose neither it nor the others of the same event."""
        for degraded in ("", "internal error"):
            try:
                return place(case, self.fleet, now_ns=now_ns, rng=self._rng, degraded=degraded, only=only)
            except Exception:  # noqa: BLE001 (law: every exception becomes a decision)
                self.counts["exception.release"] += 1
        message = "the gateway could not release this request"
        return Reject(status=503, code="internal", message=message, retry_after_s=1)

    def _renew_waiting(self, now_ns: int) -> None:
        """A hold may last longer than a reservation of quota lives unheard of."""
        if now_ns - self._renewed_ns >= self.limits.reservation_ttl_ns // RENEWALS:
            self._renewed_ns = now_ns
            for reservation_id in self._waiting:
                self.quotas.renew(reservation_id, now_ns=now_ns)

    def _release(self, held: Held, placed: Routed | Reject, now_ns: int) -> Routed | Reject:
        self._waiting.discard(held.id)
        if isinstance(placed, Reject):
            self.quotas.cancel(held.id, now_ns=now_ns)
            return self._refused(placed)
        self._enter(placed, now_ns)
        self.counts["routed"] += 1
        self.counts["released"] += 1
        headers: tuple[tuple[str, str], ...] = held.payload[1]
        return replace(placed, headers=headers) if headers else placed

    def _shed(self, sheds: list[Shed], now_ns: int) -> None:
        for shed in sheds:
            self.on_release(shed.held.id, self._turned_away(shed, now_ns))

    def _turned_away(self, shed: Shed, now_ns: int) -> Reject:
        self.counts["shed"] += 1
        self._waiting.discard(shed.held.id)
        self.quotas.cancel(shed.held.id, now_ns=now_ns)
        waited_s = (now_ns - shed.held.arrived_ns) / 1e9
        message = f"no replica of pool {shed.held.pool!r} had room within {waited_s:.1f} s"
        return self._refused(overloaded(message, max(1, shed.retry_after_s)))

    def _enter(self, decision: Routed, now_ns: int) -> None:
        reservation = decision.reservation
        endpoint = self.fleet.endpoint(reservation.pool, reservation.address)
        assert endpoint is not None, reservation.address
        pool = self.fleet.pools[reservation.pool]
        endpoint.picked = self._number
        pool.turn = max(pool.turn, endpoint.turn)
        endpoint.turn = pool.turn + 1.0 / endpoint.weight
        self.ledger.enter(reservation, endpoint, now_ns=now_ns)

    def _refused(self, reject: Reject) -> Reject:
        self.counts[f"rejected.{reject.code}"] += 1
        return reject

    def _weight(self, tenant: str) -> float:
        return self.policy.weights.get(tenant, 1.0)

    def _price(self, pool: str) -> Price:
        return self.policy.prices.get(pool, FREE)

    def _neighbours(self, outcome: Outcome) -> int:
        """Requests that shared the replica with one that has just ended, itself included."""
        endpoint = self.ledger.endpoint_of(outcome.reservation.id)
        return max(1, endpoint.load_requests) if endpoint is not None else 1

    def _charge(self, outcome: Outcome, neighbours: int, now_ns: int) -> None:
        reservation = outcome.reservation
        pool = self.fleet.pools.get(reservation.pool)
        gpu_ms = outcome.duration_ns / 1e6 / neighbours if outcome.duration_ns else None
        amounts = used(outcome, pool, self._price(reservation.pool), gpu_ms=gpu_ms)
        account = self.policy.accounts.of(reservation.tenant, reservation.key, reservation.model)
        if account.scopes:
            self.quotas.settle(reservation.id, amounts, now_ns=now_ns, account=account)
        if not reservation.permits:
            return
        if pool is not None and gpu_ms is not None and outcome.end is End.OK:
            pool.calibration.saw_gpu(gpu_ms, amounts.input_tokens, amounts.output_tokens)
        if not reservation.id.startswith(f"{self.instance}-"):
            # Charged in another service's queue: there is nothing to correct in ours.
            return
        self.queue.settled(
            reservation.tenant,
            pool=reservation.pool,
            klass=self.policy.rank(reservation.service_class),
            weight=self._weight(reservation.tenant),
            predicted=Work(reservation.input_tokens, reservation.output_tokens),
            actual=Work(amounts.input_tokens, amounts.output_tokens),
        )

    def _heartbeat(self, outcome: Outcome, now_ns: int) -> None:
        reservation = outcome.reservation
        serving = self.fleet.endpoint(reservation.pool, outcome.served_by or reservation.address)
        if self.ledger.renew(reservation.id, now_ns=now_ns):
            # Between two attempts nobody serves it: the load stays where it was.
            moved = outcome.served_by and self.ledger.endpoint_of(reservation.id) is not serving
            if serving is not None and moved:
                self.ledger.move(reservation.id, serving)
                self.counts["moved"] += 1
        elif (
            serving is not None
            and not self.ledger.ended(reservation.id)
            and reservation.id.partition("-")[0] not in self.peers
            and len(self.ledger) < self.limits.reservations_max
        ):
            self.ledger.enter(reservation, serving, now_ns=now_ns)
            self.counts["adopted"] += 1

    def _judge(self, outcome: Outcome, now_ns: int) -> None:
        """Passive health: who answered is trusted, who made Envoy go elsewhere is suspect."""
        pool, chosen = outcome.reservation.pool, outcome.reservation.address
        served = self.fleet.endpoint(pool, outcome.served_by)
        first = self.fleet.endpoint(pool, chosen)
        if served is not None and outcome.end in (End.OK, End.REFUSED):
            served.succeeded()
            self.fleet.answered(served, outcome, now_ns=now_ns, failed=False)
        retried_elsewhere = outcome.attempts > 1 and outcome.served_by != chosen
        failed_here = outcome.end is End.ERROR and outcome.served_by in ("", chosen)
        if first is not None and (retried_elsewhere or failed_here):
            first.failed(now_ns)
            self.fleet.answered(first, outcome, now_ns=now_ns, failed=True)

    def _learn(self, outcome: Outcome) -> None:
        """Only whole answers teach: a cut stream's length says nothing of what it would have been."""
        reservation = outcome.reservation
        pool = self.fleet.pools.get(reservation.pool)
        if pool is None or outcome.end is not End.OK or reservation.permits == 0:
            return
        if outcome.prompt_tokens is not None:
            pool.calibration.saw_prompt(reservation.prompt_bytes, outcome.prompt_tokens)
        if outcome.output_tokens is not None:
            pool.calibration.saw_output(outcome.output_tokens // max(1, reservation.permits))


FREE = Price()


def _spent(answer: Refused, headers: tuple[tuple[str, str], ...]) -> Reject:
    """A quota's 429, which says which limit and when."""
    scope = "" if answer.scope == "tenant" else f" of {answer.scope.replace(':', ' ', 1)}"
    return Reject(
        status=429,
        code=QUOTA_EXCEEDED,
        message=f"the quota {answer.limit}{scope} is spent",
        retry_after_s=max(1, math.ceil(answer.retry_after_s)),
        headers=headers,
    )
