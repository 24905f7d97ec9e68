"""The fleet: pools, the endpoints in them, and how both change while requests run.

Owns membership. An address stands once in the whole fleet: two sets of books on one replica would
promise its permits twice. What leaves stays known until its last request has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from extproc.core.calibrate import Calibration
from extproc.core.contract import cluster_name
from extproc.core.diagnosis import STALE_NS, Diagnosis, step_pool
from extproc.core.endpoint import Endpoint, Member
from extproc.core.outcome import Outcome
from extproc.core.reports import ReplicaReport

__all__ = ["Endpoint", "Fleet", "Member", "Pool", "PoolSpec"]

#: A zone's worth when none is configured: about what a request of the usual kind costs.
ZONE_PENALTY_TOKENS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """A pool as it is configured; `endpoints` are members, or tuples of a member's fields."""

    name: str
    models: tuple[str, ...]
    strategy: str
    endpoints: tuple[tuple[str, str, int] | Member, ...]
    bytes_per_token: float = 4.0
    output_tokens: int = 256
    zone_penalty_tokens: int = ZONE_PENALTY_TOKENS


class Pool:
    """Endpoints that serve one model, the order they are tried in and what they have taught."""

    __slots__ = (
        "blind",
        "calibration",
        "endpoints",
        "models",
        "name",
        "prior",
        "strategy",
        "turn",
        "zone_penalty_tokens",
    )

    def __init__(self, spec: PoolSpec, endpoints: list[Endpoint], calibration: Calibration) -> None:
        self.name = spec.name
        self.models = spec.models
        self.strategy = spec.strategy
        #: What the calibration began with; a pool configured with another one begins again.
        self.prior = (spec.bytes_per_token, spec.output_tokens)
        self.zone_penalty_tokens = spec.zone_penalty_tokens
        self.endpoints = endpoints
        self.calibration = calibration
        #: Its telemetry is stale everywhere it ever was.
        self.blind = False
        #: How far the weighted rotation has come (round_robin).
        self.turn = 0.0

    def cluster_for(self, service_class: str) -> str:
        """The upstream cluster in which a service class sees this pool."""
        return cluster_name(self.name, service_class)


