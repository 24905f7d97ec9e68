"""Sums over the last so much time."""

from __future__ import annotations

from collections import deque

#: Parts of the time; a sum is over so many whole ones and the one that runs.
PARTS = 60


class SlidingSum:
    """What was added in the last `span_ns`, and up to a sixtieth of it before; never less than the truth."""

    __slots__ = ("_part_ns", "_parts", "_sum")

    def __init__(self, span_ns: int) -> None:
        self._part_ns = span_ns // PARTS
        #: [part of time, sum], oldest first.
        self._parts: deque[list[float]] = deque()
        self._sum = 0.0

    def add(self, value: float, *, now_ns: int) -> None:
        """Count a value now."""
        part = now_ns // self._part_ns
        if self._parts and self._parts[-1][0] >= part:
            self._parts[-1][1] += value
        else:
            self._parts.append([part, value])
        self._sum += value

    def parts(self, *, now_ns: int) -> list[tuple[int, float]]:
        """When, at the latest, and how much, oldest first."""
        self.value(now_ns=now_ns)
        return [(min(now_ns, int(part + 1) * self._part_ns), value) for part, value in self._parts]

    def value(self, *, now_ns: int) -> float:
        """The sum now."""
        first = now_ns // self._part_ns - PARTS
        while self._parts and self._parts[0][0] < first:
            self._sum -= self._parts.popleft()[1]
        if not self._parts:
            self._sum = 0.0  # what rounding has left
        return self._sum
