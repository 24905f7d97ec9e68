"""The ledger: work in flight, entered at the decision and released exactly once.

Owns the reservations and the sums on their endpoints. What was entered is what is released (the
reservation is captured with its endpoint), so no order of settle, duplicate, expiry or reload can
take a sum below zero or leave one above it. Each request is in prefill until its first token is heard
of, or is overdue; then in decode.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import msgspec

from extproc.core.endpoint import Endpoint
from extproc.core.load import UNHEARD_OTHER, Decoded, Job, Plan, unheard_ns
from extproc.core.next_step import NextStep
from extproc.core.outcome import Reservation
from extproc.core.reservations import Reservations

#: Timers of requests that are gone may outnumber those that are in flight by so many.
DEAD_TIMERS_MAX = 256
#: How long a request's permits are kept free where it may be tried next: a replica that is dead, refuses or
#: is full says so at once. An answer that is not streamed must not hold two replicas' permits to its end.
STANDBY_NS = 2_000_000_000


@dataclass(slots=True)
class InFlight:
    """A request in flight: where, since when, and what it was expected to be."""

    reservation: Reservation
    endpoint: Endpoint
    heard_ns: int
    job: Job
    #: A retry took it elsewhere: its times say nothing of an endpoint.
    moved: bool = False
    #: It was in flight before this process was.
    adopted: bool = False
    #: Its first token was heard of, not only taken for come.
    heard_first: bool = False
    #: The time of its first token was learnt from, when it came.
    timed: bool = False
    #: What its first token's lateness multiplied its endpoint's factor by.
    late: float = 1.0
    #: Where it may be tried next, its permits kept there; nowhere once it is answered.
    standby: Sequence[Endpoint] = ()


class EndedRequest(msgspec.Struct, frozen=True):
    """A request that has ended: its entry, None where this ledger had none, and how its decode went."""

    entry: InFlight | None
    decoded: Decoded | None


NOT_HELD = EndedRequest(None, None)


class Ledger(Reservations[InFlight]):
    """The requests in flight, and what they are on their endpoints.

    An id that has lapsed is not remembered as ended: should its record still come, it counts.
    """

    def __init__(self, *, ttl_ns: int, remembered_max: int, next_step: NextStep | None = None) -> None:
        super().__init__(ttl_ns=ttl_ns, remembered_max=remembered_max)
        #: Hears by when somebody must ask what is overdue.
        self._next_step = next_step or NextStep()
        #: Requests in flight by tenant.
        self.by_tenant: Counter[str] = Counter()
        #: And by pool: (tenant, service class), those that take a place.
        self.by_pool: dict[str, Counter[tuple[str, str]]] = {}
        #: (when a request counts as running though no first token was heard of, its id).
        self._unheard: list[tuple[int, str]] = []
        #: (when what is kept for its retries is given back, a request's id), earliest first.
        self._standing: deque[tuple[int, str]] = deque()

    def enter(
        self,
        reservation: Reservation,
        endpoint: Endpoint,
        *,
        now_ns: int,
        plan: Plan | None = None,
        standby: Sequence[Endpoint] = (),
    ) -> None:
        """Put a reservation on an endpoint; its id must be new. Without a plan it was adopted: it runs.

        `standby` are the endpoints that it may be tried on next.
        """
        assert reservation.id not in self, reservation.id
        adopted = plan is None
        if plan is None:
            plan = _unplanned(reservation)
        job = self._carry(reservation, endpoint, plan, now_ns)
        entry = InFlight(reservation, endpoint, now_ns, job, adopted=adopted)
        self.put(reservation.id, entry)
        self._keep(entry, standby, now_ns)
        if adopted or not reservation.permits:
            endpoint.load.first(reservation.id, job, now_ns=now_ns)
        else:
            self._await_first(entry)

    def answering(self, reservation_id: str) -> None:
        """Its answer has begun: it will be tried nowhere else."""
        entry = self.get(reservation_id)
        if entry is not None:
            _stand_down(entry)

    def first_token(self, reservation_id: str, *, now_ns: int) -> InFlight | None:
        """Its first token came; the entry when that was news: in flight, and in prefill until now."""
        entry = self.get(reservation_id)
        if entry is None or not entry.job.queued:
            return None
        entry.endpoint.load.first(reservation_id, entry.job, now_ns=now_ns)
        return entry

    def past_retries(self, *, now_ns: int) -> None:
        """Give back what is kept for retries that are not to be expected any more."""
        while self._standing and self._standing[0][0] <= now_ns:
            entry = self.get(self._standing.popleft()[1])
            if entry is not None:
                _stand_down(entry)

    def overdue(self, *, now_ns: int) -> list[InFlight]:
        """Count as running whose first token should long have come; those that this was news of."""
        late: list[InFlight] = []
        while self._unheard and self._unheard[0][0] <= now_ns:
            due_ns, reservation_id = heappop(self._unheard)
            entry = self.get(reservation_id)
            if entry is not None and entry.job.queued:
                # Since it was placed a first token may have been heard of: then this one will be, too.
                later_ns = entry.job.placed_ns + unheard_ns(entry.job.plan, times=_patience(entry))
                if later_ns > max(due_ns, now_ns):
                    heappush(self._unheard, (later_ns, reservation_id))
                    continue
            entry = self.first_token(reservation_id, now_ns=now_ns)
            if entry is not None:
                late.append(entry)
        return late

    def next_timer_ns(self) -> int | None:
        """When `past_retries` or `overdue` has something to do next; None where nothing is waited for."""
        standing, unheard = self._standing, self._unheard
        while standing and ((entry := self.get(standing[0][1])) is None or not entry.standby):
            standing.popleft()
        while unheard and ((entry := self.get(unheard[0][1])) is None or not entry.job.queued):
            heappop(unheard)
        return min((timers[0][0] for timers in (standing, unheard) if timers), default=None)

    def move(self, reservation_id: str, endpoint: Endpoint, *, now_ns: int) -> None:
        """A retry took the request to another endpoint: its load goes along, and its prefill begins anew."""
        entry = self._running[reservation_id]
        left = [each for each in entry.standby if each is not endpoint]
        self._release(reservation_id, entry, now_ns)
        entry.endpoint = endpoint
        entry.moved = True
        self._keep(entry, left, now_ns)
        running = not entry.job.queued
        entry.job = self._carry(entry.reservation, endpoint, entry.job.plan, now_ns)
        if running:
            endpoint.load.first(reservation_id, entry.job, now_ns=now_ns)
        else:
            self._await_first(entry)

    def endpoint_of(self, reservation_id: str) -> Endpoint | None:
        """The endpoint that carries a reservation now."""
        entry = self.get(reservation_id)
        return entry.endpoint if entry else None

    def first_end(self, reservation_id: str, *, now_ns: int) -> EndedRequest | None:
        """The first time that the id is said to have ended: releases what is held; None ever after.

        Exactly once for an id (within the memory of `remembered_max` ids), whether or not this process
        made the reservation: another's record is counted once as well.
        """
        ending, entry = self.end(reservation_id)
        if ending == "again":
            return None
        return (
            NOT_HELD if entry is None else EndedRequest(entry, self._release(reservation_id, entry, now_ns))
        )

    def cancel(self, reservation_id: str, *, now_ns: int) -> Reservation | None:
        """Release a reservation whose decision never reached Envoy; None when it is not held."""
        entry = self.drop(reservation_id)
        if entry is None:
            return None
        self._release(reservation_id, entry, now_ns)
        return entry.reservation

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release every reservation not heard of for `ttl_ns`."""
        expired = []
        for reservation_id, entry in self.lapse(now_ns=now_ns):
            self._release(reservation_id, entry, now_ns)
            expired.append(entry.reservation)
        return expired

    def _carry(self, reservation: Reservation, endpoint: Endpoint, plan: Plan, now_ns: int) -> Job:
        self.by_tenant[reservation.tenant] += 1
        if reservation.permits:
            running = self.by_pool.get(reservation.pool)
            if running is None:
                running = self.by_pool[reservation.pool] = Counter()
            running[reservation.tenant, reservation.service_class] += 1
        if endpoint.adapters is not None:
            endpoint.adapters.begins(reservation.model, now_ns=now_ns)
        endpoint.requests += 1
        endpoint.permits += reservation.permits
        endpoint.tokens += reservation.input_tokens + reservation.output_tokens
        return endpoint.load.enter(plan, reservation.permits, now_ns=now_ns)

    def _release(self, reservation_id: str, entry: InFlight, now_ns: int) -> Decoded | None:
        endpoint, reservation = entry.endpoint, entry.reservation
        _stand_down(entry)
        if reservation.permits:
            running, name = self.by_pool[reservation.pool], (reservation.tenant, reservation.service_class)
            running[name] -= 1
            if not running[name]:
                del running[name]
                if not running:
                    del self.by_pool[reservation.pool]
        left = self.by_tenant[reservation.tenant] - 1
        if left:
            self.by_tenant[reservation.tenant] = left
        else:
            del self.by_tenant[reservation.tenant]
        if endpoint.adapters is not None:
            endpoint.adapters.ends(reservation.model, now_ns=now_ns)
        endpoint.requests -= 1
        endpoint.permits -= reservation.permits
        endpoint.tokens -= reservation.input_tokens + reservation.output_tokens
        assert endpoint.requests >= 0, endpoint
        assert endpoint.permits >= 0, endpoint
        assert endpoint.tokens >= 0, endpoint
        return endpoint.load.leave(reservation_id, entry.job, now_ns=now_ns)

    def _await_first(self, entry: InFlight) -> None:
        reservation = entry.reservation
        if reservation.stream:
            entry.endpoint.load.awaits(entry.job)
        due_ns = entry.job.placed_ns + unheard_ns(entry.job.plan, times=_patience(entry))
        heappush(self._unheard, (due_ns, reservation.id))
        self._next_step.by(due_ns)
        if len(self._unheard) > 2 * len(self) + DEAD_TIMERS_MAX:
            queued = {name for name, entry in self.items() if entry.job.queued}
            self._unheard = [timer for timer in self._unheard if timer[1] in queued]
            heapify(self._unheard)

    def _keep(self, entry: InFlight, standby: Sequence[Endpoint], now_ns: int) -> None:
        """Keep its permits free where it may be tried next, for a while."""
        _stand_by(entry, standby)
        if entry.standby:
            self._standing.append((now_ns + STANDBY_NS, entry.reservation.id))
            self._next_step.by(now_ns + STANDBY_NS)


def _patience(entry: InFlight) -> float:
    """How many times its prediction a first token is waited for, by whether any is heard of in its pool."""
    return entry.endpoint.speed.model.admission.patience if entry.reservation.stream else UNHEARD_OTHER


def _stand_by(entry: InFlight, endpoints: Sequence[Endpoint]) -> None:
    if not entry.reservation.permits:
        return
    entry.standby = tuple(endpoints)
    for endpoint in entry.standby:
        endpoint.stand_by(entry.endpoint.address, entry.reservation.permits)


def _stand_down(entry: InFlight) -> None:
    for endpoint in entry.standby:
        endpoint.stand_down(entry.endpoint.address, entry.reservation.permits)
    entry.standby = ()


def _unplanned(reservation: Reservation) -> Plan:
    """What is known of a request that another process placed: the ticket's tokens."""
    cached = min(reservation.cached_tokens, reservation.input_tokens)
    return Plan(
        uncached_tokens=reservation.input_tokens - cached,
        cached_tokens=cached,
        prefill_ms=0.0,
        kv_tokens=reservation.input_tokens + reservation.output_tokens,
        output_tokens=reservation.output_tokens / max(1, reservation.permits),
    )
