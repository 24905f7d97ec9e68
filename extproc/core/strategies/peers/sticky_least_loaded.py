"""sticky-least-loaded: vllm-project/router's policy.

A session's endpoint while that lives, else the least loaded. Score: 0 for the session's endpoint, else 1 +
requests in flight, by the router's own count. A request without a session goes to the least loaded. Of the
sessions the 65,536 used last are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.strategies.base import Ranking, lowest
from extproc.core.work import NOW, SchedulingContext, Work

SESSIONS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class StickyLeastLoaded:
    """Where the session was, else the least loaded."""

    name: ClassVar[str] = "sticky-least-loaded"

    homes: OrderedDict[int, str] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """The session's own first, then the fewest in flight."""
        home = self.homes.get(work.session) if work.session else None
        scores = [0.0 if e.address == home else 1.0 + e.requests for e in candidates]
        return Ranking(scores, lowest(candidates, scores, count))

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """The session stays where it went."""
        if not work.session:
            return
        self.homes[work.session] = endpoint.address
        self.homes.move_to_end(work.session)
        if len(self.homes) > SESSIONS_MAX:
            self.homes.popitem(last=False)

    def explain(self, endpoint: Endpoint, work: Work, *, at: SchedulingContext = NOW) -> dict[str, float]:
        """The terms of one endpoint's score."""
        home = self.homes.get(work.session) if work.session else None
        return {"home": float(endpoint.address == home), "requests": endpoint.requests}
