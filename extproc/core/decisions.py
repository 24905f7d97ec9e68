"""The last decisions: remembered as they were made for who asks why, and in order for who follows.

Owns the one memory of decisions, and its bounds: `explain`, the status, the page's stream and the admin
port's list read it. What the order tells of a placement beyond names stands in what is kept of it, and goes
with that: so prompts' hashes and fleets' scores are held once, and within VALUES_KEPT_MAX.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from extproc.core.cachekeys.values import CachedAnswer
from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer
from extproc.core.outcome import Reject, Routed

#: Decisions remembered, and the scores and prefix blocks of all of them together.
DECISIONS_KEPT_MAX, VALUES_KEPT_MAX = 1_000, 200_000
#: Requests remembered that the cache answered.
HITS_KEPT_MAX = 1_000
#: Foreign names (Envoy's x-request-id) of decisions remembered, and the longest of them.
NAMES_KEPT_MAX, NAME_CHARACTERS_MAX = 2_000, 128
#: Placements, refusals and clients that left, in order: a flood of refusals costs no placement that is kept.
NOTED_MAX = 500


class Kept(msgspec.Struct, frozen=True):
    """A decision as it was made."""

    routing: RoutingRequest
    routed: Routed
    at_ns: int
    #: Values that it holds on to.
    size: int


class KeptHit(NamedTuple):
    """A request that the cache answered: how old the answer was, when (clock) it was given, and how likely it
    is its own where it was made for a question in other words."""

    routing: RoutingRequest
    age_s: int
    at_ns: int
    likely: float | None = None


class Noted(NamedTuple):
    """What became of a request: its number since the start, when (clock), and whose; "" where not known."""

    number: int
    at_ns: int
    kind: str
    id: str
    tenant: str
    service_class: str
    #: Where its client is; "" where nothing says.
    place: str
    model: str
    pool: str
    reject: Reject | None
    #: Of a placement that is still kept.
    kept: Kept | None


#: As it waits to be asked for: all but what is kept.
_Noted = tuple[int, int, str, str, str, str, str, str, str, Reject | None]


class Decisions(Observer):
    """The last decisions, by reservation, by foreign name and in order."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._hits: OrderedDict[str, KeptHit] = OrderedDict()
        self._size = 0
        self._noted: deque[_Noted] = deque(maxlen=NOTED_MAX)
        #: Noted since the start: the number of the last one.
        self.count = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """A decision was made; the oldest are forgotten for it."""
        told = len(routed.trace) if routed.trace is not None else 0
        size = len(routed.reason.scores) + len(routing.work.prefix) + told
        self._kept[routing.id] = Kept(routing, routed, now_ns, size)
        self._size += size
        while len(self._kept) > DECISIONS_KEPT_MAX or (self._size > VALUES_KEPT_MAX and len(self._kept) > 1):
            self._size -= self._kept.popitem(last=False)[1].size
        self._note("placed", routing, None, now_ns)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """A request was turned away."""
        self._note("refused", routing, reject, now_ns)

    def cached(self, routing: RoutingRequest, answer: CachedAnswer, *, now_ns: int) -> None:
        """A request was answered from the cache."""
        self._hits[routing.id] = KeptHit(routing, answer.age_s, now_ns, answer.likely)
        if len(self._hits) > HITS_KEPT_MAX:
            self._hits.popitem(last=False)
        self._note("cached", routing, None, now_ns)

    def hit(self, reservation_id: str) -> KeptHit | None:
        """A request that the cache answered, None where it is not remembered (any more)."""
        return self._hits.get(reservation_id)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """The same before it was routed."""
        self.count += 1
        self._noted.append((self.count, now_ns, "refused", "", tenant, "", "", "", "", reject))

    def left(
        self,
        reservation_id: str,
        routing: RoutingRequest | None,
        *,
        gave_up: bool,  # noqa: ARG002
        now_ns: int,
    ) -> None:
        """A client left before its request was sent anywhere."""
        if routing is not None:
            self._note("left", routing, None, now_ns)
        else:
            self.count += 1
            self._noted.append((self.count, now_ns, "left", reservation_id, "", "", "", "", "", None))

    def named(self, name: str, reservation_id: str) -> None:
        """A request has another name; of two with one name the later counts."""
        if not name or len(name) > NAME_CHARACTERS_MAX:
            return
        self._names[name] = reservation_id
        self._names.move_to_end(name)
        if len(self._names) > NAMES_KEPT_MAX:
            self._names.popitem(last=False)

    def reservation_of(self, name: str) -> str:
        """The reservation that a name stands for; itself where it is none that we know."""
        return self._names.get(name, name)

    def get(self, reservation_id: str) -> Kept | None:
        """A decision, None where it is not remembered (any more)."""
        return self._kept.get(reservation_id)

    def after(self, number: int, *, limit: int) -> tuple[list[Noted], int]:
        """The last that were noted after a number, oldest first, and how many are left out."""
        shown = min(self.count - number, len(self._noted), limit)
        first = len(self._noted) - shown
        found = [self._read(self._noted[i]) for i in range(first, len(self._noted))]
        return found, self.count - number - shown

    def placed_last(self, limit: int) -> Iterator[Kept]:
        """The last placements, the newest first."""
        for number, kept in enumerate(reversed(self._kept.values())):
            if number == limit:
                return
            yield kept

    def _note(self, kind: str, routing: RoutingRequest, reject: Reject | None, now_ns: int) -> None:
        self.count += 1
        of, model, pool = routing.tenant, routing.model, routing.pool
        whose = (of.name, of.service_class, of.place)
        self._noted.append((self.count, now_ns, kind, routing.id, *whose, model, pool, reject))

    def _read(self, noted: _Noted) -> Noted:
        return Noted(*noted, kept=self._kept.get(noted[3]) if noted[2] == "placed" else None)
