"""Limits that follow their history, within set bounds. Off unless a caller asks for it.

Pure: a history goes in, a factor comes out (`Limits.scaled` applies it). A tenant that is refused while
it uses what it has gets more, one that leaves most of it unused for long gets less.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
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
class History:
    """Moving averages, both 0–1, and the factor that holds."""

    used: float = 0.0
    refused: float = 0.0
    factor: float = 1.0


def observe(history: History, *, used: float, refused: float, elapsed_s: float, bounds: Bounds) -> History:
    """Fold in what a span of time showed: the share of the limit used, of the requests refused."""
    keep = 0.5 ** (max(elapsed_s, 0.0) / bounds.half_life_s)
    return History(
        history.used * keep + _share(used) * (1.0 - keep),
        history.refused * keep + _share(refused) * (1.0 - keep),
        history.factor,
    )


def adjust(history: History, *, bounds: Bounds) -> History:
    """The next factor: a step up, a step down or the same, never outside the bounds."""
    factor = history.factor
    if history.refused > bounds.refused_above:
        factor *= bounds.step
    elif history.used < bounds.used_below:
        factor /= bounds.step
    return History(history.used, history.refused, min(max(factor, bounds.least), bounds.most))


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if value == value else 0.0
