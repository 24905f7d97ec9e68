"""round_robin: each endpoint in turn.

Score: the endpoint's turn, which moves on by 1 ÷ weight each time it is chosen (stride scheduling), so
that one of weight 0.5 comes half as often. With whole weights that is the plain rotation; an endpoint
that was away takes up its turn without a burst. Inputs: health. Blind to load and zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.strategies.base import Ranking, lowest
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Each endpoint in turn."""

    name: ClassVar[str] = "round_robin"

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """The earliest turn first."""
        scores = [endpoint.turn for endpoint in candidates]
        return Ranking(scores, lowest(candidates, scores, count))

    def explain(self, endpoint: Endpoint, work: Work, *, at: SchedulingContext = NOW) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {"turn": endpoint.turn, "weight": endpoint.weight}
