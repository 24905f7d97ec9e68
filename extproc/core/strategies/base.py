"""What a strategy is: candidates and work in, an order and its scores out."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar

import msgspec

from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue.order import Order
from extproc.core.forecast import Forecast, Values
from extproc.core.work import NOW, SchedulingContext, Work

#: So many candidates are sorted; of more the best are kept in a heap.
SORTED_MAX = 32


class Ranking(msgspec.Struct, frozen=True):
    """`scores[i]` of candidate i (lower is better, never NaN); `best` are indexes, best first.

    An empty `best` says that none of them should be given this request now: it waits.
    """

    scores: Sequence[float]
    best: Sequence[int]


class Strategy(ABC):
    """A policy for choosing among endpoints that could all serve the request. It must have `name` and `rank`.

    A subclass is a dataclass: its fields are its parameters, with their defaults (`bounded` gives one a
    range); a field with `init=False` is what it keeps. Each pool builds its own instance. The hooks beyond
    `rank` have defaults that do nothing. None may change an endpoint but `picked`.
    """

    __slots__ = ()

    #: What configurations call it.
    name: ClassVar[str]
    #: Scores from LATER_MS on are of endpoints that come after all others.
    defers: ClassVar[bool] = False
    #: A request waits while there are no others than those; `rank` then names none.
    binds_late: ClassVar[bool] = False
    #: `picked` moves nothing but what the strategy keeps itself.
    keeps_own: ClassVar[bool] = False
    #: Its order in the fair queue; None for the queue's own.
    order: ClassVar[Order | None] = None

    @abstractmethod
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

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> Mapping[str, float]:
        """Every term of an endpoint's score, by name; `expected` is what is forecast there."""
        return {}

    def holds_back(
        self,
        endpoint: Endpoint,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        at: SchedulingContext = NOW,
    ) -> tuple[str, ...]:
        """Late binding: what keeps it from giving an endpoint among these the request now, in words."""
        return ()

    def opens(self, endpoints: Sequence[Endpoint], *, at: SchedulingContext = NOW) -> Sequence[Endpoint]:
        """Late binding: those that could take anything at all now; a look that saves most rankings."""
        return endpoints

    def may(self, work: Work, among: Sequence[Endpoint], *, at: SchedulingContext = NOW) -> bool:
        """Late binding: whether any of those that are open could take this request, by a look alone."""
        return True

    def picked(  # noqa: B027 (most keep nothing)
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """A request is placed on one of a pool's endpoints: move what the strategy keeps."""

    def forget(self, address: str) -> None:  # noqa: B027 (most keep nothing)
        """An endpoint left, or lost its cache."""


class Scored(Strategy):
    """One whose order is that of its scores; of equal ones the least recently picked comes first."""

    __slots__ = ()

    @abstractmethod
    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> Sequence[float]:
        """One for each candidate, lower is better."""

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
        return Ranking(scores, lowest(candidates, scores, count))


def handicaps(candidates: Sequence[Endpoint], work: Work) -> Sequence[int] | None:
    """Tokens to add to each candidate for its zone; None when none gets any."""
    zone, penalty = work.zone, work.zone_penalty_tokens
    if not zone or not penalty:
        return None
    return [0 if endpoint.zone == zone else penalty for endpoint in candidates]


def zone_ms(endpoint: Endpoint, work: Work) -> float:
    """The handicap of an endpoint in another zone: its tokens' prefill."""
    if not work.zone_penalty_tokens or not work.zone or endpoint.zone == work.zone:
        return 0.0
    speed = endpoint.speed
    return work.zone_penalty_tokens * speed.factor * speed.model.timing.prefill_per_token_ms


def weighted_ttft_ms(endpoints: Sequence[Endpoint], work: Work, found: Sequence[Values]) -> list[float]:
    """Of forecasts the times to first token, the zone's handicap included, over the health weights."""
    if work.zone and work.zone_penalty_tokens:
        return [(each[0] + zone_ms(e, work)) / e.weight for e, each in zip(endpoints, found, strict=True)]
    return [each[0] / e.weight for e, each in zip(endpoints, found, strict=True)]


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
    lots = zip(scores, picks, range(len(picks)), strict=True)
    # A heap of a few costs more than putting them all in order.
    first = sorted(lots)[:count] if len(picks) <= SORTED_MAX else heapq.nsmallest(count, lots)
    return [i for _, _, i in first]
