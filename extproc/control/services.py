"""The clusters that are not pools: the deciding service and the trace collector.

Owns how Envoy finds a healthy service, how fast it leaves a dead one and comes back to it for ADS, and
by which cluster it finds one service among several.
"""

from __future__ import annotations

from datetime import timedelta

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
)
from envoy_data_plane.envoy.config.core.v3 import (
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    BackoffStrategy,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http2ProtocolOptions,
    KeepaliveSettings,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LocalityLbEndpoints
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamProtocolOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptionsExplicitHttpConfig
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent

from extproc.config.model import Config, ServiceClientTls, TracingConfig
from extproc.config.secret import service_tokens
from extproc.control.names import ADS_CLUSTER, SERVICE_CLUSTER, log_clusters
from extproc.control.pack import ms, packed
from extproc.control.resources import PROTOCOL_OPTIONS, lb_endpoint, least_request, tcp_keepalive

TRACING_CLUSTER = "otlp"

CONNECT_TIMEOUT_MS = 250
#: Health is asked this often, before the first request too (Envoy's own default for that is 60 s).
HEALTH_INTERVAL_MS = 500
#: An event loop that is busy for a moment is not dead; a refused connection answers at once anyway. One
#: that is late is left for another; where there is no other, decisions wait for it (decision_timeout_ms),
#: since all that could be had in their place is a 503.
HEALTH_TIMEOUT_MS, HEALTH_TIMEOUT_ALONE_MS = 1_000, 10_000
HEALTH_FAILURES_MAX = 2
#: A share below that of one service of hundreds.
NONE_WELL_PERCENT = 0.1
#: A failed check is repeated after this, so that a dead service is left within about 0.6 s.
HEALTH_EDGE_MS = 100
#: Attempts to open a decision stream on another service when one refuses the connection.
CONNECT_RETRIES = 2
#: A retry is dear when it picks the dead service again.
HOST_PICKS_MAX = 16
#: A lost ADS stream is opened again after this, doubling up to the second; Envoy's own would be 30 s.
ADS_BACK_OFF_MS = 100
ADS_BACK_OFF_MS_MAX = 1_000
#: What a connection may have to send. Envoy drops log records while theirs has more, and bodies go there too.
SERVICE_BUFFER_BYTES = 64 * 1024 * 1024
#: Room above what decides and what is held: the service answers 429 itself, Envoy must not first.
SERVICE_REQUESTS_MARGIN = 1024


def service_cluster(config: Config) -> Cluster:
    """The deciding service(s): decisions and access logs go here."""
    limits = config.limits
    requests_max = 2 * limits.decisions_concurrent_max + limits.held_max + SERVICE_REQUESTS_MARGIN
    cluster = _watched_cluster(config, SERVICE_CLUSTER, config.service_addresses)
    cluster.per_connection_buffer_limit_bytes = SERVICE_BUFFER_BYTES
    cluster.circuit_breakers = CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_requests=requests_max, max_pending_requests=requests_max, track_remaining=True
            )
        ]
    )
    return cluster


def ads_clusters(config: Config) -> list[Cluster]:
    """The cluster of the services' ADS, where that has addresses of its own; left as fast as the deciding
    one where a service is unwell."""
    addresses = config.ads_addresses
    return [_watched_cluster(config, ADS_CLUSTER, addresses)] if addresses else []


def _watched_cluster(config: Config, name: str, addresses: list[str]) -> Cluster:
    alone = len(addresses) == 1
    cluster = _service_cluster(config, name, addresses)
    cluster.health_checks = [
        HealthCheck(
            timeout=ms(HEALTH_TIMEOUT_ALONE_MS if alone else HEALTH_TIMEOUT_MS),
            interval=ms(HEALTH_INTERVAL_MS),
            no_traffic_interval=ms(HEALTH_INTERVAL_MS),
            no_traffic_healthy_interval=ms(HEALTH_INTERVAL_MS),
            unhealthy_interval=ms(HEALTH_INTERVAL_MS),
            unhealthy_edge_interval=ms(HEALTH_EDGE_MS),
            unhealthy_threshold=HEALTH_FAILURES_MAX,
            healthy_threshold=1,
            grpc_health_check=HealthCheckGrpcHealthCheck(),
        )
    ]
    # Panic would send decisions to services that are known to be dead, while others live. Where none of
    # several is well, whichever still answers is better than none: the dead ones refuse at once.
    panic = 0.0 if alone else NONE_WELL_PERCENT
    cluster.common_lb_config = ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=panic))
    return cluster


