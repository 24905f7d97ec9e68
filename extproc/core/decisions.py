"""The last decisions, remembered as they were made, for who asks why."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from extproc.core.decide import RoutingRequest
from extproc.core.outcome import Routed

#: Decisions remembered, and the scores and prefix blocks of all of them together.
DECISIONS_KEPT_MAX, VALUES_KEPT_MAX = 1_000, 200_000
#: Foreign names (Envoy's x-request-id) of decisions remembered, and the longest of them.
NAMES_KEPT_MAX, NAME_CHARACTERS_MAX = 2_000, 128


@dataclass(frozen=True, slots=True)
class Kept:
    """A decision as it was made."""

    routing: RoutingRequest
    routed: Routed
    at_ns: int

    @property
    def size(self) -> int:
        """Values that it holds on to."""
        trace = self.routed.trace
        told = len(trace) if trace is not None else 0
        return len(self.routed.reason.scores) + len(self.routing.work.prefix) + told


class Decisions:
    """The last decisions, by reservation and by foreign name."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """A decision was made; the oldest are forgotten for it."""
        kept = self._kept[routing.id] = Kept(routing, routed, now_ns)
        self._size += kept.size
        while len(self._kept) > DECISIONS_KEPT_MAX or (self._size > VALUES_KEPT_MAX and len(self._kept) > 1):
            self._size -= self._kept.popitem(last=False)[1].size

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
