"""What every Envoy shall know just now: clusters and endpoints as serialised resources with versions.

Owns how an endpoint's state becomes Envoy's health status and weight, and that a rebuild costs little:
what did not change is not serialised again. Pure: no stream, no clock. Who is sent what is ads.py's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from extproc._pb import discovery_pb2 as pb
from extproc.addresses import split
from extproc.config.model import Config
from extproc.core import contract

CLUSTER_TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 (a type)
#: In the order in which changes are sent: a cluster is there before its endpoints and its key are.
TYPES = (CLUSTER_TYPE, ENDPOINT_TYPE, SECRET_TYPE)

#: Below this health an endpoint is DEGRADED: Envoy's own balancer turns to it when too few others are
#: healthy. Decisions are not bound by it.
DEGRADED_BELOW = 0.25
#: Envoy wants whole weights from 1.
WEIGHT_MAX = 100
VERSION_BYTES = 8
#: What the versions of secrets are made with.
_OWN = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint as Envoy shall see it: `address` as ip:port, `health` 0 to 1, `host` its name."""

    address: str
    zone: str = ""
    region: str = ""
    health: float = 1.0
    draining: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """A serialised resource; `members` are the (pool, address) pairs that it lets decisions name."""

    name: str
    #: Never shown: it may be a secret.
    data: bytes = field(repr=False)
    members: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Resources:
    """All resources of a type by name; equal contents have equal versions, in every process."""

    version: str
    by_name: Mapping[str, Resource]

    @classmethod
    def of(cls, resources: Iterable[Resource], *, secret: bool = False) -> Resources:
        """Named by the hash of what is in them; of secrets by one that nobody else can work out, since Envoys
        show versions. Those differ between processes."""
        by_name = {resource.name: resource for resource in resources}
        digest = hashlib.blake2b(digest_size=VERSION_BYTES, key=_OWN if secret else b"")
        for name in sorted(by_name):
            data = by_name[name].data
            # The lengths keep two resources from passing for one.
            digest.update(b"%d %d " % (len(name.encode()), len(data)))
            digest.update(name.encode())
            digest.update(data)
        return cls(digest.hexdigest(), by_name)


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """One state of the world."""

    clusters: Resources
    endpoints: Resources
    secrets: Resources = field(default_factory=lambda: Resources.of(()))

    def of(self, type_url: str) -> Resources:
        """The resources of one of TYPES."""
        return {CLUSTER_TYPE: self.clusters, ENDPOINT_TYPE: self.endpoints}.get(type_url, self.secrets)


class SnapshotBuilder:
    """Builds snapshots for one configuration: a cluster a pool and class, a pool's endpoints once.

    Draining endpoints are left out: Envoy 1.40's override_host goes to a host whatever its health status
    says, so that only one that is not there is skipped, and what runs on it is not cut by its leaving.
    With `mark_draining` they stay, as DRAINING: Envoy's own balancer passes them over, a decision that
    names one is obeyed.

    Keeps the serialised bytes of the endpoints of the last snapshot, and no more than those. `keys` are the
    engines' own by pool.
    """

    def __init__(
        self, config: Config, *, mark_draining: bool = False, keys: Mapping[str, str] | None = None
    ) -> None:
        # Late and light: the ADS protocol needs none of Envoy's messages, and this few.
        from extproc.control import light

        light.install()
        from extproc.control.resources import pool_clusters
        from extproc.control.upstreams import told_secrets

        self._mark_draining = mark_draining
        self._pools = tuple(pool.name for pool in config.pools)
        self._clusters = Resources.of(
            Resource(cluster.name, bytes(cluster)) for cluster in pool_clusters(config, mode="ads")
        )
        self._secrets = Resources.of(
            (Resource(secret.name, bytes(secret)) for secret in told_secrets(keys or {})), secret=True
        )
        self._built: dict[str, tuple[tuple[EndpointState, ...], Resource]] = {}
        self._pieces: dict[EndpointState, bytes] = {}

    def build(self, pools: Mapping[str, Sequence[EndpointState]]) -> FleetSnapshot:
        """The snapshot for the endpoints of each pool; a pool that is left out has none.

        A pool's addresses must differ, and its name must be the configuration's.
        """
        unknown = pools.keys() - set(self._pools)
        assert not unknown, f"no such pool: {sorted(unknown)}"
        pieces: dict[EndpointState, bytes] = {}
        assignments = [
            self._assignment(name, self._shown(pools.get(name, ())), pieces) for name in self._pools
        ]
        self._pieces = pieces
        return FleetSnapshot(self._clusters, Resources.of(assignments), self._secrets)

    def _shown(self, states: Sequence[EndpointState]) -> tuple[EndpointState, ...]:
        return tuple(state for state in states if self._mark_draining or not state.draining)

    def _assignment(
        self, pool: str, states: tuple[EndpointState, ...], pieces: dict[EndpointState, bytes]
    ) -> Resource:
        known = self._built.get(pool)
        if known is not None and known[0] == states:
            resource = known[1]
            pieces.update((state, self._pieces[state]) for state in states)
            return resource
        assert len({state.address for state in states}) == len(states), f"an address twice in pool {pool}"
        members = frozenset((pool, state.address) for state in states if not state.draining)
        localities: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
        for state in states:
            piece = self._pieces.get(state)
            if piece is None:
                piece = lb_endpoint(state)
            pieces[state] = piece
            localities.setdefault((state.region, state.zone), []).append((state.address, piece))
        message = pb.ClusterLoadAssignment(cluster_name=contract.assignment_name(pool))
        # Sorted, so that the order of discovery is no change of content.
        for (region, zone), endpoints in sorted(localities.items()):
            group = pb.LocalityLbEndpoints(lb_endpoints=[piece for _, piece in sorted(endpoints)])
            if region or zone:
                group.locality.region, group.locality.zone = region, zone
            message.endpoints.append(group.SerializeToString())
        resource = Resource(message.cluster_name, message.SerializeToString(), members)
        self._built[pool] = (states, resource)
        return resource


def lb_endpoint(state: EndpointState) -> bytes:
    """An endpoint as a serialised LbEndpoint."""
    message = pb.LbEndpoint(health_status=health_status(state))
    where = message.endpoint.address.socket_address
    where.address, where.port_value = split(state.address)
    message.endpoint.hostname = state.host
    message.load_balancing_weight.value = weight(state.health)
    data: bytes = message.SerializeToString()
    return data


def health_status(state: EndpointState) -> pb.HealthStatus:
    """Draining before all else; silenced at 0; a last resort below DEGRADED_BELOW."""
    assert 0.0 <= state.health <= 1.0, state
    if state.draining:
        return pb.DRAINING
    if state.health == 0.0:
        return pb.UNHEALTHY
    return pb.DEGRADED if state.health < DEGRADED_BELOW else pb.HEALTHY


def weight(health: float) -> int:
    """Health 0 to 1 as a weight of 1 to WEIGHT_MAX."""
    return max(1, round(health * WEIGHT_MAX))
