"""The ledger: work in flight, entered at the decision and released exactly once.

Owns the reservations and the sums on their endpoints. What was entered is what is released (the
reservation is captured with its endpoint), so no order of settle, duplicate, expiry or reload can
take a sum below zero or leave one above it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from extproc.core.endpoint import Endpoint
from extproc.core.outcome import Reservation


@dataclass(slots=True)
class _Entry:
    reservation: Reservation
    endpoint: Endpoint
    heard_ns: int


class Ledger:
    """Reservations by id, oldest heard of first; not thread-safe (one event loop owns it)."""

    def __init__(self, *, ttl_ns: int, remembered_max: int) -> None:
        self.ttl_ns = ttl_ns
        self.remembered_max = remembered_max
        #: Requests in flight by tenant.
        self.by_tenant: Counter[str] = Counter()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, reservation_id: str) -> bool:
        return reservation_id in self._entries

    def enter(self, reservation: Reservation, endpoint: Endpoint, *, now_ns: int) -> None:
        """Put a reservation on an endpoint; its id must be new."""
        assert reservation.id not in self._entries, reservation.id
        self._entries[reservation.id] = _Entry(reservation, endpoint, now_ns)
        self._carry(reservation, endpoint)

    def renew(self, reservation_id: str, *, now_ns: int) -> bool:
        """The request still runs; false when it is not in the ledger."""
        entry = self._entries.get(reservation_id)
        if entry is None:
            return False
        entry.heard_ns = now_ns
        self._entries.move_to_end(reservation_id)
        return True

    def move(self, reservation_id: str, endpoint: Endpoint) -> None:
        """A retry took the request to another endpoint: its load goes along."""
        entry = self._entries[reservation_id]
        self._release(entry)
        entry.endpoint = endpoint
        self._carry(entry.reservation, endpoint)

    def endpoint_of(self, reservation_id: str) -> Endpoint | None:
        """The endpoint that carries a reservation now."""
        entry = self._entries.get(reservation_id)
        return entry.endpoint if entry else None

    def first_end(self, reservation_id: str) -> bool:
        """Whether this is the first time that the id is said to have ended; releases what is held.

        True exactly once for an id (within the memory of `remembered_max` ids), whether or not this
        process made the reservation: another's record is counted once as well.
        """
        if reservation_id in self._ended:
            return False
        self._remember(reservation_id)
        entry = self._entries.pop(reservation_id, None)
        if entry is not None:
            self._release(entry)
        return True

    def ended(self, reservation_id: str) -> bool:
        """Whether the id is remembered as ended."""
        return reservation_id in self._ended

    def cancel(self, reservation_id: str) -> Reservation | None:
        """Release a reservation whose decision never reached Envoy; None when it is not held."""
        entry = self._entries.pop(reservation_id, None)
        if entry is None:
            return None
        self._release(entry)
        return entry.reservation

    def expire(self, *, now_ns: int) -> list[Reservation]:
        """Release every reservation not heard of for `ttl_ns`.

        An expired id is not remembered as ended: should its record still come, it counts.
        """
        expired = []
        while self._entries:
            reservation_id, entry = next(iter(self._entries.items()))
            if now_ns - entry.heard_ns < self.ttl_ns:
                break
            del self._entries[reservation_id]
            self._release(entry)
            expired.append(entry.reservation)
        return expired

    def _carry(self, reservation: Reservation, endpoint: Endpoint) -> None:
        self.by_tenant[reservation.tenant] += 1
        endpoint.requests += 1
        endpoint.permits += reservation.permits
        endpoint.tokens += reservation.input_tokens + reservation.output_tokens

    def _release(self, entry: _Entry) -> None:
        endpoint, reservation = entry.endpoint, entry.reservation
        left = self.by_tenant[reservation.tenant] - 1
        if left:
            self.by_tenant[reservation.tenant] = left
        else:
            del self.by_tenant[reservation.tenant]
        endpoint.requests -= 1
        endpoint.permits -= reservation.permits
        endpoint.tokens -= reservation.input_tokens + reservation.output_tokens
        assert endpoint.requests >= 0, endpoint
        assert endpoint.permits >= 0, endpoint
        assert endpoint.tokens >= 0, endpoint

    def _remember(self, reservation_id: str) -> None:
        self._ended[reservation_id] = None
        # More than one at a time only after a reload has lowered the bound.
        while len(self._ended) > self.remembered_max:
            self._ended.popitem(last=False)
