"""Envoy's own errors, in the dialect of the route that was called.

Owns wording and shape of what Envoy says by itself: OpenAI's error object where OpenAI's clients read it
(core/misrouted.py), TGI's `{error, error_type}` elsewhere. The status stays what Envoy chose. Answers of the
service pass through: they carry a content type, Envoy's own texts carry none before this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    ExtensionFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeUInt32,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Struct

from extproc.config.model import Config
from extproc.control.pack import packed
from extproc.core.misrouted import OPENAI_BEGINS, OPENAI_ENDS, TGI_ENDS

#: What a client is told to wait when the gateway cannot serve it just now.
RETRY_AFTER_S = 1

NOT_THE_SERVICES = "!('content-type' in response.headers)"


def _path(regex: str) -> str:
    return f"request.url_path.matches('{regex}')"


#: And on a path where OpenAI's clients read it.
OPENAI = f"{NOT_THE_SERVICES} && ({_path(OPENAI_ENDS)} || ({_path(OPENAI_BEGINS)} && !{_path(TGI_ENDS)}))"


#: OpenAI's `type` by status; what is not here is the server's fault. The service says the same.
OPENAI_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    431: "invalid_request_error",
}
#: TGI has a word for a bad request; elsewhere its `error_type` is the code.
TGI_TYPES = {"invalid_request": "validation", "body_too_large": "validation"}


@dataclass(frozen=True, slots=True)
class LocalReply:
    """What is said for a status (None: any), or for a status with one of Envoy's response flags."""

    status: int | None
    code: str
    message: str
    flags: tuple[str, ...] = ()

    @property
    def openai(self) -> dict[str, object]:
        """OpenAI's error object."""
        kind = OPENAI_TYPES.get(self.status or 500, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    @property
    def tgi(self) -> dict[str, object]:
        """TGI's pair."""
        return {"error": self.message, "error_type": TGI_TYPES.get(self.code, self.code)}


def replies(body_bytes_max: int) -> list[LocalReply]:
    """The table; the first that fits is used, the last fits everything."""
    return [
        LocalReply(413, "body_too_large", f"the body is too large; at most {body_bytes_max} bytes"),
        LocalReply(431, "headers_too_large", "the headers are too large"),
        LocalReply(408, "request_timeout", "the request took too long to arrive"),
        LocalReply(429, "overloaded", "too many requests from this address"),
        LocalReply(503, "no_ready_endpoint", "no replica is ready", flags=("UH", "NC")),
        LocalReply(503, "overloaded", "too many requests are in flight", flags=("UO",)),
        LocalReply(
            503, "endpoint_unreachable", "no replica could be reached", flags=("UF", "URX", "UC", "UR")
        ),
        LocalReply(503, "gateway_unavailable", "the gateway cannot decide just now"),
        LocalReply(504, "endpoint_timeout", "the replica took too long to answer", flags=("UT", "SI")),
        LocalReply(504, "gateway_timeout", "the gateway took too long to decide"),
        LocalReply(400, "invalid_request", "the request is malformed"),
        LocalReply(403, "not_allowed", "this is not allowed here"),
        LocalReply(404, "not_found", "there is no such route"),
        LocalReply(None, "gateway_error", "%LOCAL_REPLY_BODY%"),
    ]


def local_reply_config(config: Config) -> LocalReplyConfig:
    """Two mappers a row: OpenAI's routes first, then the rest."""
    mappers: list[ResponseMapper] = []
    for reply in replies(config.gateway.body_bytes_max):
        mappers += [
            _mapper(reply, reply.openai, openai_route=True),
            _mapper(reply, reply.tgi, openai_route=False),
        ]
    return LocalReplyConfig(mappers=mappers)


def _mapper(reply: LocalReply, body: Mapping[str, object], *, openai_route: bool) -> ResponseMapper:
    filters = [_which(OPENAI if openai_route else NOT_THE_SERVICES)]
    if reply.status is not None:
        filters.append(_status_is(reply.status))
    if reply.flags:
        filters.append(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(reply.flags))))
    headers = [_retry_after()] if reply.status in (429, 503) else []
    return ResponseMapper(
        filter=filters[0] if len(filters) == 1 else AccessLogFilter(and_filter=AndFilter(filters=filters)),
        body_format_override=SubstitutionFormatString(
            json_format=Struct.from_dict(dict(body)), content_type="application/json"
        ),
        headers_to_add=headers,
    )


def _which(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=packed(ExpressionFilter(expression=expression)),
        )
    )


def _status_is(status: int) -> AccessLogFilter:
    value = RuntimeUInt32(default_value=status, runtime_key=f"steersman.local_reply.{status}")
    return AccessLogFilter(
        status_code_filter=StatusCodeFilter(
            comparison=ComparisonFilter(op=ComparisonFilterOp.EQ, value=value)
        )
    )


def _retry_after() -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key="retry-after", value=str(RETRY_AFTER_S)),
        append_action=HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT,
    )
