"""Envoy's own errors, in the dialect of the route that was called.

Owns which error of core/errors.py Envoy's status and response flag stand for, and where it is said: OpenAI's
error object where OpenAI's clients read it (core/misrouted.py), Anthropic's where theirs do, TGI's pair
elsewhere. The status stays what Envoy chose. Answers of the service pass through: they carry a content type,
Envoy's own texts carry none before this.
"""

from __future__ import annotations

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
from extproc.config.own_routes import own_routes
from extproc.control.pack import packed
from extproc.core.errors import GATEWAY_ERROR, OPENAI_TYPES, Error, told
from extproc.core.misrouted import ANTHROPIC_ENDS, OPENAI_BEGINS, OPENAI_ENDS, TGI_ENDS, dialect_of
from extproc.core.request import Dialect

NOT_THE_SERVICES = "!('content-type' in response.headers)"


def _path(*regexes: str) -> str:
    return "(" + " || ".join(f"request.url_path.matches('{regex}')" for regex in regexes) + ")"


#: And on a path where Anthropic's clients read it, or OpenAI's.
ANTHROPIC = f"{NOT_THE_SERVICES} && {_path(*ANTHROPIC_ENDS)}"
OPENAI = f"{NOT_THE_SERVICES} && ({_path(*OPENAI_ENDS)} || ({_path(OPENAI_BEGINS)} && !{_path(*TGI_ENDS)}))"
#: The first that fits.
WHERE = {Dialect.ANTHROPIC: ANTHROPIC, Dialect.OPENAI: OPENAI, Dialect.TGI: NOT_THE_SERVICES}


def where(config: Config) -> dict[Dialect, str]:
    """The same with the file's routes, whose dialect may be another than their path says."""
    found = dict(WHERE)
    own: dict[Dialect, list[str]] = {}
    for row in own_routes(config.routes):
        if row.dialect is not dialect_of(row.path):
            same = f"request.url_path == '{row.path}'"
            own.setdefault(row.dialect, []).append(same)
    for dialect, paths in own.items():
        here = f"{NOT_THE_SERVICES} && ({' || '.join(dict.fromkeys(paths))})"
        for other, said in found.items():
            found[other] = f"({said}) || ({here})" if other is dialect else f"({said}) && !({here})"
    return found


@dataclass(frozen=True, slots=True)
class LocalReply:
    """What is said for these statuses (first and last, None: any) and, where there are some, these flags."""

    statuses: tuple[int, int] | None
    code: str
    message: str
    retry_after_s: int | None = None
    flags: tuple[str, ...] = ()

    def body(self, dialect: Dialect) -> dict[str, object]:
        """What a client reads."""
        return told(self.statuses[0] if self.statuses else 500, self.code, self.message, dialect)


def _says(error: Error, *flags: str, message: str | None = None) -> LocalReply:
    said = error.message if message is None else message
    return LocalReply((error.status, error.status), error.code, said, error.retry_after_s, flags)


def replies(body_bytes_max: int) -> list[LocalReply]:
    """Which error it is; the first that fits is used, the last fit everything in Envoy's own words."""
    known = [
        _says(Error.BODY_TOO_LARGE, message=Error.BODY_TOO_LARGE.message.format(bytes=body_bytes_max)),
        _says(Error.HEADERS_TOO_LARGE),
        _says(Error.REQUEST_TIMEOUT),
        _says(Error.OVERLOADED, message="too many requests from this address"),
        _says(Error.NO_READY_ENDPOINT, "UH", "NC"),
        _says(Error.IN_FLIGHT, "UO"),
        _says(Error.ENDPOINT_UNREACHABLE, "UF", "URX", "UC", "UR"),
        _says(Error.GATEWAY_UNAVAILABLE),
        _says(Error.ENDPOINT_TIMEOUT, "UT", "SI"),
        _says(Error.GATEWAY_TIMEOUT),
        _says(Error.INVALID_REQUEST),
        _says(Error.NOT_ALLOWED),
        _says(Error.NOT_FOUND),
    ]
    # A status with a type of its own is told apart from the others of its hundred.
    apart = sorted(set(OPENAI_TYPES) - {first for first, _ in filter(None, (r.statuses for r in known))})
    others = [*((status, status) for status in apart), (400, 499), None]
    return [*known, *(LocalReply(statuses, GATEWAY_ERROR, "%LOCAL_REPLY_BODY%") for statuses in others)]


def local_reply_config(config: Config) -> LocalReplyConfig:
    """Three mappers a row: Anthropic's routes first, then OpenAI's, then the rest."""
    mappers: list[ResponseMapper] = []
    expressions = where(config)
    for reply in replies(config.gateway.body_bytes_max):
        mappers += [_mapper(reply, dialect, said) for dialect, said in expressions.items()]
    return LocalReplyConfig(mappers=mappers)


def _mapper(reply: LocalReply, dialect: Dialect, expression: str) -> ResponseMapper:
    filters = [_which(expression)]
    if reply.statuses is not None:
        first, last = reply.statuses
        same = first == last
        filters += (
            [_status(first)]
            if same
            else [_status(first, ComparisonFilterOp.GE), _status(last, ComparisonFilterOp.LE)]
        )
    if reply.flags:
        filters.append(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(reply.flags))))
    return ResponseMapper(
        filter=filters[0] if len(filters) == 1 else AccessLogFilter(and_filter=AndFilter(filters=filters)),
        body_format_override=SubstitutionFormatString(
            json_format=Struct.from_dict(reply.body(dialect)), content_type="application/json"
        ),
        headers_to_add=[] if reply.retry_after_s is None else [_retry_after(reply.retry_after_s)],
    )


def _which(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=packed(ExpressionFilter(expression=expression)),
        )
    )


def _status(status: int, op: ComparisonFilterOp = ComparisonFilterOp.EQ) -> AccessLogFilter:
    value = RuntimeUInt32(default_value=status, runtime_key=f"steersman.local_reply.{status}")
    return AccessLogFilter(
        status_code_filter=StatusCodeFilter(comparison=ComparisonFilter(op=op, value=value))
    )


def _retry_after(seconds: int) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key="retry-after", value=str(seconds)),
        append_action=HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT,
    )
