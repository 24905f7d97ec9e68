"""The pools as Envoy's clusters and endpoints.

Owns how a pool is reached: who picks the endpoint, which circuit breaks, when an endpoint is set
aside, how connections are kept. The static bootstrap embeds these; an ADS server sends the same, with
endpoints that come and go.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
    OutlierDetection,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    HealthCheck,
    HealthCheckTcpHealthCheck,
    Locality,
    TcpKeepalive,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.clusters.common.dns.v3 import DnsLookupFamily
from envoy_data_plane.envoy.extensions.clusters.composite.v3 import ClusterConfig as Composite
from envoy_data_plane.envoy.extensions.clusters.composite.v3 import (
    ClusterConfigClusterEntry as CompositeClusterEntry,
)
from envoy_data_plane.envoy.extensions.clusters.dns.v3 import DnsCluster, DnsClusterRefreshRate
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import LeastRequest
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import (
    OverrideHost,
    OverrideHostOverrideHostSource,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.subset.v3 import (
    Subset,
    SubsetLbSubsetFallbackPolicy,
)
from envoy_data_plane.envoy.type.metadata.v3 import MetadataKey, MetadataKeyPathSegment
from envoy_data_plane.envoy.type.v3 import Percent

from extproc.addresses import joined, split
from extproc.config.away import away_targets
from extproc.config.check_upstream import is_named
from extproc.config.model import Config, PoolConfig, ServiceClass
from extproc.config.model import OutlierDetection as OutlierLimits
from extproc.config.site_checks import returning
from extproc.control.pack import address, extension, ms, packed
from extproc.control.tries import RetryTiming
from extproc.control.upstreams import crossing_options, protocol_options, transport_socket
from extproc.core import contract

#: A dead host is noticed within about KEEPALIVE_IDLE_S + KEEPALIVE_PROBES × KEEPALIVE_INTERVAL_S.
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3
#: How often ejections are looked at; an ejected endpoint returns at such a tick.
OUTLIER_INTERVAL_S = 1
#: Connections refused or timed out in a row before an endpoint is ejected; a crashed engine's
#: refusals cost a retry each, so fewer are borne than of answers with 5xx.
LOCAL_FAILURES_MAX = 3

#: How often a static Envoy looks names up that are listed as endpoints; the service does every 10 s.
NAMES_INTERVAL_S = 5.0
#: How often it is seen whether an address of a name is there, and so many times in a row it is not.
NAMES_CHECK_S, NAMES_CHECKS = 5, 3

#: How long Envoy waits for what the ADS server shall tell it, at its start and for a new cluster, before
#: it goes on without. Until then a starting Envoy does not listen.
FETCH_TIMEOUT_MS = 5_000

#: Where a pool's endpoints come from: the bootstrap itself, or the ADS server.
Mode = Literal["static", "ads"]

PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def pool_clusters(config: Config, *, mode: Mode = "static") -> list[Cluster]:
    """One cluster a pool and class, in the order of the file; then those whose requests are tried in two
    pools, and those for requests without a decision."""
    decided = [
        pool_cluster(config, pool, each, mode=mode) for pool in config.pools for each in config.classes
    ]
    return [*decided, *crossing_clusters(config, mode=mode), *away_clusters(config, mode=mode)]


def crossing_clusters(config: Config, *, mode: Mode = "static") -> list[Cluster]:
    """Of each pool whose requests can come back, a class each: the first try there, the next at home. Of each
    whose requests go on, for each number of tries at home: those, and one there.

    Envoy chooses by the try alone; which endpoint it is then is the decision's list, as anywhere. Filters are
    this cluster's and not those of its parts (Envoy 1.40); connections are theirs.
    """
    clusters = []
    for there, home in returning(config):
        onward = home.spill is not None and home.spill.after_failure
        for each in config.classes:
            tries = max(1, RetryTiming.of(config.gateway, each).retries)
            clusters.append(_crossing_cluster(config, there, home, each, 0, mode))
            if onward:
                clusters += [
                    _crossing_cluster(config, there, home, each, at_home, mode)
                    for at_home in range(1, tries + 1)
                ]
    return clusters


def _crossing_cluster(
    config: Config,
    there: PoolConfig,
    home: PoolConfig,
    service_class: ServiceClass,
    tries_at_home: int,
    mode: Mode,
) -> Cluster:
    timing = RetryTiming.of(config.gateway, service_class)
    own = contract.cluster_name(home.name, service_class.name)
    other = contract.cluster_name(there.name, service_class.name)
    if tries_at_home:
        names = [*[own] * tries_at_home, other]
        name = contract.onward_cluster_name(home.name, there.name, tries_at_home, service_class.name)
    else:
        names = [other, *[own] * max(1, timing.retries)]
        name = contract.returning_cluster_name(there.name, home.name, service_class.name)
    options = crossing_options(
        there,
        home,
        tries_at_home=tries_at_home,
        first_byte_ms=timing.first_byte_timeout_ms,
        keys_from=None if mode == "static" else from_ads(),
    )
    parts = Composite(clusters=[CompositeClusterEntry(name=each) for each in names])
    return Cluster(
        name=name,
        connect_timeout=ms(config.gateway.connect_timeout_ms),
        lb_policy=ClusterLbPolicy.CLUSTER_PROVIDED,
        cluster_type=ClusterCustomClusterType(name="envoy.clusters.composite", typed_config=packed(parts)),
        circuit_breakers=_circuit_breakers(home if tries_at_home else there, service_class.share_of_breakers),
        typed_extension_protocol_options={PROTOCOL_OPTIONS: packed(options)},
    )


def away_clusters(config: Config, *, mode: Mode = "static") -> list[Cluster]:
    """Where requests go while the service is away, where any do: the only clusters that Envoy chooses in.

    They stand apart from those that decisions name, so that no decided request can ever be balanced here.
    """
    wanted = away_targets(config)
    clusters = []
    for pool in config.pools:
        for each in config.classes:
            if (pool.name, each.name) in wanted:
                cluster = pool_cluster(config, pool, each, mode=mode)
                cluster.name = contract.away_cluster_name(pool.name, each.name)
                cluster.load_balancing_policy = least_request()
                if cluster.load_assignment is not None:
                    cluster.load_assignment.cluster_name = cluster.name
                clusters.append(cluster)
    return clusters


def pool_cluster(
    config: Config, pool: PoolConfig, service_class: ServiceClass, *, mode: Mode = "static"
) -> Cluster:
    """A pool as one class sees it: the endpoint is the decision's, by metadata, and nobody else's.

    Breakers, ejections and connections are the cluster's own, so that a class that fills or breaks its
    own takes nothing from another; the endpoints are the same.
    """
    cluster = Cluster(
        name=contract.cluster_name(pool.name, service_class.name),
        connect_timeout=ms(config.gateway.connect_timeout_ms),
        load_balancing_policy=_chosen_by_the_decision(),
        circuit_breakers=_circuit_breakers(pool, service_class.share_of_breakers),
        outlier_detection=_outlier_detection(service_class.outlier_detection or pool.outlier_detection),
        typed_extension_protocol_options={
            PROTOCOL_OPTIONS: packed(
                protocol_options(pool, keys_from=None if mode == "static" else from_ads())
            )
        },
        transport_socket=transport_socket(pool.upstream),
        upstream_connection_options=tcp_keepalive(),
    )
    if mode == "static":
        cluster.load_assignment = load_assignment(pool, cluster.name)
        if pause_s := looked_up_every(pool):
            cluster.cluster_type = ClusterCustomClusterType(
                name="envoy.clusters.dns", typed_config=packed(_by_name(pause_s))
            )
            cluster.health_checks = [_there()]
        else:
            cluster.type = ClusterDiscoveryType.STATIC
        return cluster
    cluster.type = ClusterDiscoveryType.EDS
    # The service's name, not the cluster's: Envoy asks once for all classes, and is sent them once.
    cluster.eds_cluster_config = ClusterEdsClusterConfig(
        eds_config=from_ads(), service_name=contract.assignment_name(pool.name)
    )
    # With panic, Envoy's own balancer would send new work to endpoints that drain or cannot serve.
    cluster.common_lb_config = ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=0.0))
    return cluster


def from_ads() -> ConfigSource:
    """Told by the one ADS stream."""
    return ConfigSource(
        ads=AggregatedConfigSource(),
        resource_api_version=ApiVersion.V3,
        initial_fetch_timeout=ms(FETCH_TIMEOUT_MS),
    )


def load_assignment(pool: PoolConfig, name: str) -> ClusterLoadAssignment:
    """A pool's endpoints by zone, zones in the order in which the file names them first."""
    zones: dict[str, list[LbEndpoint]] = {}
    asked_for = pool.upstream.asked_for
    for replica in pool.endpoints:
        host = split(replica.address)[0] if is_named(replica.address) else ""
        zones.setdefault(replica.zone, []).append(lb_endpoint(replica.address, asked_for(host)))
    for each in pool.discovery.dns:
        found = lb_endpoint(joined(each.name, each.port), asked_for(each.name))
        zones.setdefault("", []).append(found)
    return ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            LocalityLbEndpoints(locality=Locality(zone=zone) if zone else None, lb_endpoints=endpoints)
            for zone, endpoints in zones.items()
        ],
    )


