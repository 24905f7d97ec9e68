"""Tokens a second from an engine's own counters, over a short window. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

#: The window, and the least of it that is worth a figure.
WINDOW_S, SPAN_MIN_S = 5.0, 0.5
SAMPLES_MAX: Final = 128


class CounterRate:
    """The rate of one counter; None while it does not move on an idle engine (nothing to measure by)."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def add(self, value: float | None, now_s: float) -> None:
        """Take a reading; one below the last means that the engine started anew."""
        samples = self._samples
        if value is None or (samples and value < samples[-1][1]):
            samples.clear()
        if value is None:
            return
        samples.append((now_s, value))
        while len(samples) > 2 and now_s - samples[1][0] >= WINDOW_S:
            samples.popleft()

    def per_s(self, *, work: bool) -> float | None:
        """Tokens a second over the window."""
        if len(self._samples) < 2:
            return None
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        if last_s - first_s < SPAN_MIN_S or (last == first and not work):
            return None
        return (last - first) / (last_s - first_s)
