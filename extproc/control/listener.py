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
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
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
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent

from extproc.config.model import Config, Tracing
from extproc.control.accesslog import access_logs
from extproc.control.filters import HOLD_MS_MAX, http_filters
from extproc.control.pack import address, extension, ms, packed
from extproc.control.replies import local_reply_config
from extproc.control.routes import buffer_limit_bytes, route_configuration
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


def listener(config: Config) -> Listener:
    """What clients connect to."""
    manager = connection_manager(config)
    return Listener(
        name="gateway",
        address=address(config.gateway.listen),
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(name="envoy.filters.network.http_connection_manager", typed_config=packed(manager))
                ]
            )
        ],
        per_connection_buffer_limit_bytes=buffer_limit_bytes(config),
    )


def connection_manager(config: Config) -> HttpConnectionManager:
    """HTTP/1.1 and HTTP/2 in the clear, told apart by the first bytes; no upgrades."""
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
            extension("envoy.http.early_header_mutation.header_mutation", _stripped())
        ],
        generate_request_id=True,
        always_set_request_id_in_response=True,
        # One spelling of a path, before anything looks at it.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
        strip_any_host_port=True,
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


def _stripped() -> EarlyHeaderMutation:
    families = [
        HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=prefix)))
        for prefix in STRIPPED_PREFIXES
    ]
    named = [HeaderMutation(remove=name) for name in (*contract.STRIPPED_HEADERS, REQUEST_ID_HEADER)]
    return EarlyHeaderMutation(mutations=families + named)


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