def looked_up_every(pool: PoolConfig) -> float:
    """The seconds after which Envoy itself looks a pool's names up again; 0 where it has none."""
    pauses = [each.interval_s for each in pool.discovery.dns]
    if any(is_named(each.address) for each in pool.endpoints):
        pauses.append(NAMES_INTERVAL_S)
    return min(pauses, default=0.0)


def _by_name(pause_s: float) -> DnsCluster:
    """Every address of each name is a member, as the service has them. A failing resolver changes nothing."""
    return DnsCluster(
        dns_refresh_rate=timedelta(seconds=pause_s),
        dns_lookup_family=DnsLookupFamily.ALL,
        dns_failure_refresh_rate=DnsClusterRefreshRate(
            base_interval=timedelta(seconds=pause_s), max_interval=timedelta(seconds=pause_s)
        ),
    )


def _there() -> HealthCheck:
    """Whether an address takes connections. One that its name no longer has is a member for as long as it
    does: how long it is chosen is the service's to say, and Envoy alone would leave it at once."""
    return HealthCheck(
        timeout=timedelta(seconds=NAMES_CHECK_S),
        interval=timedelta(seconds=NAMES_CHECK_S),
        unhealthy_threshold=NAMES_CHECKS,
        healthy_threshold=1,
        tcp_health_check=HealthCheckTcpHealthCheck(),
    )


