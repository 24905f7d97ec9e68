"""What a strategy is: candidates and work in, an order and its scores out."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from extproc.core.endpoint import Endpoint
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class Ranking:
    """`scores[i]` of candidate i (lower is better, never NaN); `best` are indexes, best first.

    An empty `best` says that none of them should be given this request now: it waits.
    """

    scores: Sequence[float]
    best: Sequence[int]


class Strategy(Protocol):
    """A policy for choosing among endpoints that could all serve the request.

    Its fields are its parameters, with their defaults. Ours keep nothing but those (the endpoints' books
    do); a peer's may keep an index of its own, so each pool builds its own instance.
    """

    @property
    def name(self) -> str: ...

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """Rank the best `count` of at least one candidate."""
        ...


def handicaps(candidates: Sequence[Endpoint], work: Work) -> Sequence[int] | None:
    """Tokens to add to each candidate for its zone; None when none gets any."""
    zone, penalty = work.zone, work.zone_penalty_tokens
    if not zone or not penalty:
        return None
    return [0 if endpoint.zone == zone else penalty for endpoint in candidates]


def lowest(candidates: Sequence[Endpoint], scores: Sequence[float], count: int) -> list[int]:
    """Indexes of the `count` lowest scores; of equal ones the least recently picked comes first.

    The tie rule matters: an idle fleet is all ties, and whatever breaks them by position sends
    every request to the first endpoint.
    """
    if count == 1:
        low = min(scores)
        ties = [i for i, score in enumerate(scores) if score == low]
        return [min(ties, key=lambda i: candidates[i].picked)] if len(ties) > 1 else ties
    picks = [endpoint.picked for endpoint in candidates]
    return [i for _, _, i in heapq.nsmallest(count, zip(scores, picks, range(len(picks)), strict=True))]