class Fleet:
    """All pools, by name and by the models they serve."""

    def __init__(self, specs: Iterable[PoolSpec]) -> None:
        self.pools: dict[str, Pool] = {}
        self._by_model: dict[str, Pool] = {}
        self._by_address: dict[str, Endpoint] = {}
        self._diagnoses: dict[str, Diagnosis] = {}
        #: Endpoints that left while requests were running on them.
        self.leaving: dict[str, Endpoint] = {}
        #: Counts the changes that Envoy must hear of: members, readiness, weights.
        self.version = 0
        self.apply(specs)

    def apply(self, specs: Iterable[PoolSpec]) -> None:
        """Take a new configuration; endpoints and pools that stay keep their books and lessons.

        A pool's `endpoints` are the members it has from now on, whatever other source had added.
        """
        specs = list(specs)
        members = {spec.name: [Member(*each) for each in spec.endpoints] for spec in specs}
        self._check(members)
        pools: dict[str, Pool] = {}
        by_model: dict[str, Pool] = {}
        for spec in specs:
            known = self.pools.get(spec.name)
            calibration = (
                known.calibration
                if known is not None and known.prior == (spec.bytes_per_token, spec.output_tokens)
                else Calibration(bytes_per_token=spec.bytes_per_token, output_tokens=spec.output_tokens)
            )
            pool = Pool(spec, known.endpoints if known is not None else [], calibration)
            if known is not None:
                pool.blind, pool.turn = known.blind, known.turn
            pools[spec.name] = pool
            for model in spec.models:
                by_model[model] = pool
        self.pools, self._by_model = pools, by_model
        self._settle_members(members)

    def set_members(self, members: Mapping[str, Sequence[Member]]) -> None:
        """Replace the members of the pools named; an address in two pools is an assertion."""
        everyone = {
            name: [_member(endpoint) for endpoint in pool.endpoints] for name, pool in self.pools.items()
        }
        everyone |= {name: list(each) for name, each in members.items() if name in everyone}
        self._check(everyone)
        self._settle_members(everyone)

    def pool_of(self, model: str) -> Pool | None:
        """The pool that serves a model name."""
        return self._by_model.get(model)

    def endpoint(self, pool: str, address: str) -> Endpoint | None:
        """The endpoint of a pool at an address, one that is leaving included."""
        endpoint = self._by_address.get(address) or self.leaving.get(address)
        return endpoint if endpoint is not None and endpoint.pool == pool else None

    def owner(self, address: str) -> str | None:
        """The pool that an address is in."""
        endpoint = self._by_address.get(address)
        return endpoint.pool if endpoint is not None else None

    @property
    def models(self) -> list[str]:
        """Every model name served, sorted."""
        return sorted(self._by_model)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, pool by pool."""
        return [endpoint for pool in self.pools.values() for endpoint in pool.endpoints]

    def heard(self, report: ReplicaReport, *, now_ns: int) -> bool:
        """Take an agent's report of a member; false when its address is no member of its pool."""
        endpoint = self._by_address.get(report.address)
        if endpoint is None or endpoint.pool != report.pool:
            return False
        before = (endpoint.draining, endpoint.health.hard)
        self._diagnoses[report.address].heard(report, now_ns=now_ns)
        if (endpoint.draining, endpoint.health.hard) != before:
            # What silences acts at once, not at the next step; alone, since an agent may say it often.
            endpoint.health.silence(now_ns=now_ns)
            endpoint.refresh()
            self.version += 1
        return True

    def silenced(self, address: str) -> None:
        """Its agent has said good-bye: what it said is stale from now on.

        Its word on the replica's state holds for a while yet: an agent may leave while a model loads.
        """
        endpoint = self._by_address.get(address)
        if endpoint is not None and endpoint.reported_ns is not None:
            endpoint.reported_ns -= STALE_NS + 1

    def answered(self, endpoint: Endpoint, outcome: Outcome, *, now_ns: int, failed: bool) -> None:
        """An answer of an endpoint ended, or an attempt on it failed."""
        diagnosis = self._diagnoses.get(endpoint.address)
        if diagnosis is not None:
            diagnosis.answered(outcome, now_ns=now_ns, failed=failed)

    def drain(self, address: str, *, draining: bool) -> bool:
        """An operator's drain; false for an address that is not here."""
        diagnosis = self._diagnoses.get(address)
        if diagnosis is None or address not in self._by_address:
            return False
        diagnosis.ordered_drain = draining
        diagnosis.refresh_drain()
        diagnosis.endpoint.refresh()
        self.version += 1
        return True

    def clear_faults(self, address: str) -> list[str] | None:
        """An operator's word that a GPU was seen to; None for an address that is not here."""
        diagnosis = self._diagnoses.get(address)
        return None if diagnosis is None else diagnosis.clear_faults()

    def step(self, *, now_ns: int, pools: Iterable[Pool] | None = None) -> None:
        """Let time pass: health follows its causes, telemetry ages, what has left is let go."""
        for pool in self.pools.values() if pools is None else pools:
            diagnoses = [self._diagnoses[endpoint.address] for endpoint in pool.endpoints]
            before = [(e.ready, e.weight) for e in pool.endpoints]
            pool.blind = step_pool(diagnoses, now_ns=now_ns)
            after = [(e.ready, e.weight) for e in pool.endpoints]
            if before != after and _rounded(before) != _rounded(after):
                self.version += 1
        gone = [address for address, endpoint in self.leaving.items() if endpoint.requests == 0]
        for address in gone:
            del self.leaving[address]
            self._diagnoses.pop(address, None)
            self.version += 1

    def _check(self, members: dict[str, list[Member]]) -> None:
        addresses = [member.address for each in members.values() for member in each]
        assert len(addresses) == len(set(addresses)), "an address stands twice in the fleet"

    def _settle_members(self, members: dict[str, list[Member]]) -> None:
        known = {**self.leaving, **self._by_address}
        by_address: dict[str, Endpoint] = {}
        for name, pool in self.pools.items():
            pool.endpoints = []
            for member in members[name]:
                endpoint = known.get(member.address) or Endpoint(address=member.address, pool=name)
                if member.address not in known or endpoint.pool != name:
                    # Each pool has a rotation of its own.
                    endpoint.turn = pool.turn
                endpoint.listed(member, name)
                pool.endpoints.append(endpoint)
                by_address[member.address] = endpoint
                self.leaving.pop(member.address, None)
                if member.address not in self._diagnoses:
                    self._diagnoses[member.address] = Diagnosis(endpoint)
        for address, endpoint in self._by_address.items():
            if address not in by_address:
                if endpoint.requests > 0:
                    # Its diagnosis waits with it: a drain outlives a replica's blink.
                    self.leaving[address] = endpoint
                else:
                    self._diagnoses.pop(address, None)
        self._by_address = by_address
        self.version += 1


def _rounded(seen: Iterable[tuple[bool, float]]) -> list[tuple[bool, float]]:
    return [(ready, round(weight, 2)) for ready, weight in seen]


def _member(endpoint: Endpoint) -> Member:
    return Member(endpoint.address, endpoint.zone, endpoint.configured_max_concurrent, endpoint.region)
