"""random: every endpoint with a chance in proportion to its weight. A baseline.

Score: −ln(1 − u) ÷ weight for a uniform draw u; the lowest of such exponentials falls on an endpoint
with probability weight ÷ sum of weights (Efraimidis and Spirakis). Blind to load and zones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Ranking, Strategy, lowest
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class RandomChoice(Strategy):
    """Chances by weight."""

    name: ClassVar[str] = "random"

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """Lowest draw first."""
        scores = [-math.log(1.0 - rng.random()) / endpoint.weight for endpoint in candidates]
        return Ranking(scores, lowest(candidates, scores, count))

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score, but for the draw."""
        return {"weight": endpoint.weight}
