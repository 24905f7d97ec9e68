"""Where a request goes now, and what is entered for it there: the one way into the ledger.

Owns what a placement moves: turns, expectations, the ledger, the memory of decisions. Who waits is
dispatch.py's. No I/O; its caller brings time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from extproc.core.candidates import kept_free
from extproc.core.decide import RoutingRequest
from extproc.core.decisions import Decisions
from extproc.core.endpoint import Endpoint
from extproc.core.errors import Error
from extproc.core.events import EventEmitter
from extproc.core.experiment import Experiments
from extproc.core.feedback import coming
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.outcome import Reject, Routed
from extproc.core.peers import Peers
from extproc.core.placement import Full, place
from extproc.core.strategies import SchedulingContext


class Placer:
    """Placements in one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        *,
        decisions: Decisions,
        peers: Peers,
        experiments: Experiments,
        events: EventEmitter,
        counts: Counter[str],
        rng: Random,
    ) -> None:
        self._fleet, self._ledger, self._decisions = fleet, ledger, decisions
        self._peers, self._experiments, self._rng = peers, experiments, rng
        self._events, self._counts = events, counts

    def surely(
        self,
        routing: RoutingRequest,
        now_ns: int,
        *,
        among: Sequence[Endpoint] | None = None,
        patient: bool = False,
        last: bool = False,
    ) -> Routed | Reject | Full:
        """Where a held request goes; a fault must lose neither it nor the others of the same event."""
        for degraded in ("", "internal error"):
            try:
                return self.place(routing, now_ns, degraded=degraded, among=among, patient=patient, last=last)
            except Exception:  # noqa: BLE001 (law: every exception becomes a decision)
                self._counts["exception.release"] += 1
        return Error.INTERNAL.reject("the gateway could not release this request")

    def idle(self, routing: RoutingRequest, now_ns: int) -> bool:
        """Whether a replica that may serve it has nothing to do, by everybody's account."""
        pool, needs = self._fleet.pools.get(routing.pool), routing.needs(routing.permits)
        idle = (
            [] if pool is None else [each for each in pool.endpoints if each.ready and not each.load_permits]
        )
        return any(needs.allows(each) and each.starts(routing.model, now_ns=now_ns) for each in idle)

    def place(
        self,
        routing: RoutingRequest,
        now_ns: int,
        *,
        degraded: str,
        among: Sequence[Endpoint] | None = None,
        patient: bool = False,
        last: bool = False,
    ) -> Routed | Reject | Full:
        """Where a request goes (`placement.place`), among as many services as there are now."""
        return place(
            routing,
            self._fleet,
            now_ns=now_ns,
            rng=self._rng,
            degraded=degraded,
            among=among,
            patient=patient,
            deciders=self._peers.deciders,
            last=last,
        )

    def enter(self, placed: Routed, routing: RoutingRequest, now_ns: int, *, number: int) -> None:
        """Enter what a placed request is for its endpoint; `number` counts the requests so far."""
        reservation, deciders = placed.reservation, self._peers.deciders
        endpoint = self._fleet.endpoint(reservation.pool, reservation.address)
        assert endpoint is not None, reservation.address
        pool = self._fleet.pools[reservation.pool]
        self._experiments.placed(routing, placed, pool, endpoint, now_ns=now_ns, deciders=deciders)
        endpoint.picked = number
        pool.turn = max(pool.turn, endpoint.turn)
        endpoint.turn = pool.turn + 1.0 / endpoint.weight
        # An arm's own instance hears of its own picks; what took its place, by the plain name.
        own = "#" in routing.strategy and routing.strategy.startswith(f"{reservation.strategy}#")
        strategy = pool.strategy_named(routing.strategy if own else reservation.strategy)
        held = {} if placed.plan is None else {endpoint.address: placed.plan.cached_tokens}
        at = SchedulingContext(now_ns=now_ns, cached=held, deciders=deciders)
        strategy.picked(pool.endpoints, endpoint, routing.work, at=at)
        if placed.plan is not None:
            coming(pool, endpoint, placed.plan)
        standby = kept_free(pool, [self._fleet.endpoint(pool.name, each) for each in placed.addresses[1:]])
        self._ledger.enter(reservation, endpoint, now_ns=now_ns, plan=placed.plan, standby=standby)
        self._decisions.note(routing, placed, now_ns=now_ns)
        self._events.placed(routing, placed, now_ns=now_ns)
