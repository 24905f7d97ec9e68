"""One tenant's held requests at one band of one pool, in the policy's order.

Two heaps: those that are not lost by the policy's key, the lost by arrival. A request that leaves
marks itself; its record is dropped when it comes to the top, or when the dead outnumber the living.

Once the oldest has waited for `Bounds.oldest_after_ns`, every `OLDEST_EVERY`th turn is its, whatever the
policy thinks of it: under lasting load the lost, and under shortest first the long, would wait as long as
they may while later ones are served. So one with m older ones before it goes within that time and
OLDEST_EVERY · (m + 1) turns of its tenant, where it fits.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from extproc.core.fairqueue.queued import NEVER_NS, QueuedRequest

#: Dead records that a heap may carry beyond as many as it has living ones.
DEAD_MAX = 32
#: One in so many of a tenant's turns is its oldest request's, from then on. Each costs one that could still
#: be in time its place.
OLDEST_EVERY = 4


class FlowEntry:
    """A held request's place in the queue; `flow` is None once it has left."""

    __slots__ = (
        "aside",
        "band",
        "flow",
        "held",
        "key",
        "last_ns",
        "lost",
        "lost_ns",
        "number",
        "owed_ns",
        "recorded",
    )

    def __init__(
        self,
        held: QueuedRequest,
        *,
        number: int,
        key: float,
        lost_ns: int,
        last_ns: int,
        owed_ns: int = NEVER_NS,
    ) -> None:
        self.held = held
        #: Counts pushes: the greater is the newer.
        self.number = number
        self.key = key
        self.lost_ns = lost_ns
        self.last_ns = last_ns
        #: From when on it is its tenant's turn now and then, if nobody older waits.
        self.owed_ns = owed_ns
        #: The class it is served as: its own, and one better after each time of ageing.
        self.band = held.klass
        self.lost = False
        self.flow: Flow | None = None
        #: Set aside by `peel`; its record is in a heap all the same.
        self.aside = self.recorded = False


Record = tuple[float, int, FlowEntry]


class Flow:
    """A tenant's requests at one band, and its virtual token counter there.

    `counter` is in tokens over weight. `lifted` is what it was last lifted to: no refund goes below.
    """

    __slots__ = (
        "_dead",
        "_feasible",
        "_lost",
        "_oldest",
        "_turns",
        "counter",
        "lifted",
        "listed_idle",
        "size",
        "stamp",
        "tenant",
        "told_ns",
        "weight",
    )

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.weight = weight
        self.counter = 0.0
        self.lifted = 0.0
        self.size = 0
        #: Of its valid record among the backlogged (priority_band.py).
        self.stamp = 0
        self.listed_idle = False
        #: When the last that was turned away was told to come back.
        self.told_ns = 0
        self._feasible: list[Record] = []
        self._lost: list[Record] = []
        self._oldest: list[Record] = []
        self._dead = 0
        #: Turns since the oldest had one.
        self._turns = 0

    def add(self, entry: FlowEntry) -> None:
        """Take a request in."""
        entry.flow = self
        self.size += 1
        self._put(entry)
        heappush(self._oldest, (entry.held.arrived_ns, entry.number, entry))
        if len(self._oldest) > 2 * self.size + DEAD_MAX:
            self._oldest[:] = [record for record in self._oldest if record[2].flow is self]
            heapify(self._oldest)

    def discard(self, entry: FlowEntry) -> None:
        """Let a request go; O(1), amortised O(log n)."""
        assert entry.flow is self
        entry.flow = None
        self.size -= 1
        self._dead += 1
        if not self.size:
            # In place: an empty flow holds nothing of who has left.
            self._feasible.clear()
            self._lost.clear()
            self._oldest.clear()
            self._dead = self._turns = 0
        elif self._dead > self.size + DEAD_MAX:
            for heap in (self._feasible, self._lost):
                heap[:] = [record for record in heap if record[2].flow is self]
                heapify(heap)
            self._dead = 0

    def served(self, entry: FlowEntry) -> None:
        """One of these has its turn, and is about to leave."""
        self._turns = 0 if self._first() is entry else self._turns + 1

    def peel(self, now_ns: int) -> FlowEntry | None:
        """Set the first request aside, to be put back with `restore`; None when all are aside."""
        if self._turns >= OLDEST_EVERY - 1:
            oldest = self._first()
            if oldest is not None and oldest.owed_ns <= now_ns and not oldest.aside:
                oldest.aside = oldest.recorded = True
                return oldest
        heap = self._feasible
        while heap:
            entry = heappop(heap)[2]
            if entry.flow is not self:
                self._dead -= 1
            elif entry.recorded:
                entry.recorded = False
            elif entry.lost_ns <= now_ns:
                entry.lost = True
                self._put(entry)
            else:
                entry.aside = True
                return entry
        heap = self._lost
        while heap:
            entry = heappop(heap)[2]
            if entry.flow is not self:
                self._dead -= 1
            elif entry.recorded:
                entry.recorded = False
            else:
                entry.aside = True
                return entry
        return None

    def restore(self, entry: FlowEntry) -> None:
        """Put a request back that `peel` has set aside."""
        entry.aside = False
        if not entry.recorded:
            self._put(entry)
        entry.recorded = False

    @property
    def oldest_ns(self) -> int:
        """When the oldest of these came; they are some."""
        oldest = self._first()
        assert oldest is not None, self.tenant
        return oldest.held.arrived_ns

    def _first(self) -> FlowEntry | None:
        """The oldest by arrival."""
        heap = self._oldest
        while heap and heap[0][2].flow is not self:
            heappop(heap)
        return heap[0][2] if heap else None

    def _put(self, entry: FlowEntry) -> None:
        if entry.lost:
            heappush(self._lost, (entry.held.arrived_ns, entry.number, entry))
        else:
            heappush(self._feasible, (entry.key, entry.number, entry))
