"""The access log that settles requests.

Owns what a record carries and which requests are recorded: those with a decision.
"""

from __future__ import annotations

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog, AccessLogFilter, MetadataFilter
from envoy_data_plane.envoy.config.core.v3 import ApiVersion
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    MetadataMatcher,
    MetadataMatcherPathSegment,
    ValueMatcher,
)

from extproc.config.model import Config
from extproc.control.names import log_clusters
from extproc.control.pack import ms, packed
from extproc.control.services import own_service
from extproc.core import contract

#: One byte is always exceeded: each record leaves at once, and a quota is settled within a millisecond.
BUFFER_BYTES = 1
FLUSH_MS = 100

#: TGI counts and times a non-streamed answer in its headers.
RESPONSE_HEADERS = (
    contract.PROMPT_TOKENS_HEADER,
    contract.GENERATED_TOKENS_HEADER,
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-total-time",
    "content-type",
    "retry-after",
)


def access_logs(config: Config) -> list[AccessLog]:
    """Records to every service, over gRPC: whoever decided, all of them settle and learn.

    Through one balanced cluster a record would reach one service only, mostly not the one that decided,
    whose books would then stand open until they expire.
    """
    return [_access_log(config, cluster) for cluster in log_clusters(config)]


def _access_log(config: Config, cluster: str) -> AccessLog:
    log = HttpGrpcAccessLogConfig(
        common_config=CommonGrpcAccessLogConfig(
            log_name=contract.ACCESS_LOG_NAME,
            grpc_service=own_service(config, cluster),
            transport_api_version=ApiVersion.V3,
            buffer_size_bytes=BUFFER_BYTES,
            buffer_flush_interval=ms(FLUSH_MS),
        ),
        additional_response_headers_to_log=list(RESPONSE_HEADERS),
    )
    return AccessLog(
        name="envoy.access_loggers.http_grpc", filter=_has_a_decision(), typed_config=packed(log)
    )


def _has_a_decision() -> AccessLogFilter:
    ticket = MetadataMatcher(
        filter=contract.DECISION_NAMESPACE,
        path=[MetadataMatcherPathSegment(key=contract.TICKET_KEY)],
        value=ValueMatcher(present_match=True),
    )
    return AccessLogFilter(metadata_filter=MetadataFilter(matcher=ticket, match_if_key_not_found=False))
