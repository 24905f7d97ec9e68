"""One level of one pool: virtual token counters over the tenants that wait there.

VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithms 2 and 4): the
backlogged tenant with the least counter goes next; what it gets is added, over its weight; a tenant
that becomes backlogged is lifted to the least counter among the backlogged, or to the counter of the
last that was served when there are none. Ours are charged whole at dispatch, by prediction, and
corrected at the end, because no token passes here.

A class's level also has guests: aged requests of the classes below, with counters of their own there.
"""

from __future__ import annotations

from collections.abc import Generator
from heapq import heapify, heappop, heappush

from extproc.core.fairness.lane import DEAD_MAX, Entry, Lane

_Ranked = tuple[float, int, Lane]


class Level:
    """The lanes of one level by counter. `size` requests wait in `backlogged` lanes of `weight` in sum."""

    __slots__ = ("_forgotten", "_idle", "_last", "_ranked", "_stamp", "backlogged", "lanes", "size", "weight")

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self.size = 0
        self.backlogged = 0
        self.weight = 0.0
        self._ranked: list[_Ranked] = []
        #: One record for each idle lane, perhaps with an older counter: whom to forget first.
        self._idle: list[_Ranked] = []
        self._stamp = 0
        self._last: Lane | None = None
        #: The greatest counter forgotten: who is unknown begins there, so to be forgotten gains nothing.
        self._forgotten = 0.0

    def floor(self) -> float:
        """What a tenant that becomes backlogged is lifted to."""
        least = self._least()
        if least is not None:
            return least.counter
        return self._last.counter if self._last is not None else 0.0

    def enter(self, entry: Entry, *, counters_max: int) -> None:
        """A request begins to wait at this level."""
        held = entry.held
        lane = self._lane(held.tenant, held.weight, counters_max)
        if not lane.size:
            self._lift(lane)
            self.backlogged += 1
            self.weight += lane.weight
            lane.add(entry)
            self._rank(lane)
        else:
            lane.add(entry)
        self.size += 1

    def leave(self, entry: Entry) -> Lane:
        """A request waits here no more, for whatever cause; its lane."""
        lane = entry.lane
        assert lane is not None
        lane.discard(entry)
        self.size -= 1
        if not lane.size:
            self.backlogged -= 1
            # From nothing again now and then, so that rounding does not add up.
            self.weight = self.weight - lane.weight if self.backlogged else 0.0
            self._list_idle(lane)
        return lane

    def serve(self, lane: Lane, tokens: float) -> None:
        """A request of a lane that waited here was dispatched: charge it."""
        self._last = lane
        lane.counter += tokens / lane.weight
        if lane.size:
            self._rank(lane)

    def charge(self, tenant: str, tokens: float, *, weight: float, counters_max: int) -> None:
        """Charge what was dispatched without having waited here, as if it had just passed through."""
        lane = self._lane(tenant, weight, counters_max)
        if not lane.size:
            self._lift(lane)
        self.serve(lane, tokens)

    def correct(self, tenant: str, tokens: float, *, weight: float, counters_max: int) -> None:
        """Add what a request has cost above its prediction, or refund what it has not.

        A refund never goes below the last lift: what the lift has overtaken is not owed twice.
        """
        lane = self.lanes.get(tenant)
        if lane is None:
            if tokens > 0:
                lane = self._lane(tenant, weight, counters_max)
                self._lift(lane)
                lane.counter += tokens / weight
            return
        lane.counter = max(lane.counter + tokens / lane.weight, min(lane.counter, lane.lifted))
        if lane.size:
            self._rank(lane)

    def candidates(self, now_ns: int) -> Generator[Entry, None, None]:
        """Held requests in fair order: each tenant's first by counter, then each one's second, ….

        Nothing may enter or leave while it is iterated; closing it restores the order.
        """
        lanes: list[Lane] = []
        aside: list[tuple[Lane, Entry]] = []
        try:
            while (lane := self._least()) is not None:
                heappop(self._ranked)
                lanes.append(lane)
                entry = lane.peel(now_ns)
                assert entry is not None, lane.tenant
                aside.append((lane, entry))
                yield entry
            deeper = lanes
            while deeper:
                still = []
                for lane in deeper:
                    entry = lane.peel(now_ns)
                    if entry is not None:
                        aside.append((lane, entry))
                        still.append(lane)
                        yield entry
                deeper = still
        finally:
            for lane, entry in aside:
                lane.restore(entry)
            for lane in lanes:
                # With the stamp it had: who was passed over keeps its place among equals.
                heappush(self._ranked, (lane.counter, lane.stamp, lane))

    def _least(self) -> Lane | None:
        ranked = self._ranked
        while ranked:
            _, stamp, lane = ranked[0]
            if lane.size and lane.stamp == stamp:
                return lane
            heappop(ranked)
        return None

    def _rank(self, lane: Lane) -> None:
        self._stamp += 1
        lane.stamp = self._stamp
        heappush(self._ranked, (lane.counter, lane.stamp, lane))
        if len(self._ranked) > 2 * self.backlogged + DEAD_MAX:
            self._ranked[:] = [r for r in self._ranked if r[2].size and r[2].stamp == r[1]]
            heapify(self._ranked)

    def _lift(self, lane: Lane) -> None:
        lane.lifted = lane.counter = max(lane.counter, self.floor())

    def _lane(self, tenant: str, weight: float, counters_max: int) -> Lane:
        lane = self.lanes.get(tenant)
        if lane is None:
            self._forget(counters_max)
            lane = self.lanes[tenant] = Lane(tenant, weight)
            lane.counter = lane.lifted = self._forgotten
            self._list_idle(lane)
        elif lane.weight != weight:
            if lane.size:
                self.weight += weight - lane.weight
            lane.weight = weight
        return lane

    def _list_idle(self, lane: Lane) -> None:
        if not lane.listed_idle:
            lane.listed_idle = True
            self._stamp += 1
            heappush(self._idle, (lane.counter, self._stamp, lane))

    def _forget(self, counters_max: int) -> None:
        """Make room for one more, at the cost of the idle tenants with the least counters.

        Two at most, so that what many left behind goes little by little.
        """
        for _ in range(2):
            if len(self.lanes) < counters_max or not self._idle:
                return
            self._forget_least()

    def _forget_least(self) -> None:
        while self._idle:
            counter, _, lane = heappop(self._idle)
            lane.listed_idle = False
            if lane.size:
                continue  # listed again once it is idle
            if counter < lane.counter:
                self._list_idle(lane)  # it was charged since
                continue
            del self.lanes[lane.tenant]
            self._forgotten = max(self._forgotten, lane.counter)
            return
