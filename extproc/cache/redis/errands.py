"""What is to be told to Redis about answers: short queues, filled without waiting and emptied by the session.

Owns their bounds. A purge is never dropped for room: many become one that means every answer.
"""

from __future__ import annotations

from asyncio import Future
from collections import Counter, deque
from typing import Any, Final, NamedTuple

from extproc.cache.purging import PurgeOrder

#: Answers and other words that wait, and their bytes; what comes above either is dropped.
ERRANDS_MAX: Final = 2_000
ERRANDS_BYTES_MAX: Final = 32 * 1024 * 1024
#: Purges that wait; above it they are one of everything.
PURGES_MAX: Final = 64


class Errand(NamedTuple):
    """One script on one scope; `begun_ns`: of an answer, when its request went to an engine."""

    script: str
    scope: str
    arguments: tuple[Any, ...]
    size: int = 0
    begun_ns: int = 0


class PurgeErrand(NamedTuple):
    """Orders to be carried out, and who waits for their number."""

    orders: tuple[PurgeOrder, ...]
    done: Future[int] | None


class Errands:
    """All that waits, the oldest first."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._words: deque[Errand] = deque()
        self._bytes = 0
        self.purges: deque[PurgeErrand] = deque()

    def __len__(self) -> int:
        return len(self._words) + len(self.purges)

    def put(self, errand: Errand) -> bool:
        """Add one; false where there are too many."""
        if len(self._words) >= ERRANDS_MAX or self._bytes + errand.size > ERRANDS_BYTES_MAX:
            self._counts["bound.errands_max"] += 1
            return False
        self._words.append(errand)
        self._bytes += errand.size
        return True

    def purge(self, errand: PurgeErrand) -> None:
        """Add orders."""
        if len(self.purges) >= PURGES_MAX:
            self._counts["bound.purges_max"] += 1
            for each in self.purges:
                resolved(each, 0)
            self.purges.clear()
            errand = PurgeErrand((PurgeOrder(),), errand.done)
        self.purges.append(errand)

    def batch(self, most: int) -> list[Errand]:
        """Take the oldest out."""
        taken = [self._words.popleft() for _ in range(min(most, len(self._words)))]
        self._bytes -= sum(each.size for each in taken)
        return taken

    def forget(self) -> int:
        """Drop all words (not the purges); how many."""
        count = len(self._words)
        self._words.clear()
        self._bytes = 0
        return count


def resolved(errand: PurgeErrand, count: int) -> None:
    """Tell whoever waits how many answers went."""
    if errand.done is not None and not errand.done.done():
        errand.done.set_result(count)
