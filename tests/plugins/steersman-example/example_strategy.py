"""example-least-permits: the fewest permits taken for its health; of two alike the soonest first token.

Score: (permits taken + 1) ÷ weight ^ `health`, plus a thousandth for each second to the forecast first token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.strategies import (
    NOW,
    Endpoint,
    SchedulingContext,
    Scored,
    Work,
    bounded,
    forecast,
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

    def explain(self, endpoint: Endpoint, work: Work, *, at: SchedulingContext = NOW) -> Mapping[str, float]:
        """The terms of one endpoint's score."""
        ttft_ms = forecast(endpoint, work, cached=at.cached).ttft_ms
        return {"permits": endpoint.load_permits, "weight": endpoint.weight, "ttft_ms": ttft_ms}
