"""queue: hold until a replica would start the request, then the soonest start; the first class has a reserve.

Late binding without steer's guards. Score, in ms: the predicted start there,

    (prefill queued there + step/2 if it decodes + the zone's handicap) ÷ weight

An endpoint *takes* the request while fewer than `depth` requests wait for a first token there (÷ deciders,
at least 1), and, for a class below the first, while taking it leaves `reserve` of the permits free, so that
a burst of batch work never stands before the first class everywhere. An endpoint with nothing on it takes
one request of any class. If none takes it the request waits in the fair queue, whose classes come in order,
by deadline within one. Endpoints that do not take it score 1e6 ms later.

Inputs: our ledger (peers' and foreign requests count as running streams), the predictor. No first tokens
heard of: they are taken for come after three times their prediction (ledger.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue.order import EarliestDeadline, Order
from extproc.core.forecast import Forecast, running, start_ms
from extproc.core.outcome import LATER_MS
from extproc.core.strategies.base import Ranking, Strategy, lowest, zone_ms
from extproc.core.strategies.parameter import bounded
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class LeastStart(Strategy):
    """The soonest start, bound late."""

    name: ClassVar[str] = "queue"
    defers: ClassVar[bool] = True
    binds_late: ClassVar[bool] = True
    order: ClassVar[Order | None] = EarliestDeadline()

    depth: int = bounded(1, 1, 1_000)
    reserve: float = bounded(0.1, 0.0, 0.9)

    def opens(self, endpoints: Sequence[Endpoint], *, at: SchedulingContext = NOW) -> list[Endpoint]:
        """Those whose own queue is shallow enough for anything at all."""
        depth = self._depth(at)
        return [e for e in endpoints if e.load.queued < depth]

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """Those that take it now by predicted start, then the others; none takes it: hold."""
        depth = self._depth(at)
        scores, takers = [], 0
        for e in candidates:
            ms = (start_ms(e) + zone_ms(e, work)) / e.weight
            if e.load.queued < depth and (not work.rank or self._leaves_reserve(e, work)):
                takers += 1
            else:
                ms += LATER_MS
            scores.append(ms)
        return Ranking(scores, lowest(candidates, scores, count) if takers else ())

    def _depth(self, at: SchedulingContext) -> int:
        return max(1, self.depth // max(1, at.deciders))

    def _leaves_reserve(self, endpoint: Endpoint, work: Work) -> bool:
        taken = endpoint.permits + endpoint.peer_permits + endpoint.foreign
        return not taken or taken + work.sequences <= endpoint.max_concurrent * (1.0 - self.reserve)

    def holds_back(
        self, endpoint: Endpoint, candidates: Sequence[Endpoint], work: Work, *, at: SchedulingContext = NOW
    ) -> tuple[str, ...]:
        """Its own queue, or what it keeps for the first class."""
        queued, depth = endpoint.load.queued, self._depth(at)
        if queued >= depth:
            return (f"queue: {queued} of {depth} wait there for a first token",)
        if work.rank and not self._leaves_reserve(endpoint, work):
            return (f"reserve: {endpoint.load_permits} of {endpoint.max_concurrent} permits are taken",)
        return ()

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {
            "queued": endpoint.load.queued,
            "depth": self._depth(at),
            "queued_ms": endpoint.load.queued_ms,
            "streaming": running(endpoint)[0],
            "start_ms": start_ms(endpoint),
            "zone_ms": zone_ms(endpoint, work),
            "permits": endpoint.load_permits,
            "leaves_reserve": float(not work.rank or self._leaves_reserve(endpoint, work)),
            "weight": endpoint.weight,
        }
