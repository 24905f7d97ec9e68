"""How wrong predictions were lately.

Owns a window of relative errors. Knows nothing of what was predicted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

#: Older errors than so many are forgotten.
WINDOW = 64
#: One error counts as at most this: beyond it wrong is wrong.
RELATIVE_ERROR_MAX = 1_000.0


class Errors:
    """Running median and 90th percentile of `|predicted − observed| / observed`, of the last WINDOW."""

    __slots__ = ("_order", "_sorted", "count")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        #: Errors ever seen.
        self.count = 0

    def saw(self, predicted: float, observed: float) -> None:
        """A prediction met its truth, in whatever unit; what is not finite and positive is left out."""
        if not (0.0 < observed < 1e300 and 0.0 <= predicted < 1e300):
            return
        error = min(abs(predicted - observed) / observed, RELATIVE_ERROR_MAX)
        self.count += 1
        self._order.append(error)
        insort(self._sorted, error)
        if len(self._order) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    @property
    def median(self) -> float | None:
        """Half of the recent errors are no larger; None before the first."""
        return self._sorted[(len(self._sorted) - 1) // 2] if self._sorted else None

    @property
    def p90(self) -> float | None:
        """Nine tenths of the recent errors are no larger; None before the first."""
        return self._sorted[(len(self._sorted) * 9 + 9) // 10 - 1] if self._sorted else None
