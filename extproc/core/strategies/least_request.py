"""least_request: fewest requests in flight.

Score: (requests in flight + 1 + the zone's handicap in requests of this one's size) ÷ weight. In flight
by our own ledger, which is exact where telemetry is late (simulated: by telemetry 500 ms old alone the same
policy falls from 99.7 to 49.4 % attainment), plus what peers and telemetry know beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Scored, handicaps
from extproc.core.work import SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class LeastRequest(Scored):
    """Fewest requests in flight."""

    name: ClassVar[str] = "least_request"

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Fewest in flight first; scores in requests."""
        scores = [(e.requests + e.peer_requests + e.foreign + 1) / e.weight for e in candidates]
        added = handicaps(candidates, work)
        if added is not None:
            each = work.tokens
            scores = [s + a / each / e.weight for s, a, e in zip(scores, added, candidates, strict=True)]
        return scores

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        added = handicaps([endpoint], work)
        return {
            "requests": endpoint.requests,
            "peer_requests": endpoint.peer_requests,
            "foreign": endpoint.foreign,
            "zone_requests": added[0] / work.tokens if added is not None else 0.0,
            "weight": endpoint.weight,
        }
