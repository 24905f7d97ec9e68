"""least_work: fewest predicted outstanding tokens.

Score: (tokens outstanding on the endpoint + this request's + the zone's handicap) ÷ weight. A request
of ten tokens and one of ten thousand weigh what they are, which least_request cannot see; a throttled
replica at weight 0.5 is as loaded as a whole one with twice the tokens. Inputs: the ledgers, foreign
requests by telemetry (a floor, never a discount), health.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Scored, handicaps
from extproc.core.work import SchedulingContext, Work

#: What a request of somebody else's weighs, in tokens: all that is known is that it is there.
FOREIGN_REQUEST_TOKENS = 512


@dataclass(frozen=True, slots=True)
class LeastWork(Scored):
    """Fewest outstanding tokens."""

    name: ClassVar[str] = "least_work"

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Fewest outstanding tokens first; scores in tokens."""
        return outstanding(candidates, work)

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        added = handicaps([endpoint], work)
        return {
            "tokens": endpoint.tokens,
            "peer_tokens": endpoint.peer_tokens,
            "foreign_tokens": endpoint.foreign * FOREIGN_REQUEST_TOKENS,
            "own_tokens": work.tokens,
            "zone_tokens": added[0] if added is not None else 0.0,
            "weight": endpoint.weight,
        }


def outstanding(candidates: Sequence[Endpoint], work: Work) -> list[float]:
    """Tokens that each candidate would have to do with this request, over its weight."""
    own = work.tokens
    scores = [
        (e.tokens + e.peer_tokens + e.foreign * FOREIGN_REQUEST_TOKENS + own) / e.weight for e in candidates
    ]
    added = handicaps(candidates, work)
    if added is None:
        return scores
    return [s + a / e.weight for s, a, e in zip(scores, added, candidates, strict=True)]