def lb_endpoint(where: str, name: str = "") -> LbEndpoint:
    """One endpoint, given as `ip:port` or `unix:/path`; `name` is what it is asked for."""
    return LbEndpoint(endpoint=Endpoint(address=address(where), hostname=name))


def policy(name: str, message: Message) -> LoadBalancingPolicy:
    """A load-balancing policy without alternatives."""
    return LoadBalancingPolicy(
        policies=[LoadBalancingPolicyPolicy(typed_extension_config=extension(name, message))]
    )


def least_request() -> LoadBalancingPolicy:
    """Envoy's own balancer: for requests without a decision."""
    return policy("envoy.load_balancing_policies.least_request", LeastRequest(choice_count=2))


def tcp_keepalive() -> UpstreamConnectionOptions:
    """Probes on upstream connections: a host that vanished sends no reset."""
    return UpstreamConnectionOptions(
        tcp_keepalive=TcpKeepalive(
            keepalive_time=KEEPALIVE_IDLE_S,
            keepalive_interval=KEEPALIVE_INTERVAL_S,
            keepalive_probes=KEEPALIVE_PROBES,
        )
    )


def _chosen_by_the_decision() -> LoadBalancingPolicy:
    # Metadata only: a header can be sent by a client, metadata cannot (law: nothing sent is trusted).
    chosen = OverrideHostOverrideHostSource(
        metadata=MetadataKey(
            key=contract.LB_NAMESPACE, path=[MetadataKeyPathSegment(key=contract.LB_ENDPOINTS_KEY)]
        )
    )
    return policy(
        "envoy.load_balancing_policies.override_host",
        OverrideHost(override_host_sources=[chosen], fallback_policy=_nobody()),
    )


def _nobody() -> LoadBalancingPolicy:
    """Chooses no endpoint (503): what comes when a decision's list is used up, or names strangers alone.

    The list is a bound. Regions, permits and another gateway's subset hang on it, and override_host asks its
    fallback for any endpoint of the cluster. A subset balancer without subsets and without a fallback of its
    own has none to give.
    """
    return policy(
        "envoy.load_balancing_policies.subset",
        Subset(
            fallback_policy=SubsetLbSubsetFallbackPolicy.NO_FALLBACK,
            subset_lb_policy=least_request(),
        ),
    )


def _circuit_breakers(pool: PoolConfig, share: float) -> CircuitBreakers:
    limits = pool.circuit_breakers

    def shared(limit: int) -> int:
        # A limit of nought is meant; a share of a small one still lets one through.
        return max(1, int(limit * share)) if limit else 0

    # No retry budget: Envoy ignores max_retries beside one, and that is what the file bounds.
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=shared(limits.max_connections),
                max_pending_requests=shared(limits.max_pending_requests),
                max_requests=shared(limits.max_requests),
                max_retries=shared(limits.max_retries),
                track_remaining=True,
            )
        ]
    )


def _outlier_detection(limits: OutlierLimits) -> OutlierDetection:
    return OutlierDetection(
        interval=timedelta(seconds=OUTLIER_INTERVAL_S),
        base_ejection_time=ms(limits.base_ejection_ms),
        max_ejection_percent=limits.max_ejection_percent,
        consecutive_5xx=limits.consecutive_5xx,
        # Answers and failed connections are counted apart, so that neither resets the other's count.
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=LOCAL_FAILURES_MAX,
        enforcing_consecutive_local_origin_failure=100,
        # Statistics over a few long requests eject the slow and the unlucky; only counts in a row do.
        enforcing_success_rate=0,
        enforcing_local_origin_success_rate=0,
        enforcing_failure_percentage=0,
        enforcing_failure_percentage_local_origin=0,
    )
