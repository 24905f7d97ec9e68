"""How values lie: quantiles of a list, sketches that add up, and the fixed buckets that Prometheus asks for.

Owns what a quantile is: the value of rank share · (count − 1), linear between neighbours. Of a list at hand
it is exact (`quantile`), of values that are too many to keep, or whose figures must add up, within a known
share of it (`Sketch`, `Scale`). The bins, and with them that guarantee, are those of Masson, Rim & Lee,
"DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", PVLDB 12(12), 2019.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil, log2

import msgspec

#: The relative accuracy of a sketch's quantile.
ACCURACY = 0.01
#: Smaller values count as nothing, larger ones as this: with ACCURACY at most 1,383 bins.
VALUE_MIN, VALUE_MAX = 1e-3, 1e9
#: Sums are kept in thousandths.
SUM_SCALE = 1_000

#: Counts by bucket (the last one has no bound), and the sum of all values.
Counted = tuple[list[int], float]


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` (0..1) of an ascending sequence that is not empty, linear between neighbours."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def shown(ordered: Sequence[float], share: float, *, scale: float = 1.0, digits: int = 1) -> float | None:
    """A quantile for people: in another unit, rounded; None without any value."""
    return round(quantile(ordered, share) * scale, digits) if ordered else None


def binned(
    bins: Sequence[tuple[int, float]], shares: Sequence[float], value: Callable[[int], float]
) -> list[float]:
    """The same of (bin, count) in ascending order, `value` being what a bin stands for."""
    reached = list(accumulate(count for _, count in bins))
    last = len(bins) - 1

    def at(rank: int) -> float:
        return value(bins[min(bisect_right(reached, rank), last)][0])

    found = []
    for share in shares:
        rank = share * (reached[-1] - 1)
        low, part = int(rank), rank % 1.0
        found.append(at(low) * (1.0 - part) + at(low + 1) * part)
    return found


class Scale:
    """Bins by the logarithm: bin i holds (γ^(i−1), γ^i], γ = (1 + accuracy) / (1 − accuracy)."""

    __slots__ = ("gamma", "per_doubling")

    def __init__(self, accuracy: float) -> None:
        self.gamma = (1.0 + accuracy) / (1.0 - accuracy)
        self.per_doubling = 1.0 / log2(self.gamma)

    def bin_of(self, value: float) -> int:
        """Where a value above 0 belongs."""
        return ceil(log2(value) * self.per_doubling)

    def value(self, at: int) -> float:
        """What a bin stands for: within `accuracy` (relative) of all that it holds."""
        return 2.0 * self.gamma**at / (1.0 + self.gamma)


_SCALE = Scale(ACCURACY)
_PER_DOUBLING = _SCALE.per_doubling
#: Below every bin: where what counts as nothing is.
_ZERO = -1_000_000


class Sketch(msgspec.Struct, array_like=True, gc=False):
    """Values from 0 on: how many were nothing, their sum and the largest in thousandths, their bins.

    Whole numbers alone, so that sketches merged in any order are the same to the last digit. Unknown to the
    garbage collector: there are thousands, none in a cycle, and a full collection that they bring on holds
    the event loop up (280 ms were seen).
    """

    zeros: int = 0
    total: int = 0
    most: int = 0
    bins: dict[int, int] = {}

    @property
    def count(self) -> int:
        """How many values."""
        return self.zeros + sum(self.bins.values())

    def add(self, value: float) -> None:
        """Take one value; a negative one counts as nothing, one that is no number is left out."""
        if not value >= VALUE_MIN:
            self.zeros += value == value
            return
        if value > VALUE_MAX:
            value = VALUE_MAX
        thousandths = int(value * SUM_SCALE + 0.5)
        self.total += thousandths
        if thousandths > self.most:
            self.most = thousandths
        # `_SCALE.bin_of`, without the call.
        at, bins = ceil(log2(value) * _PER_DOUBLING), self.bins
        bins[at] = bins.get(at, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Take another's values; in any order the same."""
        self.zeros += other.zeros
        self.total += other.total
        self.most = max(self.most, other.most)
        bins = self.bins
        for at, count in other.bins.items():
            bins[at] = bins.get(at, 0) + count

    @property
    def mean(self) -> float | None:
        """The exact mean; None without values."""
        count = self.count
        return self.total / SUM_SCALE / count if count else None

    def quantiles(self, shares: Sequence[float], digits: int = 3) -> list[float | None]:
        """The quantiles of these shares, each within ACCURACY, rounded; None without values."""
        ordered = sorted(self.bins.items())
        if self.zeros:
            ordered.insert(0, (_ZERO, self.zeros))
        if not ordered:
            return [None] * len(shares)
        most = self.most / SUM_SCALE
        return [round(min(each, most), digits) for each in binned(ordered, shares, _middle)]


def _middle(at: int) -> float:
    return 0.0 if at == _ZERO else _SCALE.value(at)


class Histogram:
    """Counts by fixed buckets, as Prometheus wants them; a value on a bound is below it, as its `le` says.

    An observation is one search and two additions.
    """

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
