"""Who waits for one pool: its bands, in whose order requests are offered to its replicas.

Counters are of one pool, because VTC shares one resource: tokens that a tenant had of one model take
nothing from those who wait for another. They are of one band as well: a tenant of a low class may have
had much that no better class wanted, and would starve there once aged if that counted against it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from extproc.core.fairqueue.drain_rate import RETRY_AFTER_MAX_S, DrainRate, retry_after_s
from extproc.core.fairqueue.flow import Flow, FlowEntry
from extproc.core.fairqueue.priority_band import PriorityBand
from extproc.core.fairqueue.queued import QueueBounds, QueuedRequest

T = TypeVar("T")

#: One in so many further tries goes to the rotation.
ROTATION_SHARE = 3
#: Those who were turned away are told to come back so many times as far apart as turns are: at just the pace
#: of the turns they would queue up again.
TURN_SLACK = 1.3


class PoolQueue:
    """The held requests of one pool."""

    __slots__ = ("_affinity_group", "_rotation", "bands", "drain_rate")

    def __init__(self, classes: int) -> None:
        self.bands = [PriorityBand() for _ in range(classes)]
        self.drain_rate = DrainRate()
        #: Everybody, who was offered out of order longest ago first.
        self._rotation: OrderedDict[int, FlowEntry] = OrderedDict()
        self._affinity_group: dict[bytes | int, dict[int, FlowEntry]] = {}

    def __len__(self) -> int:
        return len(self._rotation)

    def enter(self, entry: FlowEntry, bounds: QueueBounds, *, now_ns: int) -> None:
        """A request begins to wait."""
        if not self._rotation:
            self.drain_rate.began(now_ns)
        self.bands[entry.band].enter(entry, counters_max=bounds.counters_max)
        self._rotation[entry.number] = entry
        affinity_group = entry.held.affinity_group
        if affinity_group is not None:
            self._affinity_group.setdefault(affinity_group, {})[entry.number] = entry

    def leave(self, entry: FlowEntry) -> Flow:
        """A request waits no more; the flow it was in."""
        del self._rotation[entry.number]
        affinity_group = entry.held.affinity_group
        if affinity_group is not None:
            kindred = self._affinity_group[affinity_group]
            del kindred[entry.number]
            if not kindred:
                del self._affinity_group[affinity_group]
        return self.bands[entry.band].leave(entry)

    def age(self, entry: FlowEntry, bounds: QueueBounds) -> None:
        """A request is served as one class better from now on."""
        self.bands[entry.band].leave(entry)
        entry.band -= 1
        self.bands[entry.band].enter(entry, counters_max=bounds.counters_max)

    def dispatch(self, entry: FlowEntry, tokens: float, bounds: QueueBounds, *, now_ns: int) -> None:
        """A request is sent: charged where it waited and, if that was as a guest, in its own class too."""
        if entry.flow is not None:
            entry.flow.served(entry)
        flow = self.leave(entry)
        self.bands[entry.band].serve(flow, tokens)
        held = entry.held
        if entry.band != held.klass:
            self.bands[held.klass].charge(
                held.tenant, tokens, weight=held.weight, counters_max=bounds.counters_max
            )
        self.drain_rate.dispatched(now_ns)

    def first_fit(
        self, fits: Callable[[QueuedRequest], T | None], *, first: str = "", now_ns: int, tries_max: int
    ) -> tuple[FlowEntry, T] | None:
        """Offer up to 1 + tries_max requests; the first that fits, with its place.

        Most tries go to fair order, band by band. The last few go to the rotation, whoever comes next
        there: so it is not for long that those at the front, when they fit nowhere, keep a replica from
        one further back that it could start now (law: bind late, waste nothing).
        """
        rotated = min(tries_max // ROTATION_SHARE, len(self._rotation))
        tries = 1 + tries_max - rotated
        offered: set[int] = set()
        for band in self.bands:
            if not band.size:
                continue
            candidates = band.candidates(now_ns, first)
            try:
                for entry in candidates:
                    place = fits(entry.held)
                    if place is not None:
                        return entry, place
                    offered.add(entry.number)
                    if len(offered) == tries:
                        return self._rotate(fits, offered, rotated, now_ns)
            finally:
                candidates.close()
        return None

    def affinity_group_fit(
        self,
        after: QueuedRequest,
        fits: Callable[[QueuedRequest], T | None],
        bounds: QueueBounds,
        *,
        now_ns: int,
    ) -> tuple[FlowEntry, T] | None:
        """The first fitting one of `after`'s affinity group that fairness lets go early.

        It must wait at the best band where anybody does, not be lost, and its tenant's counter may be
        at most `slack_tokens` above the least there.
        """
        kindred = self._affinity_group.get(after.affinity_group) if after.affinity_group is not None else None
        if not kindred:
            return None
        best = next(i for i, band in enumerate(self.bands) if band.size)
        most = self.bands[best].floor() + bounds.slack_tokens
        for entry, _ in zip(kindred.values(), range(bounds.affinity_group_tried_max), strict=False):
            flow = entry.flow
            assert flow is not None
            if entry.band == best and entry.lost_ns > now_ns and flow.counter <= most:
                place = fits(entry.held)
                if place is not None:
                    return entry, place
        return None

    def wait_s(self, klass: int, *, now_ns: int) -> float | None:
        """How long one more at a level would wait; None while too few have been dispatched to know."""
        ahead = 1.0 + sum(band.size for band in self.bands[: klass + 1])
        return self.drain_rate.wait_s(ahead, now_ns=now_ns, held=bool(self._rotation))

    def retry_after_s(self, held: QueuedRequest, *, last_ns: int, now_ns: int) -> int:
        """When one more of its tenant would have been dispatched, had it stayed, and those before it that
        were told to come back.

        Ahead of it are the better bands and, at its own, for each of its tenant's n + 1 what their
        weights give the others: (n + 1) · W / w, or all who wait there if they are fewer. Over the
        measured drain; the time a request is held at most while that is not known, and then as if all who
        wait were served in that time.

        Who is turned away is told a time of its own: each of a tenant's one turn of it later than the one
        before. Told the same, a burst of them would come back as one, and find room for the first alone.
        """
        band = self.bands[held.klass]
        flow = band.flows.get(held.tenant)
        own = flow.size if flow is not None else 0
        weights = band.weight if own else band.weight + held.weight
        ahead = 1.0 + min(float(band.size), (own + 1) * weights / held.weight)
        ahead += sum(better.size for better in self.bands[: held.klass])
        waiting = bool(self._rotation)
        wait_s = self.drain_rate.wait_s(ahead, now_ns=now_ns, held=waiting)
        turn_s = self.drain_rate.wait_s(weights / held.weight, now_ns=now_ns, held=waiting)
        if wait_s is None or turn_s is None:
            # Young: whoever waits now is taken to be served within the time that a request is held.
            wait_s = (last_ns - held.arrived_ns) / 1e9
            least_s = wait_s / max(1, len(self._rotation))
            guess_s = self.drain_rate.guess_s(least_s, now_ns=now_ns, held=waiting)
            turn_s = guess_s * weights / held.weight
        if flow is not None:
            if flow.told_ns:
                wait_s = max(wait_s, (flow.told_ns - now_ns) / 1e9 + TURN_SLACK * turn_s)
            wait_s = min(wait_s, float(RETRY_AFTER_MAX_S))
            flow.told_ns = now_ns + int(wait_s * 1e9)
        return retry_after_s(wait_s)

    def _rotate(
        self, fits: Callable[[QueuedRequest], T | None], offered: set[int], tries: int, now_ns: int
    ) -> tuple[FlowEntry, T] | None:
        """Offer those next in the rotation that can still be in time.

        The lost have their turn in fair order: a place given to one out of turn is one that somebody in
        time does without (simulated, Azure conversation at load .9: 964 answers too late for it).
        """
        rotation = self._rotation
        for _ in range(min(len(rotation), tries + len(offered))):
            if not tries:
                break
            number, entry = next(iter(rotation.items()))
            rotation.move_to_end(number)
            if number in offered or entry.lost_ns <= now_ns:
                continue
            tries -= 1
            place = fits(entry.held)
            if place is not None:
                return entry, place
        return None
