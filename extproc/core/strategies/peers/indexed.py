"""What the peers share: an index of prefixes of their own, and ties broken at random."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.prefix import PrefixIndex
from extproc.core.strategies.base import Ranking, Scored, Strategy
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class Indexed(Strategy):
    """Believes a prompt's blocks cached where it has sent them."""

    keeps_own: ClassVar[bool] = True
    #: llm-d's LRU for each endpoint; also of those whose bound is not published.
    capacity_blocks: ClassVar[int] = 31_250
    #: Blocks of one prompt that count; None for all.
    prompt_blocks_max: ClassVar[int | None] = None

    index: PrefixIndex = field(default_factory=PrefixIndex, init=False, repr=False, compare=False)

    def rates(self, endpoints: Sequence[Endpoint], work: Work) -> list[float]:
        """Matched blocks over all blocks of the prompt, 0 to 1, for each endpoint."""
        prefix = work.prefix[: self.prompt_blocks_max]
        found = self.index.match(prefix) if prefix else {}
        if not found:
            return [0.0] * len(endpoints)
        return [found.get(e.address, 0) / len(prefix) for e in endpoints]

    def capacity(self, endpoint: Endpoint, work: Work) -> int:
        """Blocks that an endpoint is believed to hold at most."""
        return self.capacity_blocks

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """The prompt's blocks are taken for cached where it went."""
        prefix, capacity = work.prefix[: self.prompt_blocks_max], self.capacity(endpoint, work)
        self.index.insert(endpoint.address, prefix, capacity_blocks=capacity)

    def forget(self, address: str) -> None:
        """An endpoint left, or lost its cache."""
        self.index.forget(address)


class Drawn(Scored):
    """The lowest score first, ties at random."""

    __slots__ = ()

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """The lowest scores first."""
        scores = self.scores(candidates, work, at)
        lots = [(score, rng.random(), i) for i, score in enumerate(scores)]
        return Ranking(scores, [i for _, _, i in heapq.nsmallest(count, lots)])
