"""Cumulative figures with their past: what happened in any window costs two look-ups.

Owns the rows of running totals and which of them are kept. Knows nothing of what a column means. A row is
added only when something happens in a new second, so that what is idle costs nothing.

Each tier keeps the last `kept` rows, one a `step_s` at the most: a window is exact to a step of the finest
tier that reaches back so far, and never shorter than asked (a younger history gives what there is).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

#: (seconds a row, rows kept), finest first.
Tiers = tuple[tuple[int, int], ...]


class _Tier:
    __slots__ = ("block", "full", "kept", "rows", "stamps", "step_s")

    def __init__(self, step_s: int, kept: int) -> None:
        self.step_s, self.kept = step_s, kept
        self.block = -1
        #: Whether a row was ever dropped: what came before the first one is not nothing.
        self.full = False
        self.stamps: list[int] = []
        self.rows: list[array[float]] = []


class RunningTotals:
    """`width` running totals; `totals` are now's, and are added to after `at`."""

    __slots__ = ("_tiers", "second", "totals")

    def __init__(self, width: int, tiers: Tiers) -> None:
        self.totals = array("d", bytes(8 * width))
        #: The last second in which anything was added; -1 before the first.
        self.second = -1
        self._tiers = tuple(_Tier(*each) for each in tiers)

    def at(self, second: int) -> array[float]:
        """The totals, ready to be added to in this second (never an earlier one than before)."""
        if second > self.second:
            if self.second >= 0:
                self._keep(second)
            self.second = second
        return self.totals

    def before(self, second: int) -> Sequence[float] | None:
        """The totals as they were at the end of a second; None where nothing had happened yet."""
        if second >= self.second:
            return self.totals
        oldest: array[float] | None = None
        for tier in self._tiers:
            found = bisect_right(tier.stamps, second)
            if found:
                return tier.rows[found - 1]
            oldest = tier.rows[0] if tier.full else None
        return oldest

    def _keep(self, second: int) -> None:
        row: array[float] | None = None
        for tier in self._tiers:
            block = second // tier.step_s
            if block == tier.block:
                continue
            tier.block = block
            if row is None:
                row = self.totals[:]
            tier.stamps.append(self.second)
            tier.rows.append(row)
            if len(tier.stamps) > tier.kept:
                tier.full = True
                del tier.stamps[0], tier.rows[0]
