"""Percentiles that add up: a DDSketch of few bins, small enough to keep by the thousand.

Owns how a sketch is kept and written. The library's are the mapping of values to bins and the reading of a
quantile, and with them the guarantee: a quantile is within ACCURACY of the value of that rank. Everything
kept is a whole number, so that sketches merged in any order are the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore, Store

#: The relative accuracy of a quantile.
ACCURACY = 0.01
#: Smaller values count as nothing, larger ones as this: with ACCURACY at most 1,383 bins.
VALUE_MIN, VALUE_MAX = 1e-3, 1e9
#: Sums are kept in thousandths.
SUM_SCALE = 1_000

_MAPPING = LogarithmicMapping(ACCURACY)
_NOTHING = DenseStore()


class Sketch(msgspec.Struct, array_like=True, gc=False):
    """Values from 0 on: how many were nothing, their sum and the largest in thousandths, their bins.

    Unknown to the garbage collector, as rows are: there are thousands, none in a cycle, and a full collection
    that they bring on holds the event loop up (280 ms were seen).
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
        if value != value:
            return
        if value < VALUE_MIN:
            self.zeros += 1
            return
        value = min(value, VALUE_MAX)
        thousandths = round(value * SUM_SCALE)
        self.total += thousandths
        self.most = max(self.most, thousandths)
        at = _MAPPING.key(value)
        self.bins[at] = self.bins.get(at, 0) + 1

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

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """The values of rank share · (count − 1), each within ACCURACY; None without values."""
        sketch = BaseDDSketch(_MAPPING, _Sorted(self.bins), _NOTHING, self.zeros)
        most = self.most / SUM_SCALE
        found = [sketch.get_quantile_value(share) for share in shares]
        return [None if value is None else min(value, most) for value in found]


class _Sorted(Store):
    """A sketch's bins as the library reads them; nothing is added to it."""

    def __init__(self, bins: dict[int, int]) -> None:
        super().__init__()
        self._keys = sorted(bins)
        self._ranks = list(accumulate(bins[at] for at in self._keys))
        self.count = self._ranks[-1] if self._ranks else 0

    def key_at_rank(self, rank: float, lower: bool = True) -> int:
        """The bin that holds a rank, from 0; `lower` as the library means it."""
        wanted = rank + (0 if lower else 1)
        for at, reached in zip(self._keys, self._ranks, strict=True):
            if reached > wanted if lower else reached >= wanted:
                return at
        return self._keys[-1]

    def copy(self, store: Store) -> None:
        """Not needed to read."""
        raise NotImplementedError

    def length(self) -> int:
        """How many bins."""
        return len(self._keys)

    def add(self, key: int, weight: float = 1.0) -> None:
        """Not needed to read."""
        raise NotImplementedError

    def merge(self, store: Store) -> None:
        """Not needed to read."""
        raise NotImplementedError
