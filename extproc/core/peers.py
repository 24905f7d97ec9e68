"""The other services before the same fleet: who they are, what they hold, and whose turn a place is.

Owns what is known of them between two of their messages. Whose turn it is by that is turns.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from extproc.core.endpoint import Endpoint
from extproc.core.fairqueue import FairQueue
from extproc.core.fleet import Fleet
from extproc.core.ledger import Ledger
from extproc.core.load import MS_NS
from extproc.core.outcome import Outcome
from extproc.core.policy import SchedulerSettings
from extproc.core.turns import TurnRow, Turns


class Peers:
    """The services beside this one, whose instance is `own`."""

    def __init__(self, own: str, fleet: Fleet, ledger: Ledger, settings: SchedulerSettings) -> None:
        self.own = own
        self._fleet, self._ledger, self._settings = fleet, ledger, settings
        self._names: frozenset[str] = frozenset()
        self._turns = Turns(own)
        #: Endpoints (pool, address) whose peers' load was reckoned on; what peers say of it is true again.
        self._reckoned: set[tuple[str, str]] = set()

    def __contains__(self, instance: str) -> bool:
        return instance in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @property
    def deciders(self) -> int:
        """The services that decide, this one included."""
        return len(self._names) + 1

    def made(self, reservation_id: str) -> bool:
        """Whether a peer decided on a request; its in-flight work is known by sharing."""
        return owner_of(reservation_id) in self._names

    def ours(self, reservation_id: str) -> bool:
        """Whether this service did, in this life."""
        return reservation_id.startswith(f"{self.own}-")

    def hear(
        self, instances: Iterable[str], needs: Mapping[str, Mapping[str, Iterable[TurnRow]]]
    ) -> set[tuple[str, str]]:
        """Who they are and what they need, all of it; the endpoints whose load was reckoned until now."""
        self._names = frozenset(instances)
        self._turns.hear(needs)
        reckoned, self._reckoned = self._reckoned, set()
        return reckoned

    def needs(self, queue: FairQueue, *, now_ns: int) -> dict[str, list[TurnRow]]:
        """What waits and runs here, for the pools that somebody waits for, here or elsewhere."""
        pools = {pool for pool, waiting in queue.by_pool.items() if waiting} | self._turns.pools
        found = {pool: self._rows(pool, queue, now_ns) for pool in pools if pool in self._fleet.pools}
        self._turns.tell(found)
        return found

    def contended(self, pool: str) -> bool:
        """Whether others hold requests for a pool."""
        return self._turns.contended(pool)

    def turn(self, pool: str, queue: FairQueue, *, now_ns: int) -> str | None:
        """The tenant that may begin one more here now, for all that waits at other services.

        "" for whoever is next here, None where it is the turn of another service.
        """
        if not self._turns.contended(pool):
            return ""
        weights = self._settings.policy.weights
        return self._turns.mine(pool, self._rows(pool, queue, now_ns), weights=weights, now_ns=now_ns)

    def freed(self, outcome: Outcome, at: Endpoint | None) -> tuple[bool, Endpoint | None]:
        """A request of this or of another service has ended: whether its place is ours to fill, and where.

        `at` is where it was, as far as it was in the ledger.
        """
        reservation = outcome.reservation
        pool, owner = reservation.pool, owner_of(reservation.id)
        peer = owner in self._names
        shared = peer or self._turns.contended(pool)
        if not reservation.permits or pool not in self._fleet.pools or not shared:
            return True, at
        filled = self._turns.ended(owner, pool, reservation.tenant, weights=self._settings.policy.weights)
        endpoint = at or self._fleet.endpoint(pool, outcome.served_by or reservation.address)
        if endpoint is not None:
            tokens = reservation.input_tokens + reservation.output_tokens
            self._reckoned.add((endpoint.pool, endpoint.address))
            if peer and filled == self.own:
                endpoint.peer_ended(reservation.permits, tokens)
            elif not peer and filled != self.own:
                endpoint.peer_begins(reservation.permits, tokens)
        return filled == self.own, endpoint

    def spent(self, pool: str) -> None:
        """A place that was this service's was filled, or nobody here fits it."""
        self._turns.spent(pool)

    def _rows(self, pool: str, queue: FairQueue, now_ns: int) -> list[TurnRow]:
        rows: dict[tuple[str, int], list[int]] = {}
        for tenant, level, held, oldest_ns in queue.backlog(pool):
            rows[tenant, level] = [held, 0, max(0, now_ns - oldest_ns) // MS_NS]
        for (tenant, klass), running in self._ledger.by_pool.get(pool, {}).items():
            rows.setdefault((tenant, self._settings.policy.rank(klass)), [0, 0, 0])[1] += running
        return [TurnRow(*name, *figures) for name, figures in rows.items()]


def owner_of(reservation_id: str) -> str:
    """The service that made a reservation: its id is `instance-number`."""
    return reservation_id.partition("-")[0]
