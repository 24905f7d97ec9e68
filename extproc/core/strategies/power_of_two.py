"""power_of_two: two endpoints at random, the one with fewer requests in flight for its weight.

Mitzenmacher's two choices: close to least_request with no herd among deciders that do not share
their books. Score: (requests in flight + 1) ÷ weight; the unsampled score infinity. Retries go to the
other of the pair, then at random. Blind to zones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Ranking, Strategy
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class PowerOfTwo(Strategy):
    """The better of two at random."""

    name: ClassVar[str] = "power_of_two"

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """The sampled pair by requests in flight, then others in random order."""
        drawn = rng.sample(range(len(candidates)), min(max(count, 2), len(candidates)))
        scores = [math.inf] * len(candidates)
        for i in drawn[:2]:
            scores[i] = (candidates[i].load_requests + 1) / candidates[i].weight
        pair = sorted(drawn[:2], key=lambda i: (scores[i], candidates[i].picked))
        return Ranking(scores, (pair + drawn[2:])[:count])

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score, were it sampled."""
        return {"requests": endpoint.load_requests, "weight": endpoint.weight}
