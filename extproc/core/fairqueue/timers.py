"""What is due when: held requests by a time, forgetting those that have left."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from extproc.core.fairqueue.flow import DEAD_MAX, FlowEntry


class Timers:
    """Requests by the time at which something happens to them; records of the gone are dropped lazily."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, FlowEntry]] = []

    def set(self, entry: FlowEntry, at_ns: int) -> None:
        """Have it come up at a time; once only at a time for each request."""
        heappush(self._heap, (at_ns, entry.number, entry))

    def trim(self, living: int) -> None:
        """Drop the dead when they outnumber the living."""
        if len(self._heap) > 2 * living + DEAD_MAX:
            self._heap[:] = [record for record in self._heap if record[2].flow is not None]
            heapify(self._heap)

    def next_ns(self) -> int | None:
        """When the next is due."""
        heap = self._heap
        while heap and heap[0][2].flow is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now_ns: int) -> tuple[int, FlowEntry] | None:
        """The next that is due by now, with the time it was set for."""
        at_ns = self.next_ns()
        if at_ns is None or at_ns > now_ns:
            return None
        return at_ns, heappop(self._heap)[2]
