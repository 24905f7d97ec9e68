"""How long an endpoint's answers took of late: averages that jump at a peak and sink slowly.

Peak-sensitive exponentially weighted moving averages (Finagle's PeakEwma): an observation above the
average replaces it at once, one below pulls it down with the time constant. Idle time counts: what has
not been seen for long fades towards nothing, so that an endpoint that was slow once is tried again.
"""

from __future__ import annotations

import math

#: Time constant of both averages.
DECAY_NS = 10_000_000_000
#: An observation counts as at most this.
OBSERVED_MS_MAX = 600_000.0


class PeakAverage:
    """One peak-sensitive average, in milliseconds; 0 while nothing was observed."""

    __slots__ = ("_at_ns", "_ms", "decay_ns")

    def __init__(self, decay_ns: int = DECAY_NS) -> None:
        self.decay_ns = decay_ns
        self._ms = 0.0
        self._at_ns = 0

    def saw(self, observed_ms: float, *, now_ns: int) -> None:
        """Take one observation; what is no time at all is passed over."""
        if not observed_ms >= 0.0:
            return
        observed_ms = min(observed_ms, OBSERVED_MS_MAX)
        if observed_ms >= self._ms:
            self._ms = observed_ms
        else:
            keep = math.exp(-max(0, now_ns - self._at_ns) / self.decay_ns)
            self._ms = self._ms * keep + observed_ms * (1.0 - keep)
        self._at_ns = max(self._at_ns, now_ns)

    def ms(self, *, now_ns: int) -> float:
        """The average now, faded by the time since the last observation."""
        quiet_ns = now_ns - self._at_ns - self.decay_ns
        return self._ms if quiet_ns <= 0 else self._ms * math.exp(-quiet_ns / self.decay_ns)


class Latency:
    """An endpoint's times: to the first token, and between tokens. Milliseconds."""

    __slots__ = ("tpot", "ttft")

    def __init__(self) -> None:
        self.ttft = PeakAverage()
        self.tpot = PeakAverage()
