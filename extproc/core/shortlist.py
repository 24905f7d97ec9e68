"""Which endpoints of a pool could take anything at all now: a look that saves most rankings.

Owns what late binding asks of a strategy before it ranks (`opens`, `may`); for one event. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from extproc.core.decide import RoutingRequest
from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Pool
from extproc.core.strategies import SchedulingContext

#: Pools of up to so many endpoints are looked through whole at each event.
SCANNED_WHOLE_MAX = 16


class Shortlist:
    """Which endpoints of a pool could take anything at all now, by the strategy of a request.

    `open` is false when none could take anything, so that an event costs no more than this look. Where
    one endpoint alone has changed, a large pool is not gone through for it.
    """

    __slots__ = ("_among", "_at", "_known", "_moment", "_pool", "open")

    def __init__(self, pool: Pool, at: Endpoint | None, context: SchedulingContext) -> None:
        self._pool, self._at, self._moment = pool, at, context
        self._known: dict[str, Sequence[Endpoint] | None] = {}
        self.open = True
        self.changed()

    def __len__(self) -> int:
        return len(self._pool.endpoints)

    def changed(self) -> None:
        """A request was placed: look again."""
        self._known.clear()
        among = self._look(self._pool.strategy)
        self.open = among is None or bool(among) or not self._pool.plain

    def of(self, routing: RoutingRequest) -> Sequence[Endpoint] | None:
        """The endpoints to ask for a case; None asks all of the pool."""
        strategy = routing.strategy or self._pool.strategy
        if strategy not in self._known:
            self._look(strategy)
        return self._known[strategy]

    def may(self, routing: RoutingRequest, among: Sequence[Endpoint] | None) -> bool:
        """Whether asking them could be worth it."""
        if among is not None and not among:
            return False
        if not self._pool.ready:
            return True
        strategy = self._pool.strategy_named(routing.strategy or self._pool.strategy)
        return strategy.may(routing.work, self._pool.endpoints if among is None else among, at=self._moment)

    def _look(self, strategy: str) -> Sequence[Endpoint] | None:
        endpoints: Sequence[Endpoint] = self._pool.endpoints
        if self._at is not None and len(endpoints) > SCANNED_WHOLE_MAX:
            endpoints = [self._at] if self._at.pool == self._pool.name else []
        among = self._pool.strategy_named(strategy).opens(endpoints, at=self._moment)
        if not among and not self._pool.ready:
            # Who waits for a pool without a ready replica is told so.
            among = self._pool.endpoints
        whole = len(among) == len(self._pool.endpoints)
        self._known[strategy] = None if whole else among
        return self._known[strategy]
