"""example-least-permits: the fewest permits taken for its health; of two alike the soonest first token.

Score: (permits taken + 1) ÷ weight ^ `health`, plus a thousandth for each second to the forecast first token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.strategies import (
    Endpoint,
    Forecast,
    SchedulingContext,
    Scored,
    Work,
    bounded,
    forecasts,
)


@dataclass(frozen=True, slots=True)
class LeastPermits(Scored):
    """Fewest permits taken."""

    name: ClassVar[str] = "example-least-permits"

    health: float = bounded(1.0, 0.0, 4.0)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Lower is better."""
        found = forecasts(candidates, work, cached=at.cached)
        return [
            (e.load_permits + 1) / e.weight**self.health + ttft_ms / 1e6
            for e, (ttft_ms, *_) in zip(candidates, found, strict=True)
        ]

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> Mapping[str, float]:
        """The terms of one endpoint's score."""
        return {"permits": endpoint.load_permits, "weight": endpoint.weight, "ttft_ms": expected.ttft_ms}
