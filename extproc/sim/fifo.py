"""The queue of one replica: first in, first out, and who left in between is skipped at the head.

Owns the entries and the count of those still wanted. Knows no permits, no memory and no time.
"""

from __future__ import annotations

from collections import deque

from extproc.sim.slots import Slot, SlotState


class Fifo:
    """Queued sequences; its length counts also entries whose client left and that were not yet skipped."""

    __slots__ = ("_entries", "live")

    def __init__(self) -> None:
        self._entries: deque[Slot] = deque()
        self.live = 0  # entries whose client is still there

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, sequence: Slot) -> None:
        """Join at the end."""
        sequence.state = SlotState.QUEUED
        self._entries.append(sequence)
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

    def forsake(self) -> None:
        """The client of one entry, marked `cancelled`, left; entries stay at most twice the live, plus 64."""
        self.live -= 1
        if len(self._entries) > 2 * self.live + 64:
            self._entries = deque(entry for entry in self._entries if not entry.cancelled)