def service_log_clusters(config: Config) -> list[Cluster]:
    """One cluster a service for its copy of the records; none where there is one service.

    No health checks: a log stream that breaks is opened again, and a drained service still settles.
    """
    addresses = config.service_addresses
    if len(addresses) == 1:
        return []
    return [
        _service_cluster(config, name, [where])
        for name, where in zip(log_clusters(config), addresses, strict=True)
    ]


def tracing_cluster(tracing: TracingConfig) -> Cluster:
    """The collector; it has no health checks, since losing spans is all that its absence costs."""
    return _grpc_cluster(TRACING_CLUSTER, [tracing.otlp_grpc])


def grpc_service(cluster: str, *, timeout_ms: int | None = None) -> GrpcService:
    """A gRPC service behind one of our clusters."""
    return GrpcService(
        envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=cluster, skip_envoy_headers=True),
        timeout=ms(timeout_ms) if timeout_ms is not None else None,
    )


def own_service(config: Config, cluster: str) -> GrpcService:
    """The service behind a cluster, with the token that it asks for. Raises ConfigError where that is not
    to be had."""
    service = grpc_service(cluster)
    if tokens := service_tokens(config.service):
        service.initial_metadata = [HeaderValue(key="authorization", value=f"Bearer {tokens[0]}")]
    return service


def decision_service(config: Config) -> GrpcService:
    """The service as ext_proc calls it: a stream that could not be opened is tried elsewhere."""
    service = own_service(config, SERVICE_CLUSTER)
    service.retry_policy = RetryPolicy(
        num_retries=CONNECT_RETRIES,
        retry_on="connect-failure,refused-stream,reset",
        retry_back_off=BackoffStrategy(base_interval=ms(5), max_interval=ms(25)),
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=packed(PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=HOST_PICKS_MAX,
    )
    return service


def ads_source(config: Config) -> ApiConfigSource:
    """The service as ADS server: one stream for everything that changes while Envoy runs."""
    service = own_service(config, ADS_CLUSTER if config.ads_addresses else SERVICE_CLUSTER)
    assert service.envoy_grpc is not None
    # Of a stream that lasts, this is how it is opened again; calls take the policy beside envoy_grpc.
    service.envoy_grpc.retry_policy = RetryPolicy(
        retry_back_off=BackoffStrategy(
            base_interval=ms(ADS_BACK_OFF_MS), max_interval=ms(ADS_BACK_OFF_MS_MAX)
        )
    )
    return ApiConfigSource(
        api_type=ApiConfigSourceApiType.GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[service],
        set_node_on_first_message_only=True,
    )


def _service_cluster(config: Config, name: str, addresses: list[str]) -> Cluster:
    cluster = _grpc_cluster(name, addresses)
    tls = config.gateway.service_tls
    if tls is not None and not addresses[0].startswith("unix:"):
        cluster.transport_socket = TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=packed(_tls(tls))
        )
    return cluster


def _tls(tls: ServiceClientTls) -> UpstreamTlsContext:
    own = []
    if tls.certificate is not None and tls.key is not None:
        own.append(
            TlsCertificate(
                certificate_chain=DataSource(filename=tls.certificate),
                private_key=DataSource(filename=tls.key),
            )
        )
    return UpstreamTlsContext(
        sni=tls.server_name,
        common_tls_context=CommonTlsContext(
            alpn_protocols=["h2"],
            tls_certificates=own,
            validation_context=CertificateValidationContext(
                trusted_ca=DataSource(filename=tls.ca),
                match_typed_subject_alt_names=[
                    SubjectAltNameMatcher(
                        san_type=SubjectAltNameMatcherSanType.DNS,
                        matcher=StringMatcher(exact=tls.server_name),
                    )
                ],
            ),
        ),
    )


def _grpc_cluster(name: str, addresses: list[str]) -> Cluster:
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=ms(CONNECT_TIMEOUT_MS),
        load_assignment=ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[LocalityLbEndpoints(lb_endpoints=[lb_endpoint(where) for where in addresses])],
        ),
        load_balancing_policy=least_request(),
        typed_extension_protocol_options={
            PROTOCOL_OPTIONS: packed(
                UpstreamProtocolOptions(
                    explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
                        http2_protocol_options=Http2ProtocolOptions(
                            connection_keepalive=KeepaliveSettings(
                                interval=timedelta(seconds=30), timeout=timedelta(seconds=5)
                            )
                        )
                    )
                )
            )
        },
        upstream_connection_options=None if addresses[0].startswith("unix:") else tcp_keepalive(),
    )
