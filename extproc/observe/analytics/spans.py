"""Spans of time: minutes, hours and days of UTC, how long each is kept, and which make up a given time.

Owns the arithmetic. A span is (its length, its beginning), both in seconds, the beginning since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MINUTE, HOUR, DAY = 60, 3_600, 86_400
#: Every request is counted in one span of each.
LENGTHS = (MINUTE, HOUR, DAY)


class TimeSpan(NamedTuple):
    """A minute, an hour or a day."""

    length_s: int
    begin_s: int

    @property
    def end_s(self) -> int:
        """When it is over."""
        return self.begin_s + self.length_s


class Stretch(NamedTuple):
    """Whole spans of one length, one after the other."""

    length_s: int
    begin_s: int
    end_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long minutes, hours and days are kept, in seconds."""

    minutes_s: int = 24 * HOUR
    hours_s: int = 14 * DAY
    days_s: int = 30 * DAY

    def keeps_s(self, length_s: int) -> int:
        """How long spans of a length are kept after their end."""
        return {MINUTE: self.minutes_s, HOUR: self.hours_s, DAY: self.days_s}[length_s]

    def since_s(self, length_s: int, *, now_s: int) -> int:
        """The beginning of the oldest span of a length that is kept: it ended less than that ago."""
        return _up(now_s - self.keeps_s(length_s) - length_s + 1, length_s)

    def finest(self, at_s: int, *, now_s: int) -> int:
        """The shortest length in which a time is still known; days where it is forgotten."""
        return next((each for each in LENGTHS if at_s >= self.since_s(each, now_s=now_s)), DAY)


def span_of(at_s: int, length_s: int) -> TimeSpan:
    """The span of a length in which a time lies."""
    return TimeSpan(length_s, at_s - at_s % length_s)


def stretches(
    since_s: int, until_s: int, retention: Retention, *, now_s: int, coarsest_s: int = DAY
) -> list[Stretch]:
    """Stretches that are kept and make up a time, each moment once; as few as possible.

    Both ends are moved outwards to the finest spans that are still known there; what is forgotten and what is
    yet to come is left out. No span is longer than `coarsest_s`: ValueError where only longer ones are known.
    """
    begin_s = max(since_s, retention.since_s(DAY, now_s=now_s))
    finest_s = retention.finest(begin_s, now_s=now_s)
    if finest_s > coarsest_s:
        raise ValueError(f"of {begin_s} only spans of {finest_s} s are kept")
    at_s = begin_s - begin_s % finest_s
    # What has just happened belongs to what is asked for up to now.
    end_s = until_s if until_s < now_s else now_s + 1
    found: list[Stretch] = []
    while at_s < end_s:
        # Aligned to the finest here, and so to every finer one later on.
        finest_s = retention.finest(at_s, now_s=now_s)
        length_s = max(
            each
            for each in LENGTHS
            if each == finest_s
            or (finest_s < each <= coarsest_s and at_s % each == 0 and _within(at_s + each, end_s, now_s))
        )
        if found and found[-1].length_s == length_s:
            found[-1] = found[-1]._replace(end_s=at_s + length_s)
        else:
            found.append(Stretch(length_s, at_s, at_s + length_s))
        at_s += length_s
    return found


def _within(span_end_s: int, end_s: int, now_s: int) -> bool:
    """Whether a span holds nothing from after the end: it stops before, or what follows is yet to come."""
    return span_end_s <= end_s or (end_s > now_s and span_end_s > now_s)


def _up(at_s: int, length_s: int) -> int:
    return -(-at_s // length_s) * length_s
