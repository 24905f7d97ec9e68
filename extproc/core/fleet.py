"""The fleet: endpoints, their pools, and the load that our own decisions have put on them.

Owns identity, readiness and the per-endpoint sums; the ledger adds and releases. An `Endpoint` is
one object for as long as its address is in the fleet, in whichever pool: what still runs on a replica
runs there whatever the pool around it is called now, so its permits must go along (law 10).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from extproc.core.calibrate import Calibration
from extproc.core.contract import cluster_name

#: The first and the longest time that an endpoint stays last in order after a failed attempt.
SUSPECT_FIRST_NS, SUSPECT_MAX_NS = 1_000_000_000, 30_000_000_000


class Endpoint:
    """One replica and our books about it.

    `waiting`, `running` are the engine's own figures, None while it has not said (never seen is not
    idle). `requests`, `permits`, `tokens` are in flight by our ledger.
    """

    __slots__ = (
        "address",
        "failures",
        "max_concurrent",
        "permits",
        "picked",
        "pool",
        "ready",
        "requests",
        "running",
        "suspect_until_ns",
        "tokens",
        "waiting",
        "zone",
    )

    def __init__(self, *, address: str, pool: str, zone: str = "", max_concurrent: int = 128) -> None:
        self.address = address
        self.pool = pool
        self.zone = zone
        self.max_concurrent = max_concurrent
        self.ready = True
        self.waiting: int | None = None
        self.running: int | None = None
        self.requests = 0
        self.permits = 0
        self.tokens = 0
        #: The number of the decision that last chose it: the least recent wins a tie.
        self.picked = 0
        self.failures = 0
        self.suspect_until_ns = 0

    def failed(self, now_ns: int) -> None:
        """An attempt on it failed: last in order for a while, twice as long each time.

        Failures while it is suspect are the same trouble seen by many requests and count once.
        """
        if now_ns < self.suspect_until_ns:
            return
        self.failures += 1
        pause = min(SUSPECT_FIRST_NS << min(self.failures - 1, 16), SUSPECT_MAX_NS)
        self.suspect_until_ns = now_ns + pause

    def succeeded(self) -> None:
        """It answered: trusted again."""
        self.failures = 0
        self.suspect_until_ns = 0

    def __repr__(self) -> str:
        return f"Endpoint({self.address}, requests={self.requests}, tokens={self.tokens})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """A pool as it is configured; `endpoints` are (address, zone, max_concurrent)."""

    name: str
    models: tuple[str, ...]
    strategy: str
    endpoints: tuple[tuple[str, str, int], ...]
    bytes_per_token: float = 4.0
    output_tokens: int = 256


class Pool:
    """Endpoints that serve one model, the order they are tried in and what they have taught."""

    __slots__ = ("calibration", "cluster", "endpoints", "models", "name", "prior", "strategy")

    def __init__(self, spec: PoolSpec, endpoints: list[Endpoint], calibration: Calibration) -> None:
        self.name = spec.name
        self.models = spec.models
        self.strategy = spec.strategy
        self.cluster = cluster_name(spec.name)
        #: What the calibration began with; a pool configured with another one begins again.
        self.prior = (spec.bytes_per_token, spec.output_tokens)
        self.endpoints = endpoints
        self.calibration = calibration


class Fleet:
    """All pools, by name and by the models they serve."""

    def __init__(self, specs: Iterable[PoolSpec]) -> None:
        self.pools: dict[str, Pool] = {}
        self._by_model: dict[str, Pool] = {}
        self._by_address: dict[tuple[str, str], Endpoint] = {}
        self.apply(specs)

    def apply(self, specs: Iterable[PoolSpec]) -> None:
        """Take a new configuration; endpoints and pools that stay keep their books and lessons.

        An address stands once in the whole fleet: two sets of books on one replica would promise its
        permits twice.
        """
        before = {endpoint.address: endpoint for endpoint in self._by_address.values()}
        pools: dict[str, Pool] = {}
        by_model: dict[str, Pool] = {}
        by_address: dict[tuple[str, str], Endpoint] = {}
        specs = list(specs)
        addresses = [address for spec in specs for address, _, _ in spec.endpoints]
        assert len(addresses) == len(set(addresses)), "an address stands twice in the fleet"
        for spec in specs:
            endpoints = []
            for address, zone, max_concurrent in spec.endpoints:
                endpoint = before.get(address) or Endpoint(address=address, pool=spec.name)
                endpoint.pool, endpoint.zone, endpoint.max_concurrent = spec.name, zone, max_concurrent
                endpoints.append(endpoint)
                by_address[spec.name, address] = endpoint
            known = self.pools.get(spec.name)
            calibration = (
                known.calibration
                if known is not None and known.prior == (spec.bytes_per_token, spec.output_tokens)
                else Calibration(bytes_per_token=spec.bytes_per_token, output_tokens=spec.output_tokens)
            )
            pool = Pool(spec, endpoints, calibration)
            pools[spec.name] = pool
            for model in spec.models:
                by_model[model] = pool
        self.pools, self._by_model, self._by_address = pools, by_model, by_address

    def pool_of(self, model: str) -> Pool | None:
        """The pool that serves a model name."""
        return self._by_model.get(model)

    def endpoint(self, pool: str, address: str) -> Endpoint | None:
        """The endpoint of a pool at an address."""
        return self._by_address.get((pool, address))

    @property
    def models(self) -> list[str]:
        """Every model name served, sorted."""
        return sorted(self._by_model)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, in the order of configuration."""
        return list(self._by_address.values())
