"""random: every endpoint with equal chance. A baseline; its scores are the draws themselves."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from extproc.core.fleet import Endpoint
from extproc.core.strategies.base import Ranking, Work, lowest


class RandomChoice:
    """Equal chances."""

    name = "random"

    def rank(self, candidates: Sequence[Endpoint], work: Work, *, count: int, rng: Random) -> Ranking:  # noqa: ARG002 (the protocol's)
        """Lowest draw first; scores in [0, 1)."""
        scores = [rng.random() for _ in candidates]
        return Ranking(scores, lowest(candidates, scores, count))
