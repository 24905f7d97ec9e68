"""A histogram of fixed buckets: an observation is one search and two additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: Counts by bucket (the last one has no bound), and the sum of all values.
Counted = tuple[list[int], float]


class Histogram:
    """Counts by bucket; a value on a bound is below it, as Prometheus' `le` says."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def saw(self, value: float) -> None:
        """Take a value; below 0 (clocks are read apart) counts as 0."""
        if value < 0.0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def read(self) -> Counted:
        """A copy of the counts, and the sum."""
        return self.counts[:], self.total
