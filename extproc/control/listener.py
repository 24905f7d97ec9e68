"""The listener and its HTTP connection manager: what a client may send, and for how long.

Owns trust (which headers are stripped), normalisation, limits and timeouts before routing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import (
    HeaderMutation,
    HeaderMutationRemoveOnMatch,
)
from envoy_data_plane.envoy.config.core.v3 import (
    CidrRange,
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    TransportSocket,
)
from envoy_data_plane.envoy.config.listener.v3 import (
    Filter,
    FilterChain,
    FilterChainMatch,
    Listener,
    ListenerFilter,
)
from envoy_data_plane.envoy.config.trace.v3 import OpenTelemetryConfig, TracingHttp
from envoy_data_plane.envoy.extensions.filters.listener.proxy_protocol.v3 import ProxyProtocol
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerHcmAccessLogOptions,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    HttpConnectionManagerTracing,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    DownstreamTlsContext,
    TlsCertificate,
    TlsParameters,
    TlsParametersTlsProtocol,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent

from extproc.config.holds import longest_hold_ms
from extproc.config.model import Config, GatewayTls, TracingConfig
from extproc.config.restart import accepts_sites, place_header
from extproc.control.accesslog import access_logs
from extproc.control.filters import http_filters
from extproc.control.pack import address, extension, ms, packed
from extproc.control.replies import local_reply_config
from extproc.control.routes import peer_address_header, peer_headers, route_configuration
from extproc.control.services import TRACING_CLUSTER, grpc_service
from extproc.core import contract

#: A client that opens a connection must have sent its headers within this.
REQUEST_HEADERS_TIMEOUT_S = 15
#: The host of a request in HTTP/1.0, which need not name one.
HTTP_10_HOST = "gateway"
#: What is read of a connection while its request's headers are looked at, and kept for a slow reader.
CONNECTION_BUFFER_BYTES = 64 * 1024
DRAIN_S = 5
HEADERS_COUNT_MAX = 100
HEADERS_KB_MAX = 60
HTTP2_STREAMS_MAX = 128
HTTP2_STREAM_WINDOW_BYTES = 64 * 1024
HTTP2_CONNECTION_WINDOW_BYTES = 1024 * 1024
#: Whole families that only Envoy may write; the contract's own list names the rest.
STRIPPED_PREFIXES = ("x-envoy-", "x-gateway-destination-endpoint")
#: A client that chose its request id could make two requests look like one.
REQUEST_ID_HEADER = "x-request-id"
#: The names in a verified client certificate, for the routes of requests without a decision.
PEER_HEADERS = (
    (contract.PEER_URI_HEADER, "%DOWNSTREAM_PEER_URI_SAN%"),
    (contract.PEER_DNS_HEADER, "%DOWNSTREAM_PEER_DNS_SAN%"),
)
TRUSTED_CHAIN = "trusted-proxy"


@dataclass(frozen=True, slots=True)
class Peer:
    """What is believed of who connects: a tenant's name in a header, and the client's address (`hops`)."""

    trusted: bool = False
    hops: int = 0


def listener(config: Config) -> Listener:
    """What clients connect to. Each kind of proxy has a chain in which what it may say stays."""
    client = config.gateway.client_address
    proxied = client is not None and client.source == "proxy_protocol"
    chains = []
    for peer, networks in peers(config).items():
        chain = _chain(config, peer)
        chain.name = _name(peer)
        # The connection's own address, whatever a PROXY protocol or a header may say.
        chain.filter_chain_match = FilterChainMatch(
            direct_source_prefix_ranges=[_range(network) for network in networks]
        )
        chains.append(chain)
    if not proxied:
        chains.append(_chain(config, Peer()))
    return Listener(
        name="gateway",
        address=address(config.gateway.listen),
        listener_filters=[_proxy_protocol()] if proxied else [],
        filter_chains=chains,
        per_connection_buffer_limit_bytes=CONNECTION_BUFFER_BYTES,
    )


def peers(config: Config) -> dict[Peer, list[str]]:
    """The networks of which something is believed, by what.

    Envoy takes the chain of the narrowest network that fits, so that one inside another keeps what is
    believed of both. With the PROXY protocol only the networks that speak it may connect at all.
    """
    trusted, client = config.gateway.trusted_proxy, config.gateway.client_address
    naming = trusted.networks if trusted is not None else []
    telling = client.networks if client is not None else []
    proxied = client is not None and client.source == "proxy_protocol"
    hops = client.hops if client is not None and not proxied else 0
    found: dict[Peer, list[str]] = {}
    for network in dict.fromkeys([*naming, *telling]):
        tells = _within(network, telling)
        if tells or not proxied:
            peer = Peer(_within(network, naming), hops if tells else 0)
            found.setdefault(peer, []).append(network)
    return found


def _within(network: str, others: Sequence[str]) -> bool:
    inner = ip_network(network)
    outers = [ip_network(other) for other in others]
    return any(
        inner.version == outer.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
        for outer in outers
    )


def _name(peer: Peer) -> str:
    if not peer.hops:
        return TRUSTED_CHAIN if peer.trusted else "proxied"
    return f"{TRUSTED_CHAIN}-forwarded" if peer.trusted else "forwarded"


def _proxy_protocol() -> ListenerFilter:
    return ListenerFilter(name="envoy.filters.listener.proxy_protocol", typed_config=packed(ProxyProtocol()))


def _chain(config: Config, peer: Peer) -> FilterChain:
    manager = connection_manager(config, peer)
    return FilterChain(
        filters=[Filter(name="envoy.filters.network.http_connection_manager", typed_config=packed(manager))],
        transport_socket=_tls(config.gateway.tls) if config.gateway.tls is not None else None,
    )


def _range(network: str) -> CidrRange:
    prefix, _, bits = network.partition("/")
    return CidrRange(address_prefix=prefix, prefix_len=int(bits))


def _tls(tls: GatewayTls) -> TransportSocket:
    context = CommonTlsContext(
        tls_params=TlsParameters(tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2),
        tls_certificates=[
            TlsCertificate(
                certificate_chain=DataSource(filename=tls.certificate),
                private_key=DataSource(filename=tls.key),
            )
        ],
        alpn_protocols=["h2", "http/1.1"],
    )
    if tls.client_ca is not None:
        context.validation_context = CertificateValidationContext(
            trusted_ca=DataSource(filename=tls.client_ca)
        )
    downstream = DownstreamTlsContext(
        common_tls_context=context, require_client_certificate=tls.require_client_certificate
    )
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(downstream))


def connection_manager(config: Config, peer: Peer = Peer()) -> HttpConnectionManager:
    """HTTP/1.0, HTTP/1.1 and HTTP/2, told apart by the first bytes (or by TLS); no upgrades."""
    gateway = config.gateway
    return HttpConnectionManager(
        stat_prefix="gateway",
        codec_type=HttpConnectionManagerCodecType.AUTO,
        server_name="steersman",
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.OVERWRITE,
        # Trust: the peer is the client, whatever it says of itself, unless it is a proxy of ours.
        use_remote_address=True,
        xff_num_trusted_hops=peer.hops,
        internal_address_config=HttpConnectionManagerInternalAddressConfig(),
        early_header_mutation_extensions=[
            extension("envoy.http.early_header_mutation.header_mutation", _stripped(config, peer))
        ],
        generate_request_id=True,
        always_set_request_id_in_response=True,
        # One spelling of a path, before anything looks at it.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
        # The host's port stays: no route is chosen by it, and errors tell clients their own base address.
        # Limits.
        max_request_headers_kb=HEADERS_KB_MAX,
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=timedelta(seconds=gateway.connection_idle_timeout_s),
            max_headers_count=HEADERS_COUNT_MAX,
            # Some libraries read `x_tenant` as `x-tenant`. Clients send their own, which nobody needs here.
            headers_with_underscores_action=HttpProtocolOptionsHeadersWithUnderscoresAction.DROP_HEADER,
        ),
        # nginx asks its backends so by default, as ApacheBench and old probes do; engines take it as well.
        http_protocol_options=Http1ProtocolOptions(
            accept_http_10=True, default_host_for_http_10=HTTP_10_HOST
        ),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=HTTP2_STREAMS_MAX,
            initial_stream_window_size=HTTP2_STREAM_WINDOW_BYTES,
            initial_connection_window_size=HTTP2_CONNECTION_WINDOW_BYTES,
        ),
        # Time. The route's own idle timeout takes over with the decision; until then a hold is no idling.
        request_headers_timeout=timedelta(seconds=REQUEST_HEADERS_TIMEOUT_S),
        # Envoy stops this clock when the body is here, so that a hold does not count.
        request_timeout=ms(gateway.upload_timeout_ms),
        stream_idle_timeout=ms(
            max(gateway.stream_idle_timeout_ms, longest_hold_ms(config) + gateway.upload_timeout_ms)
        ),
        drain_timeout=timedelta(seconds=DRAIN_S),
        http_filters=http_filters(config),
        route_config=route_configuration(config),
        local_reply_config=local_reply_config(config),
        access_log=access_logs(config),
        # Running requests report themselves: each report renews a reservation.
        access_log_options=HttpConnectionManagerHcmAccessLogOptions(
            access_log_flush_interval=timedelta(seconds=gateway.heartbeat_s)
        ),
        tracing=_tracing(gateway.tracing) if gateway.tracing else None,
    )


def _stripped(config: Config, peer: Peer) -> EarlyHeaderMutation:
    """Before anything looks at a request, its route included: what only we may say is removed, then said."""
    families = [
        HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix)))
        for prefix in STRIPPED_PREFIXES
    ]
    names = [*contract.STRIPPED_HEADERS, REQUEST_ID_HEADER]
    if not accepts_sites(config):
        names.append(contract.SITE_HEADER)
    if config.gateway.trusted_proxy is not None and not peer.trusted:
        names.append(config.gateway.trusted_proxy.header)
    # Who may say a client's address may say where it is.
    if (header := place_header(config)) is not None and not peer.hops:
        names.append(header)
    said = [_peer(name, value) for name, value in PEER_HEADERS] if peer_headers(config) else []
    if peer_address_header(config):
        said.append(_peer(contract.PEER_ADDRESS_HEADER, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"))
    return EarlyHeaderMutation(mutations=[*families, *(HeaderMutation(remove=name) for name in names), *said])


def _peer(name: str, value: str) -> HeaderMutation:
    return HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )


def _tracing(tracing: TracingConfig) -> HttpConnectionManagerTracing:
    provider = OpenTelemetryConfig(
        grpc_service=grpc_service(TRACING_CLUSTER, timeout_ms=1_000), service_name=tracing.service_name
    )
    return HttpConnectionManagerTracing(
        random_sampling=Percent(value=tracing.sample_percent),
        # Each attempt at an endpoint is a span of its own, so that a retry shows.
        spawn_upstream_span=True,
        provider=TracingHttp(name="envoy.tracers.opentelemetry", typed_config=packed(provider)),
    )
