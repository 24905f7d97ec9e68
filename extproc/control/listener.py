"""The listener and its HTTP connection manager: what a client may send, and for how long.

Owns trust (which headers are stripped), normalisation, limits and timeouts before routing.
"""

from __future__ import annotations

from datetime import timedelta

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
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    TransportSocket,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, FilterChainMatch, Listener
from envoy_data_plane.envoy.config.trace.v3 import OpenTelemetryConfig, TracingHttp
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

from extproc.config.model import Config, GatewayTls, Tracing
from extproc.control.accesslog import access_logs
from extproc.control.filters import HOLD_MS_MAX, http_filters
from extproc.control.pack import address, extension, ms, packed
from extproc.control.replies import local_reply_config
from extproc.control.routes import buffer_limit_bytes, peer_headers, route_configuration
from extproc.control.services import TRACING_CLUSTER, grpc_service
from extproc.core import contract

#: A client that opens a connection must have sent its headers within this.
REQUEST_HEADERS_TIMEOUT_S = 15
#: From the first byte until the decision is made: a hold, and a minute for a body on a slow line.
REQUEST_TIMEOUT_MS = HOLD_MS_MAX + 60_000
CONNECTION_IDLE_S = 300
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


def listener(config: Config) -> Listener:
    """What clients connect to. A trusted proxy's connections have a chain in which its header stays."""
    trusted = config.gateway.trusted_proxy
    chains = [_chain(config, trusted=False)]
    if trusted is not None:
        first = _chain(config, trusted=True)
        first.name = TRUSTED_CHAIN
        # The connection's own address, whatever a PROXY protocol or a header may say.
        first.filter_chain_match = FilterChainMatch(
            direct_source_prefix_ranges=[_range(network) for network in trusted.networks]
        )
        chains.insert(0, first)
    return Listener(
        name="gateway",
        address=address(config.gateway.listen),
        filter_chains=chains,
        per_connection_buffer_limit_bytes=buffer_limit_bytes(config),
    )


def _chain(config: Config, *, trusted: bool) -> FilterChain:
    manager = connection_manager(config, trusted=trusted)
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


def connection_manager(config: Config, *, trusted: bool = False) -> HttpConnectionManager:
    """HTTP/1.1 and HTTP/2, told apart by the first bytes (or by TLS); no upgrades."""
    gateway = config.gateway
    return HttpConnectionManager(
        stat_prefix="gateway",
        codec_type=HttpConnectionManagerCodecType.AUTO,
        server_name="steersman",
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.OVERWRITE,
        # Trust: the peer is the client, whatever it says of itself.
        use_remote_address=True,
        internal_address_config=HttpConnectionManagerInternalAddressConfig(),
        early_header_mutation_extensions=[
            extension("envoy.http.early_header_mutation.header_mutation", _stripped(config, trusted=trusted))
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
            idle_timeout=timedelta(seconds=CONNECTION_IDLE_S),
            max_headers_count=HEADERS_COUNT_MAX,
            headers_with_underscores_action=HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST,
        ),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=HTTP2_STREAMS_MAX,
            initial_stream_window_size=HTTP2_STREAM_WINDOW_BYTES,
            initial_connection_window_size=HTTP2_CONNECTION_WINDOW_BYTES,
        ),
        # Time. The route's own idle timeout takes over with the decision; until then a hold is no idling.
        request_headers_timeout=timedelta(seconds=REQUEST_HEADERS_TIMEOUT_S),
        request_timeout=ms(REQUEST_TIMEOUT_MS),
        stream_idle_timeout=ms(max(gateway.stream_idle_timeout_ms, REQUEST_TIMEOUT_MS)),
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


def _stripped(config: Config, *, trusted: bool) -> EarlyHeaderMutation:
    """Before anything looks at a request, its route included: what only we may say is removed, then said."""
    families = [
        HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix)))
        for prefix in STRIPPED_PREFIXES
    ]
    names = [*contract.STRIPPED_HEADERS, REQUEST_ID_HEADER]
    if config.gateway.trusted_proxy is not None and not trusted:
        names.append(config.gateway.trusted_proxy.header)
    said = [_peer(name, value) for name, value in PEER_HEADERS] if peer_headers(config) else []
    return EarlyHeaderMutation(mutations=[*families, *(HeaderMutation(remove=name) for name in names), *said])


def _peer(name: str, value: str) -> HeaderMutation:
    return HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key=name, value=value),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )


def _tracing(tracing: Tracing) -> HttpConnectionManagerTracing:
    provider = OpenTelemetryConfig(
        grpc_service=grpc_service(TRACING_CLUSTER, timeout_ms=1_000), service_name=tracing.service_name
    )
    return HttpConnectionManagerTracing(
        random_sampling=Percent(value=tracing.sample_percent),
        # Each attempt at an endpoint is a span of its own, so that a retry shows.
        spawn_upstream_span=True,
        provider=TracingHttp(name="envoy.tracers.opentelemetry", typed_config=packed(provider)),
    )
