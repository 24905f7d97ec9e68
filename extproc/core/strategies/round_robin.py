"""round_robin: each endpoint in turn.

Score: the endpoint's turn, which moves on by 1 ÷ weight each time it is chosen (stride scheduling), so
that one of weight 0.5 comes half as often. With whole weights that is the plain rotation; an endpoint
that was away takes up its turn without a burst. Inputs: health. Blind to load and zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Scored
from extproc.core.work import SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class RoundRobin(Scored):
    """Each endpoint in turn."""

    name: ClassVar[str] = "round_robin"

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """The earliest turn first."""
        return [endpoint.turn for endpoint in candidates]

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {"turn": endpoint.turn, "weight": endpoint.weight}
