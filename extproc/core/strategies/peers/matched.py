"""What the peers share: the part of a prompt that their own index knows, and ties broken at random."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random

from extproc.core.endpoint import Endpoint
from extproc.core.prefix import PrefixIndex

#: llm-d's LRU for each endpoint; also of those whose bound is not published.
CAPACITY_BLOCKS = 31_250


def match_rates(index: PrefixIndex, candidates: Sequence[Endpoint], prefix: Sequence[int]) -> list[float]:
    """Matched blocks over all blocks of the prompt, 0 to 1, for each candidate."""
    found = index.match(prefix) if prefix else {}
    if not found:
        return [0.0] * len(candidates)
    return [found.get(e.address, 0) / len(prefix) for e in candidates]


def drawn(scores: Sequence[float], count: int, rng: Random) -> list[int]:
    """Indexes of the lowest scores, ties at random."""
    lots = [(score, rng.random(), i) for i, score in enumerate(scores)]
    return [i for _, _, i in heapq.nsmallest(count, lots)]
