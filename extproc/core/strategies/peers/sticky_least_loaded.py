"""sticky-least-loaded: vllm-project/router's policy.

A session's endpoint while that lives, else the least loaded. Score: 0 for the session's endpoint, else 1 +
requests in flight, by the router's own count. A request without a session goes to the least loaded. Of the
sessions the 65,536 used last are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Scored
from extproc.core.work import SchedulingContext, Work

SESSIONS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class StickyLeastLoaded(Scored):
    """Where the session was, else the least loaded."""

    name: ClassVar[str] = "sticky-least-loaded"
    keeps_own: ClassVar[bool] = True

    homes: OrderedDict[int, str] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """The session's own first, then the fewest in flight."""
        home = self.homes.get(work.session) if work.session else None
        return [0.0 if e.address == home else 1.0 + e.requests for e in candidates]

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

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        home = self.homes.get(work.session) if work.session else None
        return {"home": float(endpoint.address == home), "requests": endpoint.requests}
