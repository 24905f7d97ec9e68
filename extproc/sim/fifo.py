"""The queue of one replica, in its engine's order; who left in between is skipped at the head.

Owns the entries and the count of those still wanted. Knows no permits, no memory and no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar
from zlib import crc32

from extproc.sim.events import SimRequest
from extproc.sim.slots import Slot, SlotState

T = TypeVar("T")
#: One request in so many is urgent where the queue knows priorities.
URGENT_ONE_IN = 4


def rank(order: str, request: SimRequest) -> int:
    """A request's place among those that wait: lower goes first, equals as they came."""
    if order == "shortest":
        return request.prompt_tokens
    if order == "urgent":
        return int(crc32(str(request.request_id).encode()) % URGENT_ONE_IN > 0)
    return 0


def put(entries: deque[T], entry: T, ranked: Callable[[T], int]) -> int:
    """Put an entry behind all that go before it; its place."""
    at, own = len(entries), ranked(entry)
    while at and ranked(entries[at - 1]) > own:
        at -= 1
    entries.insert(at, entry)
    return at


class Fifo:
    """Queued sequences; its length counts also entries whose client left and that were not yet skipped."""

    __slots__ = ("_entries", "_order", "live")

    def __init__(self, order: str = "fifo") -> None:
        self._entries: deque[Slot] = deque()
        self._order = order
        self.live = 0  # entries whose client is still there

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, sequence: Slot) -> None:
        """Join at the end, or where its order puts it."""
        sequence.state = SlotState.QUEUED
        if self._order == "fifo":
            self._entries.append(sequence)
        else:
            put(self._entries, sequence, lambda one: rank(self._order, one.request))
        self.live += 1

    def head(self) -> Slot | None:
        """The first whose client is still there; forgets those before it."""
        entries = self._entries
        while entries:
            if not entries[0].cancelled:
                return entries[0]
            entries.popleft()
        return None

    def pop(self) -> None:
        """Take out what `head` returned."""
        self._entries.popleft()
        self.live -= 1

    def first(self, fits: Callable[[Slot], bool]) -> Slot | None:
        """The first that fits and whose client is still there; those before it stay."""
        return next((each for each in self._entries if not each.cancelled and fits(each)), None)

    def take(self, sequence: Slot) -> None:
        """Take out what `first` returned."""
        self._entries.remove(sequence)
        self.live -= 1

    def forsake(self) -> None:
        """The client of one entry, marked `cancelled`, left; entries stay at most twice the live, plus 64."""
        self.live -= 1
        if len(self._entries) > 2 * self.live + 64:
            self._entries = deque(entry for entry in self._entries if not entry.cancelled)
