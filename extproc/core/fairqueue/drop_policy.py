"""Who must go when a class or the whole queue is full: the newest of whoever holds most for its weight.

Dropping from the longest queue (McKenney, "Stochastic Fairness Queueing", INFOCOM 1990), not simply the
newest: the newest may be the first of a good tenant, in a queue that another has filled.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from extproc.core.fairqueue.flow import DEAD_MAX, FlowEntry


class _Share:
    """What one tenant holds in a class, oldest first."""

    __slots__ = ("entries", "weight")

    def __init__(self) -> None:
        self.entries: dict[int, FlowEntry] = {}
        self.weight = 1.0

    @property
    def fullness(self) -> float:
        return len(self.entries) / self.weight

    @property
    def newest(self) -> FlowEntry:
        return next(reversed(self.entries.values()))


class DropPolicy:
    """The held requests of one service class over all pools."""

    __slots__ = ("_fullest", "_shares", "size")

    def __init__(self) -> None:
        self.size = 0
        self._shares: dict[str, _Share] = {}
        #: (−fullness, −number, tenant): each tenant has a record with its fullness or one that is above.
        self._fullest: list[tuple[float, int, str]] = []

    def add(self, entry: FlowEntry) -> None:
        """Count a request in."""
        held = entry.held
        share = self._shares.get(held.tenant)
        if share is None:
            share = self._shares[held.tenant] = _Share()
        share.entries[entry.number] = entry
        share.weight = held.weight
        self.size += 1
        heappush(self._fullest, (-share.fullness, -entry.number, held.tenant))
        if len(self._fullest) > 2 * len(self._shares) + DEAD_MAX:
            self._fullest[:] = [
                (-each.fullness, -each.newest.number, tenant) for tenant, each in self._shares.items()
            ]
            heapify(self._fullest)

    def drop(self, entry: FlowEntry) -> None:
        """Count a request out."""
        tenant = entry.held.tenant
        share = self._shares[tenant]
        del share.entries[entry.number]
        self.size -= 1
        if not share.entries:
            del self._shares[tenant]

    def newest_of(self, tenant: str) -> FlowEntry | None:
        """The newest request that a tenant holds in this class."""
        share = self._shares.get(tenant)
        return share.newest if share is not None else None

    def newest_of_fullest(self) -> FlowEntry:
        """The newest request of the tenant with most requests held over its weight; of equals the newest."""
        while True:
            fullness, _, tenant = self._fullest[0]
            share = self._shares.get(tenant)
            if share is not None and -fullness == share.fullness:
                return share.newest
            heappop(self._fullest)
            if share is not None:
                heappush(self._fullest, (-share.fullness, -share.newest.number, tenant))
