"""Whose turn it is where several services hold requests for one pool.

Each service hears of the end of every request, but the one that made it hears of its place first: left to
itself it fills that place again, and keeps for ever what it once had, whoever waits elsewhere. So the
services tell each other what waits and what runs, by tenant (`TurnRow`), and a place that is free is for

    the best level at which anybody waits anywhere; there for the tenant that runs least for its weight, over
    all services; and for the service that holds its oldest request.

That is what one queue would do. The service then takes that tenant's, whatever its own queue would say: what
a tenant had elsewhere is charged there only when it has ended, so the queues are not of one mind. The same
figures give all services the same answer, and each end of a request reaches all of them: so a place that was
one's is another's within the milliseconds of its record. Figures are late by a message, so a place is now and
then given twice, or to nobody until the next message. Pure: no I/O; what peers say comes in (`hear`), what
they are told goes out (`tell`), and so does the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: A service keeps turns for others no longer than this while nothing of theirs begins: what they hold may
#: fit nowhere, or they are gone.
KEPT_NS = 300_000_000


class TurnRow(NamedTuple):
    """A tenant's requests in a pool at one level (0 served first), at one service.

    `waited_ms` is how long the oldest of the held has waited.
    """

    tenant: str
    level: int
    held: int
    running: int
    waited_ms: int = 0


class _Service:
    """What one service has of a pool, as far as it is known."""

    __slots__ = ("held", "rows")

    def __init__(self, rows: Iterable[TurnRow]) -> None:
        self.rows = list(rows)
        self.held = sum(row.held for row in self.rows)

    def ended(self, tenant: str) -> None:
        """One of a tenant's requests is over."""
        for at, row in enumerate(self.rows):
            if row.tenant == tenant and row.running:
                self.rows[at] = row._replace(running=row.running - 1)
                return

    def begins(self, tenant: str, level: int) -> None:
        """It fills a place."""
        for at, row in enumerate(self.rows):
            if (row.tenant, row.level) == (tenant, level) and row.held:
                # The next one's age is not known: as if they had come evenly.
                waited_ms = row.waited_ms * (row.held - 1) // row.held
                self.rows[at] = TurnRow(tenant, level, row.held - 1, row.running + 1, waited_ms)
                self.held -= 1
                return


class Turns:
    """What the other services hold and run, and whose turn it is. `own` is this service's name among them."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._pools: dict[str, dict[str, _Service]] = {}
        #: Since when turns are kept for others, by pool; forgotten when something of theirs begins.
        self._kept_ns: dict[str, int] = {}
        #: What the others know of this service.
        self._told: dict[str, _Service] = {}
        #: Pools with a place that is this service's by `ended`, and whose it is.
        self._granted: dict[str, str] = {}

    def hear(self, needs: Mapping[str, Mapping[str, Iterable[TurnRow]]]) -> None:
        """What each peer has by pool, all of it; who is not named has nothing."""
        before, self._pools = self._pools, {}
        for peer, pools in needs.items():
            for pool, rows in pools.items():
                self._pools.setdefault(pool, {})[peer] = _Service(rows)
        for pool in list(self._kept_ns):
            if not self.contended(pool) or _running(self._pools, pool) > _running(before, pool):
                del self._kept_ns[pool]

    def tell(self, needs: Mapping[str, Iterable[TurnRow]]) -> None:
        """What this service tells the others now, all of it."""
        self._told = {pool: _Service(rows) for pool, rows in needs.items()}

    def contended(self, pool: str) -> bool:
        """Whether others hold requests for a pool."""
        services = self._pools.get(pool)
        return services is not None and any(each.held for each in services.values())

    @property
    def pools(self) -> set[str]:
        """Pools for which others hold requests."""
        return {pool for pool in self._pools if self.contended(pool)}

    def mine(
        self, pool: str, rows: Iterable[TurnRow], *, weights: Mapping[str, float], now_ns: int
    ) -> str | None:
        """The tenant whose the next place is, of this service, which has these rows: "" for whoever is next.

        None where it is another service's.
        """
        if pool in self._granted:
            return self._granted.pop(pool)
        found = self._next({**self._pools.get(pool, {}), self.own: _Service(rows)}, weights)
        if found is None:
            return ""
        name, tenant, _ = found
        if name == self.own:
            return tenant
        return "" if now_ns - self._kept_ns.setdefault(pool, now_ns) >= KEPT_NS else None

    def ended(self, owner: str, pool: str, tenant: str, *, weights: Mapping[str, float]) -> str:
        """A request of a service has ended; who fills its place: the owner where nobody is known to wait.

        All hear of it, and all reckon alike, each with what it has told and not with what it knows: of what
        waits here since then the owner of the place cannot know, and fills it. Who is next is taken to begin.
        """
        services = {**self._pools.get(pool, {}), self.own: self._told.get(pool) or _Service(())}
        if owner in services:
            services[owner].ended(tenant)
        found = self._next(services, weights, owner=owner)
        name, of = owner, ""
        if found is not None:
            name, of, level = found
            services[name].begins(of, level)
        if name == self.own:
            self._granted[pool] = of
        return name

    def spent(self, pool: str) -> None:
        """A place that was this service's was filled, or nobody here fits it."""
        self._granted.pop(pool, None)

    def _next(
        self, services: Mapping[str, _Service], weights: Mapping[str, float], *, owner: str = ""
    ) -> tuple[str, str, int] | None:
        """The service, tenant and level whose turn it is; None where nobody waits."""
        running: dict[str, int] = {}
        best: dict[str, int] = {}
        level = min((row.level for each in services.values() for row in each.rows if row.held), default=None)
        if level is None:
            return None
        for each in services.values():
            for row in each.rows:
                running[row.tenant] = running.get(row.tenant, 0) + row.running
                if row.held and row.level == level:
                    best[row.tenant] = best.get(row.tenant, 0) + row.held
        tenant = min(best, key=lambda name: (running[name] / weights.get(name, 1.0), name))

        def waited(name: str) -> int:
            rows = services[name].rows
            return max(
                (r.waited_ms for r in rows if r.held and (r.tenant, r.level) == (tenant, level)), default=-1
            )

        return max(sorted(services), key=lambda name: (waited(name), name == owner)), tenant, level


def _running(pools: Mapping[str, Mapping[str, _Service]], pool: str) -> int:
    return sum(row.running for each in pools.get(pool, {}).values() for row in each.rows)
