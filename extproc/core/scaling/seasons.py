"""What came at each time of past days and weeks, as seasons are read off it.

Owns the record: means of a grain, by their place in time, the oldest given up. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from math import isfinite, nan
from typing import Final

DAY_S: Final = 86_400.0
#: What is compared is a mean of so long about each moment: yesterday's noise is not today's.
ABOUT_S: Final = 1_200.0
#: A season counts where at least this share of its grains is known.
KNOWN_SHARE: Final = 0.5
#: How much of what a season did is expected of the next one: .3 to .5 is a day's autocorrelation in public
#: traces, and more in the mean of a day and a week.
FOLLOWED: Final = 0.6
#: A rate below this (a second) is none: ratios to it say nothing.
RATE_MIN: Final = 1e-3


class Seasons:
    """Means of `grain_s` seconds for `days` days; NaN where nothing was counted."""

    def __init__(self, grain_s: float, *, days: int = 15) -> None:
        self.grain_s = grain_s
        self._most = max(1, int(days * DAY_S / grain_s))
        self._values = array("f")
        #: The place in time of the first value.
        self._first = 0
        self._open: tuple[int, float, float] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def saw(self, at_s: float, lasted_s: float, rate: float) -> None:
        """`rate` in the mean of an interval that began at `at_s` (seconds of any clock that goes on over a
        restart). Times before the last are left out."""
        place = int(at_s // self.grain_s)
        if self._open is None or place > self._open[0]:
            self.close()
            self._open = (place, 0.0, 0.0)
        if place == self._open[0]:
            _, total, length = self._open
            self._open = (place, total + rate * lasted_s, length + lasted_s)

    def close(self) -> None:
        """Keep the grain that is open."""
        if self._open is None:
            return
        place, total, length = self._open
        self._open = None
        if length > 0.0:
            self.put(place, total / length)

    def put(self, place: int, rate: float) -> None:
        """A grain's mean; places between are gaps, and what is no number or too old is left out."""
        values = self._values
        if not isfinite(rate) or rate < 0.0:
            return
        if not values or place - (self._first + len(values)) >= self._most:
            del values[:]
            self._first = place
        gap = place - (self._first + len(values))
        if gap < 0:
            return
        values.extend([nan] * gap)
        values.append(rate)
        # In blocks: taking from the front moves the rest.
        if len(values) > self._most + 1_440:
            cut = len(values) - self._most
            del values[:cut]
            self._first += cut

    def kept(self) -> tuple[int, list[float]]:
        """(the place of the first, the means, NaN for gaps)."""
        return self._first, list(self._values)

    def packed(self) -> tuple[int, bytes]:
        """The same for a file: 32-bit floats in this machine's order."""
        return self._first, self._values.tobytes()

    def known(self) -> Iterator[tuple[int, float]]:
        """Place and mean of all grains that are known."""
        for i, rate in enumerate(self._values):
            if rate == rate:
                yield self._first + i, rate

    def ratio(self, now_s: float, ahead_s: float) -> float | None:
        """What the same moment of a day (and a week) ago had become after `ahead_s`, as a factor, damped;
        None where nothing is known of then."""
        logs = [
            found
            for period in (DAY_S, 7.0 * DAY_S)
            if (found := self._grew(now_s - period, ahead_s)) is not None
        ]
        return (sum(logs) / len(logs)) if logs else None

    def _grew(self, then_s: float, ahead_s: float) -> float | None:
        before, after = self._mean(then_s), self._mean(then_s + ahead_s)
        if before is None or after is None or before < RATE_MIN or after < RATE_MIN:
            return None
        return float((after / before) ** FOLLOWED)

    def _mean(self, at_s: float) -> float | None:
        """About a moment; None where too little is known."""
        many = max(1, int(ABOUT_S / self.grain_s))
        begin = int((at_s - ABOUT_S / 2.0) // self.grain_s) - self._first
        if begin < 0 or begin + many > len(self._values):
            return None
        taken = [rate for rate in self._values[begin : begin + many] if rate == rate]
        return sum(taken) / len(taken) if len(taken) >= KNOWN_SHARE * many else None
