"""Limits that follow their history, within set bounds. Off unless a caller asks for it.

Pure: a history goes in, a factor comes out (`Limits.scaled` applies it). A tenant that is refused while
it uses what it has gets more; what it got on top goes back while most of it is unused. Below what was bought
it falls only where `least` says so, and only by days: a step a day, once `DAYS` whole days have each stayed
below the share of use at their highest. A quiet night, a weekend and a service's first minutes say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

#: So many days without much use, all weekdays among them, and the limits may fall below what was bought.
DAYS = 7
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustBounds:
    """How far and how fast. `least` ≤ 1 ≤ `most` are multiples of the configured limits."""

    least: float = 1.0
    most: float = 1.0
    half_life_s: float = 600.0
    #: Grow when more than this share of requests is refused, shrink below that share of use.
    refused_above: float = 0.02
    used_below: float = 0.3
    #: The change at one step, as a multiple.
    step: float = 1.1

    def __post_init__(self) -> None:
        assert 0.0 < self.least <= 1.0 <= self.most, self
        assert self.half_life_s > 0.0, self
        assert self.step > 1.0, self


@dataclass(frozen=True, slots=True)
class UsageHistory:
    """Moving averages, both 0–1, and the factor that holds.

    `peak` is the highest share used in the `day_s` seconds of the day under way, `peaks` those of the days
    before it; `quiet` says that a day has just ended, and that all of them were quiet.
    """

    used: float = 0.0
    refused: float = 0.0
    factor: float = 1.0
    peak: float = 0.0
    day_s: float = 0.0
    peaks: tuple[float, ...] = ()
    quiet: bool = False


def observe(
    history: UsageHistory, *, used: float, refused: float, elapsed_s: float, bounds: AdjustBounds
) -> UsageHistory:
    """Fold in what a span of time showed: the share of the limit used, of the requests refused."""
    keep = 0.5 ** (max(elapsed_s, 0.0) / bounds.half_life_s)
    # Of what was bought, however much of it holds at the moment.
    peak = max(history.peak, _share(used * min(history.factor, 1.0)))
    day_s, peaks, quiet = history.day_s + max(elapsed_s, 0.0), history.peaks, False
    if day_s >= DAY_S:
        peaks = (*peaks, peak)[-DAYS:]
        quiet = len(peaks) == DAYS and max(peaks) < bounds.used_below
        peak, day_s = 0.0, 0.0
    return UsageHistory(
        history.used * keep + _share(used) * (1.0 - keep),
        history.refused * keep + _share(refused) * (1.0 - keep),
        history.factor,
        peak,
        day_s,
        peaks,
        quiet,
    )


def adjust(history: UsageHistory, *, bounds: AdjustBounds) -> UsageHistory:
    """The next factor: a step up, a step down or the same, never outside the bounds.

    Who is refused below what was bought has all of it again at once.
    """
    factor = history.factor
    if history.refused > bounds.refused_above:
        factor = max(factor * bounds.step, 1.0)
    elif factor > 1.0 and history.used < bounds.used_below:
        factor = max(factor / bounds.step, 1.0)
    elif factor <= 1.0 and history.quiet:
        factor /= bounds.step
    return replace(history, factor=min(max(factor, bounds.least), bounds.most), quiet=False)


def within(history: UsageHistory, bounds: AdjustBounds) -> UsageHistory:
    """The same history where other bounds hold now."""
    return replace(history, factor=min(max(history.factor, bounds.least), bounds.most))


def words_of(history: UsageHistory) -> list[float]:
    """A history as numbers, to be kept."""
    return [history.used, history.refused, history.factor, history.peak, history.day_s, *history.peaks]


def history_of(payload: Sequence[float]) -> UsageHistory | None:
    """A history that was kept; None for what none is."""
    if not 5 <= len(payload) <= 5 + DAYS or not all(isfinite(each) and each >= 0.0 for each in payload):
        return None
    used, refused, factor, peak, day_s, *peaks = payload
    if factor <= 0.0:
        return None
    return UsageHistory(_share(used), _share(refused), factor, _share(peak), day_s, tuple(map(_share, peaks)))


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if value == value else 0.0
