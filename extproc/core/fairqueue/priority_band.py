"""One band of one pool: virtual token counters over the tenants that wait there.

VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithms 2 and 4): the
backlogged tenant with the least counter goes next; what it gets is added, over its weight; a tenant
that becomes backlogged is lifted to the least counter among the backlogged, or to the counter of the
last that was served when there are none. Ours are charged whole at dispatch, by prediction, and
corrected at the end, because no token passes here.

A class's band also has guests: aged requests of the classes below, with counters of their own there.
"""

from __future__ import annotations

from collections.abc import Generator
from heapq import heapify, heappop, heappush

from extproc.core.fairqueue.flow import DEAD_MAX, Flow, FlowEntry

_Ranked = tuple[float, int, Flow]


class PriorityBand:
    """The flows of one band by counter. `size` requests wait in `backlogged` flows of `weight` in sum."""

    __slots__ = ("_forgotten", "_idle", "_last", "_ranked", "_stamp", "backlogged", "flows", "size", "weight")

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self.size = 0
        self.backlogged = 0
        self.weight = 0.0
        self._ranked: list[_Ranked] = []
        #: One record for each idle flow, perhaps with an older counter: whom to forget first.
        self._idle: list[_Ranked] = []
        self._stamp = 0
        self._last: Flow | None = None
        #: The greatest counter forgotten: who is unknown begins there, so to be forgotten gains nothing.
        self._forgotten = 0.0

    def floor(self) -> float:
        """What a tenant that becomes backlogged is lifted to."""
        least = self._least()
        if least is not None:
            return least.counter
        return self._last.counter if self._last is not None else 0.0

    def enter(self, entry: FlowEntry, *, counters_max: int) -> None:
        """A request begins to wait at this band."""
        held = entry.held
        flow = self._flow(held.tenant, held.weight, counters_max)
        if not flow.size:
            self._lift(flow)
            self.backlogged += 1
            self.weight += flow.weight
            flow.add(entry)
            self._rank(flow)
        else:
            flow.add(entry)
        self.size += 1

    def leave(self, entry: FlowEntry) -> Flow:
        """A request waits here no more, for whatever cause; its flow."""
        flow = entry.flow
        assert flow is not None
        flow.discard(entry)
        self.size -= 1
        if not flow.size:
            self.backlogged -= 1
            # From nothing again now and then, so that rounding does not add up.
            self.weight = self.weight - flow.weight if self.backlogged else 0.0
            self._list_idle(flow)
        return flow

    def serve(self, flow: Flow, tokens: float) -> None:
        """A request of a flow that waited here was dispatched: charge it."""
        self._last = flow
        flow.counter += tokens / flow.weight
        if flow.size:
            self._rank(flow)

    def charge(self, tenant: str, tokens: float, *, weight: float, counters_max: int) -> None:
        """Charge what was dispatched without having waited here, as if it had just passed through."""
        flow = self._flow(tenant, weight, counters_max)
        if not flow.size:
            self._lift(flow)
        self.serve(flow, tokens)

    def correct(self, tenant: str, tokens: float, *, weight: float, counters_max: int) -> None:
        """Add what a request has cost above its prediction, or refund what it has not.

        A refund never goes below the last lift: what the lift has overtaken is not owed twice.
        """
        flow = self.flows.get(tenant)
        if flow is None:
            if tokens > 0:
                flow = self._flow(tenant, weight, counters_max)
                self._lift(flow)
                flow.counter += tokens / weight
            return
        flow.counter = max(flow.counter + tokens / flow.weight, min(flow.counter, flow.lifted))
        if flow.size:
            self._rank(flow)

    def candidates(self, now_ns: int, first: str = "") -> Generator[FlowEntry, None, None]:
        """Held requests in fair order: each tenant's first by counter, then each one's second, ….

        The tenant that is `first`, if it waits here, goes before the others.

        Nothing may enter or leave while it is iterated; closing it restores the order.
        """
        flows: list[Flow] = []
        aside: list[tuple[Flow, FlowEntry]] = []
        try:
            ahead = self.flows.get(first) if first else None
            if ahead is not None and ahead.size:
                # Its record in the heap is put back with the others'; meanwhile it is passed over.
                entry = ahead.peel(now_ns)
                assert entry is not None, ahead.tenant
                aside.append((ahead, entry))
                yield entry
            while (flow := self._least()) is not None:
                heappop(self._ranked)
                if flow is ahead:
                    flows.append(flow)
                    continue
                flows.append(flow)
                entry = flow.peel(now_ns)
                assert entry is not None, flow.tenant
                aside.append((flow, entry))
                yield entry
            deeper = flows
            while deeper:
                still = []
                for flow in deeper:
                    entry = flow.peel(now_ns)
                    if entry is not None:
                        aside.append((flow, entry))
                        still.append(flow)
                        yield entry
                deeper = still
        finally:
            for flow, entry in aside:
                flow.restore(entry)
            for flow in flows:
                # With the stamp it had: who was passed over keeps its place among equals.
                heappush(self._ranked, (flow.counter, flow.stamp, flow))

    def _least(self) -> Flow | None:
        ranked = self._ranked
        while ranked:
            _, stamp, flow = ranked[0]
            if flow.size and flow.stamp == stamp:
                return flow
            heappop(ranked)
        return None

    def _rank(self, flow: Flow) -> None:
        self._stamp += 1
        flow.stamp = self._stamp
        heappush(self._ranked, (flow.counter, flow.stamp, flow))
        if len(self._ranked) > 2 * self.backlogged + DEAD_MAX:
            self._ranked[:] = [r for r in self._ranked if r[2].size and r[2].stamp == r[1]]
            heapify(self._ranked)

    def _lift(self, flow: Flow) -> None:
        flow.lifted = flow.counter = max(flow.counter, self.floor())

    def _flow(self, tenant: str, weight: float, counters_max: int) -> Flow:
        flow = self.flows.get(tenant)
        if flow is None:
            self._forget(counters_max)
            flow = self.flows[tenant] = Flow(tenant, weight)
            flow.counter = flow.lifted = self._forgotten
            self._list_idle(flow)
        elif flow.weight != weight:
            if flow.size:
                self.weight += weight - flow.weight
            flow.weight = weight
        return flow

    def _list_idle(self, flow: Flow) -> None:
        if not flow.listed_idle:
            flow.listed_idle = True
            self._stamp += 1
            heappush(self._idle, (flow.counter, self._stamp, flow))

    def _forget(self, counters_max: int) -> None:
        """Make room for one more, at the cost of the idle tenants with the least counters.

        Two at most, so that what many left behind goes little by little.
        """
        for _ in range(2):
            if len(self.flows) < counters_max or not self._idle:
                return
            self._forget_least()

    def _forget_least(self) -> None:
        while self._idle:
            counter, _, flow = heappop(self._idle)
            flow.listed_idle = False
            if flow.size:
                continue  # listed again once it is idle
            if counter < flow.counter:
                self._list_idle(flow)  # it was charged since
                continue
            del self.flows[flow.tenant]
            self._forgotten = max(self._forgotten, flow.counter)
            return
