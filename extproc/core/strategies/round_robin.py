"""round_robin: each endpoint in turn.

Score: the number of the decision that last chose the endpoint, so the longest unchosen is next. With
a fixed set of candidates that is the plain rotation; an endpoint that was away takes up its turn
without a burst. Inputs: none of the fleet's telemetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.fleet import Endpoint
from extproc.core.strategies.base import Ranking, Work, lowest


class RoundRobin:
    """Each endpoint in turn."""

    name = "round_robin"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """Least recently chosen first."""
        scores = [float(endpoint.picked) for endpoint in candidates]
        return Ranking(scores, lowest(candidates, scores, count))
