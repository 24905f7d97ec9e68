"""power_of_two: two endpoints at random, the one with fewer requests in flight.

Mitzenmacher's two choices: close to least_request with no herd among deciders that do not share
their books. The unsampled score infinity; retries go to the other of the pair, then at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from extproc.core.fleet import Endpoint
from extproc.core.strategies.base import Ranking, Work


class PowerOfTwo:
    """The better of two at random."""

    name = "power_of_two"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """The sampled pair by requests in flight, then others in random order."""
        drawn = rng.sample(range(len(candidates)), min(max(count, 2), len(candidates)))
        pair = sorted(drawn[:2], key=lambda i: (candidates[i].requests, candidates[i].picked))
        scores = [math.inf] * len(candidates)
        for i in pair:
            scores[i] = float(candidates[i].requests)
        return Ranking(scores, (pair + drawn[2:])[:count])
