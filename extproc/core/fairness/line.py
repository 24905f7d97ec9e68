"""Who waits for one pool: its levels, in whose order requests are offered to its replicas.

Counters are of one pool, because VTC shares one resource: tokens that a tenant had of one model take
nothing from those who wait for another. They are of one level as well: a tenant of a low class may have
had much that no better class wanted, and would starve there once aged if that counted against it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from extproc.core.fairness.held import Bounds, Held
from extproc.core.fairness.lane import Entry, Lane
from extproc.core.fairness.level import Level
from extproc.core.fairness.pace import RETRY_AFTER_MAX_S, Pace, retry_after_s

T = TypeVar("T")

#: One in so many further tries goes to the rotation.
ROTATION_SHARE = 3
#: Those who were turned away are told to come back so many times as far apart as turns are: at just the pace
#: of the turns they would queue up again.
TURN_SLACK = 1.3


class Line:
    """The held requests of one pool."""

    __slots__ = ("_kin", "_rotation", "levels", "pace")

    def __init__(self, classes: int) -> None:
        self.levels = [Level() for _ in range(classes)]
        self.pace = Pace()
        #: Everybody, who was offered out of order longest ago first.
        self._rotation: OrderedDict[int, Entry] = OrderedDict()
        self._kin: dict[bytes | int, dict[int, Entry]] = {}

    def __len__(self) -> int:
        return len(self._rotation)

    def enter(self, entry: Entry, bounds: Bounds, *, now_ns: int) -> None:
        """A request begins to wait."""
        if not self._rotation:
            self.pace.began(now_ns)
        self.levels[entry.level].enter(entry, counters_max=bounds.counters_max)
        self._rotation[entry.number] = entry
        kin = entry.held.kin
        if kin is not None:
            self._kin.setdefault(kin, {})[entry.number] = entry

    def leave(self, entry: Entry) -> Lane:
        """A request waits no more; the lane it was in."""
        del self._rotation[entry.number]
        kin = entry.held.kin
        if kin is not None:
            kindred = self._kin[kin]
            del kindred[entry.number]
            if not kindred:
                del self._kin[kin]
        return self.levels[entry.level].leave(entry)

    def age(self, entry: Entry, bounds: Bounds) -> None:
        """A request is served as one class better from now on."""
        self.levels[entry.level].leave(entry)
        entry.level -= 1
        self.levels[entry.level].enter(entry, counters_max=bounds.counters_max)

    def dispatch(self, entry: Entry, tokens: float, bounds: Bounds, *, now_ns: int) -> None:
        """A request is sent: charged where it waited and, if that was as a guest, in its own class too."""
        if entry.lane is not None:
            entry.lane.served(entry)
        lane = self.leave(entry)
        self.levels[entry.level].serve(lane, tokens)
        held = entry.held
        if entry.level != held.klass:
            self.levels[held.klass].charge(
                held.tenant, tokens, weight=held.weight, counters_max=bounds.counters_max
            )
        self.pace.dispatched(now_ns)

    def first_fit(
        self, fits: Callable[[Held], T | None], *, now_ns: int, tries_max: int
    ) -> tuple[Entry, T] | None:
        """Offer up to 1 + tries_max requests; the first that fits, with its place.

        Most tries go to fair order, level by level. The last few go to the rotation, whoever comes next
        there: so it is not for long that those at the front, when they fit nowhere, keep a replica from
        one further back that it could start now (law 6).
        """
        rotated = min(tries_max // ROTATION_SHARE, len(self._rotation))
        tries = 1 + tries_max - rotated
        offered: set[int] = set()
        for level in self.levels:
            if not level.size:
                continue
            candidates = level.candidates(now_ns)
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

    def kin_fit(
        self, after: Held, fits: Callable[[Held], T | None], bounds: Bounds, *, now_ns: int
    ) -> tuple[Entry, T] | None:
        """The first fitting one of `after`'s kin that fairness lets go early.

        It must wait at the best level where anybody does, not be lost, and its tenant's counter may be
        at most `slack_tokens` above the least there.
        """
        kindred = self._kin.get(after.kin) if after.kin is not None else None
        if not kindred:
            return None
        best = next(i for i, level in enumerate(self.levels) if level.size)
        most = self.levels[best].floor() + bounds.slack_tokens
        for entry, _ in zip(kindred.values(), range(bounds.kin_tried_max), strict=False):
            lane = entry.lane
            assert lane is not None
            if entry.level == best and entry.lost_ns > now_ns and lane.counter <= most:
                place = fits(entry.held)
                if place is not None:
                    return entry, place
        return None

    def retry_after_s(self, held: Held, *, last_ns: int, now_ns: int) -> int:
        """When one more of its tenant would have been dispatched, had it stayed, and those before it that
        were told to come back.

        Ahead of it are the better levels and, at its own, for each of its tenant's n + 1 what their
        weights give the others: (n + 1) · W / w, or all who wait there if they are fewer. Over the
        measured drain; the time a request is held at most while that is not known.

        Who is turned away is told a time of its own: each of a tenant's one turn of it later than the one
        before. Told the same, a burst of them would come back as one, and find room for the first alone.
        """
        level = self.levels[held.klass]
        lane = level.lanes.get(held.tenant)
        own = lane.size if lane is not None else 0
        weights = level.weight if own else level.weight + held.weight
        ahead = 1.0 + min(float(level.size), (own + 1) * weights / held.weight)
        ahead += sum(better.size for better in self.levels[: held.klass])
        waiting = bool(self._rotation)
        wait_s = self.pace.wait_s(ahead, now_ns=now_ns, held=waiting)
        turn_s = self.pace.wait_s(weights / held.weight, now_ns=now_ns, held=waiting)
        if wait_s is None:
            wait_s = (last_ns - held.arrived_ns) / 1e9
        if lane is not None and turn_s is not None:
            told_s = (lane.told_ns - now_ns) / 1e9
            wait_s = min(max(wait_s, told_s + TURN_SLACK * turn_s), float(RETRY_AFTER_MAX_S))
            lane.told_ns = now_ns + int(wait_s * 1e9)
        return retry_after_s(wait_s)

    def _rotate(
        self, fits: Callable[[Held], T | None], offered: set[int], tries: int, now_ns: int
    ) -> tuple[Entry, T] | None:
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
