"""One tenant's held requests at one level of one pool, in the policy's order.

Two heaps: those that are not lost by the policy's key, the lost by arrival. A request that leaves
marks itself; its record is dropped when it comes to the top, or when the dead outnumber the living.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from extproc.core.fairness.held import Held

#: Dead records that a heap may carry beyond as many as it has living ones.
DEAD_MAX = 32


class Entry:
    """A held request's place in the queue; `lane` is None once it has left."""

    __slots__ = ("held", "key", "lane", "last_ns", "level", "lost", "lost_ns", "number")

    def __init__(self, held: Held, *, number: int, key: float, lost_ns: int, last_ns: int) -> None:
        self.held = held
        #: Counts pushes: the greater is the newer.
        self.number = number
        self.key = key
        self.lost_ns = lost_ns
        self.last_ns = last_ns
        #: The class it is served as: its own, and one better after each time of ageing.
        self.level = held.klass
        self.lost = False
        self.lane: Lane | None = None


Record = tuple[float, int, Entry]


class Lane:
    """A tenant's requests at one level, and its virtual token counter there.

    `counter` is in tokens over weight. `lifted` is what it was last lifted to: no refund goes below.
    """

    __slots__ = (
        "_dead",
        "_feasible",
        "_lost",
        "counter",
        "lifted",
        "listed_idle",
        "size",
        "stamp",
        "tenant",
        "weight",
    )

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.counter = 0.0
        self.lifted = 0.0
        self.size = 0
        #: Of its valid record among the backlogged (level.py).
        self.stamp = 0
        self.listed_idle = False
        self._feasible: list[Record] = []
        self._lost: list[Record] = []
        self._dead = 0

    def add(self, entry: Entry) -> None:
        """Take a request in."""
        entry.lane = self
        self.size += 1
        self._put(entry)

    def discard(self, entry: Entry) -> None:
        """Let a request go; O(1), amortised O(log n)."""
        assert entry.lane is self
        entry.lane = None
        self.size -= 1
        self._dead += 1
        if not self.size:
            # In place: an empty lane holds nothing of who has left.
            self._feasible.clear()
            self._lost.clear()
            self._dead = 0
        elif self._dead > self.size + DEAD_MAX:
            for heap in (self._feasible, self._lost):
                heap[:] = [record for record in heap if record[2].lane is self]
                heapify(heap)
            self._dead = 0

    def peel(self, now_ns: int) -> Entry | None:
        """Set the first request aside, to be put back with `restore`; None when all are aside."""
        heap = self._feasible
        while heap:
            entry = heappop(heap)[2]
            if entry.lane is not self:
                self._dead -= 1
            elif entry.lost_ns <= now_ns:
                entry.lost = True
                self._put(entry)
            else:
                return entry
        heap = self._lost
        while heap:
            entry = heappop(heap)[2]
            if entry.lane is self:
                return entry
            self._dead -= 1
        return None

    def restore(self, entry: Entry) -> None:
        """Put a request back that `peel` has set aside."""
        self._put(entry)

    def _put(self, entry: Entry) -> None:
        if entry.lost:
            heappush(self._lost, (entry.held.arrived_ns, entry.number, entry))
        else:
            heappush(self._feasible, (entry.key, entry.number, entry))
