"""least_work: fewest predicted outstanding tokens. The default for now.

Score: (tokens outstanding on the endpoint + this request's + the zone's handicap) ÷ weight. A request
of ten tokens and one of ten thousand weigh what they are, which least_request cannot see; a throttled
replica at weight 0.5 is as loaded as a whole one with twice the tokens. Inputs: the ledgers, foreign
requests by telemetry (a floor, never a discount), health.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.endpoint import FOREIGN_REQUEST_TOKENS, Endpoint
from extproc.core.strategies.base import Ranking, Work, handicaps, lowest


class LeastWork:
    """Fewest outstanding tokens."""

    name = "least_work"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """Fewest outstanding tokens first; scores in tokens."""
        own = work.tokens
        # Spelt out rather than through `load_tokens`: a property costs as much as the sum, 1,000 times.
        scores = [
            (e.tokens + e.peer_tokens + e.foreign * FOREIGN_REQUEST_TOKENS + own) / e.weight
            for e in candidates
        ]
        added = handicaps(candidates, work)
        if added is not None:
            scores = [s + a / e.weight for s, a, e in zip(scores, added, candidates, strict=True)]
        return Ranking(scores, lowest(candidates, scores, count))
