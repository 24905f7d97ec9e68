"""aibrix-prefix: AIBrix's prefix-cache routing.

If the most running exceeds the least by > 8: the fewest running. Else the highest prefix match among
endpoints with running ≤ mean + 1 standard deviation, of equal matches the fewest running.

Score: balanced, (1 − match) + a ten-thousandth for what runs; those above the deviation, and everybody when
out of balance, 1 + running. Running is the gateway's own count in flight. Its blocks are smaller than ours,
and what is published names no bound of its table: llm-d's stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.parameter import bounded
from extproc.core.strategies.peers.indexed import Drawn, Indexed
from extproc.core.work import SchedulingContext, Work

#: What running requests weigh between equal matches: below the smallest difference of two matches.
TIE = 1e-4


@dataclass(frozen=True, slots=True)
class AibrixPrefix(Indexed, Drawn):
    """Highest match among the not too busy."""

    name: ClassVar[str] = "aibrix-prefix"

    imbalance: int = bounded(8, 0, 1_000_000)
    deviations: float = bounded(1.0, 0.0, 100.0)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Best match first, or fewest running when out of balance."""
        running = [e.requests for e in candidates]
        if max(running) - min(running) > self.imbalance:
            return [1.0 + each for each in running]
        mean = sum(running) / len(running)
        spread = sqrt(sum((each - mean) ** 2 for each in running) / len(running))
        most = mean + self.deviations * spread + 1e-9
        return [
            1.0 - rate + TIE * each / (each + 1.0) if each <= most else 1.0 + each
            for each, rate in zip(running, self.rates(candidates, work), strict=True)
        ]

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {
            "running": endpoint.requests,
            "matched": self.rates([endpoint], work)[0],
        }
