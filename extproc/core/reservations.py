"""The one reservation table: by id, what is reserved; heard of, ended once, lapsed in order.

Owns the life of a reservation: put → renewed, any number of times → ended, dropped, or lapsed and then
perhaps ended late. An id ends once, whoever put it here; the latest that ended are remembered. Knows nothing
of what is reserved: the entries of the ledger, of the quota books and of Redis's are their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, Iterator, ValuesView
from typing import Generic, Literal, Protocol, TypeVar


class Reserved(Protocol):
    """What a reservation holds; `heard_ns` is when it was last heard of."""

    heard_ns: int


#: What the end of an id found: a reservation that ran; one that had lapsed, for the first time; nothing
#: (another process's, or older than what is remembered); or that it has ended before.
Ending = Literal["running", "late", "unknown", "again"]

E = TypeVar("E", bound=Reserved)


class Reservations(Generic[E]):
    """Reservations by id, oldest heard of first. Not thread-safe (one event loop owns it).

    One that is not renewed for `ttl_ns` lapses; `remembered_max` ids that have ended are known as such. Both
    may change at any time.
    """

    def __init__(self, *, ttl_ns: int, remembered_max: int) -> None:
        self.ttl_ns = ttl_ns
        self.remembered_max = remembered_max
        self._running: OrderedDict[str, E] = OrderedDict()
        #: Ended ids, each with what may still be ended late.
        self._ended: OrderedDict[str, E | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, reservation_id: str) -> bool:
        return reservation_id in self._running

    def get(self, reservation_id: str) -> E | None:
        """The entry of a reservation that runs."""
        return self._running.get(reservation_id)

    def items(self) -> ItemsView[str, E]:
        """What runs, by id, oldest heard of first."""
        return self._running.items()

    def entries(self) -> ValuesView[E]:
        """The same without the ids."""
        return self._running.values()

    def ended(self, reservation_id: str) -> bool:
        """Whether the id is remembered as ended."""
        return reservation_id in self._ended

    def known(self, reservation_id: str) -> bool:
        """Whether the id runs or is remembered as ended."""
        return reservation_id in self._running or reservation_id in self._ended

    def lapsed(self, reservation_id: str) -> E | None:
        """The entry of one that has lapsed and may still be ended."""
        return self._ended.get(reservation_id)

    def put(self, reservation_id: str, entry: E) -> None:
        """A reservation begins to run, heard of just now."""
        self._running[reservation_id] = entry

    def renew(self, reservation_id: str, *, now_ns: int) -> bool:
        """It still runs; false when it is not here."""
        entry = self._running.get(reservation_id)
        if entry is None:
            return False
        entry.heard_ns = now_ns
        self._running.move_to_end(reservation_id)
        return True

    def drop(self, reservation_id: str) -> E | None:
        """It never was: the id may be put again. None when it is not here."""
        return self._running.pop(reservation_id, None)

    def end(self, reservation_id: str) -> tuple[Ending, E | None]:
        """An id is said to have ended: what that finds, and the entry where there is one to settle."""
        entry = self._running.pop(reservation_id, None)
        ended = self._ended
        if entry is None and reservation_id in ended:
            late = ended[reservation_id]
            ended[reservation_id] = None
            return ("again" if late is None else "late"), late
        ended[reservation_id] = None
        if len(ended) > self.remembered_max:
            self._forget()
        return ("unknown" if entry is None else "running"), entry

    def lapse(self, *, now_ns: int) -> Iterator[tuple[str, E]]:
        """Take out what was not heard of for `ttl_ns`; whoever lets it be ended late calls `remember`."""
        while self._running:
            reservation_id, entry = next(iter(self._running.items()))
            if now_ns - entry.heard_ns < self.ttl_ns:
                break
            del self._running[reservation_id]
            yield reservation_id, entry

    def remember(self, reservation_id: str, late: E | None = None) -> None:
        """The id has ended; `late` is what its end may still settle, once."""
        self._ended[reservation_id] = late
        self._forget()

    def _forget(self) -> None:
        # More than one at a time only after a reload has lowered the bound.
        while len(self._ended) > self.remembered_max:
            self._ended.popitem(last=False)
