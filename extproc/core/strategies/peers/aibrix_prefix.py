"""aibrix-prefix: AIBrix's prefix-cache routing.

If the most running exceeds the least by > 8: the fewest running. Else the highest prefix match among
endpoints with running ≤ mean + 1 standard deviation, of equal matches the fewest running.

Score: balanced, (1 − match) + a ten-thousandth for what runs; those above the deviation, and everybody when
out of balance, 1 + running. Running is the gateway's own count in flight. Its blocks are smaller than ours,
and what is published names no bound of its table: llm-d's stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.prefix import PrefixIndex
from extproc.core.strategies.base import Ranking
from extproc.core.strategies.parameter import bounded
from extproc.core.strategies.peers.matched import CAPACITY_BLOCKS, drawn, match_rates
from extproc.core.work import NOW, SchedulingContext, Work

#: What running requests weigh between equal matches: below the smallest difference of two matches.
TIE = 1e-4


@dataclass(frozen=True, slots=True)
class AibrixPrefix:
    """Highest match among the not too busy."""

    name: ClassVar[str] = "aibrix-prefix"

    imbalance: int = bounded(8, 0, 1_000_000)
    deviations: float = bounded(1.0, 0.0, 100.0)
    index: PrefixIndex = field(default_factory=PrefixIndex, init=False, repr=False, compare=False)

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """Best match first, or fewest running when out of balance."""
        running = [e.requests for e in candidates]
        if max(running) - min(running) > self.imbalance:
            scores = [1.0 + each for each in running]
            return Ranking(scores, drawn(scores, count, rng))
        mean = sum(running) / len(running)
        spread = sqrt(sum((each - mean) ** 2 for each in running) / len(running))
        most = mean + self.deviations * spread + 1e-9
        scores = [
            1.0 - rate + TIE * each / (each + 1.0) if each <= most else 1.0 + each
            for each, rate in zip(running, match_rates(self.index, candidates, work.prefix), strict=True)
        ]
        return Ranking(scores, drawn(scores, count, rng))

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """The prompt's blocks are taken for cached where it went."""
        self.index.insert(endpoint.address, work.prefix, capacity_blocks=CAPACITY_BLOCKS)

    def forget(self, address: str) -> None:
        """An endpoint left, or lost its cache."""
        self.index.forget(address)

    def explain(self, endpoint: Endpoint, work: Work, *, at: SchedulingContext = NOW) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {
            "running": endpoint.requests,
            "matched": match_rates(self.index, [endpoint], work.prefix)[0],
        }
