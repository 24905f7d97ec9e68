"""least_work: fewest predicted outstanding tokens. The default for now.

Score: the tokens (prompt plus predicted output) that our ledger holds on the endpoint. A request of
ten tokens and one of ten thousand weigh what they are, which least_request cannot see. Inputs: the
ledger alone, so nothing can be stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.fleet import Endpoint
from extproc.core.strategies.base import Ranking, Work, lowest


class LeastWork:
    """Fewest outstanding tokens."""

    name = "least_work"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """Fewest outstanding tokens first; scores in tokens."""
        scores = [float(endpoint.tokens) for endpoint in candidates]
        return Ranking(scores, lowest(candidates, scores, count))
