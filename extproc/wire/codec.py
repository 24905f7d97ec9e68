"""ext_proc messages: bytes to what a decision needs, and decisions to bytes.

Owns the protobuf of the request path. Header values come as raw bytes; they are read as latin-1,
which maps every byte to a character and so never fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.contract import (
    ATTRIBUTES_NAMESPACE,
    CACHE_HEADER,
    CACHE_KEY,
    CLUSTER_HEADER,
    DECISION_NAMESPACE,
    ENCODING_HEADER,
    EVENT_CLUSTER_KEY,
    EXPLAIN_HEADER,
    EXPLAINED_KEY,
    JWT_FAILURE_KEY,
    JWT_NAMESPACE,
    JWT_PAYLOAD_KEY,
    LB_ENDPOINTS_KEY,
    LB_NAMESPACE,
    MODEL_HEADER,
    ONCE_HEADER,
    PATH_PREFIX_HEADER,
    POOL_KEY,
    REASON_KEY,
    RESERVATION_KEY,
    RETRIES_HEADER,
    SAN_ATTRIBUTES,
    SECOND_MODEL_KEY,
    SITE_HEADER,
    SOURCE_ATTRIBUTE,
    SUBJECT_ATTRIBUTE,
    TICKET_KEY,
    TRACE_KEY,
    USAGE_KEY,
    WHOLE_HEADER,
)
from extproc.core.errors import error_body
from extproc.core.outcome import LocalAnswer, Reject, Routed
from extproc.core.request import Dialect
from extproc.core.tenant import Credentials, ProxyTrust
from extproc.wire import ticket
from extproc.wire.rename import second_model
from extproc.wire.seal import EVENT, Seal
from extproc.wire.varint import varint

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"
JSON = "application/json"
#: The phase of a body whose head alone is shown.
FORM_HEAD = "form_head"
#: The same of a form whose rest is still to come.
FORM_PART = "form_part"
#: The headers that a decision reads; the rest is not even decoded.
WANTED = frozenset(
    {
        ":authority",
        ":method",
        ":path",
        ":scheme",
        AUTHORIZATION,
        API_KEY,
        CACHE_HEADER,
        "content-encoding",
        "content-length",
        "content-type",
        EXPLAIN_HEADER,
        MODEL_HEADER,
        "origin",
        SITE_HEADER,
        "traceparent",
        "tracestate",
        "x-request-id",
    }
)
#: Of these a second copy is refused: which one counts would be anybody's guess.
SINGLE = frozenset({AUTHORIZATION, API_KEY, MODEL_HEADER, SITE_HEADER, "content-length", "content-encoding"})

#: What requests' headers become, kept written: a pool and class has about six of them.
CHANGES_KEPT_MAX = 1_024

#: Messages above this are mostly a body, of which each copy costs.
LARGE_BYTES = 64 * 1024
#: The beginnings of ProcessingRequest.request_body and of HttpBody.body: field number and wire type.
_REQUEST_BODY_TAG, _BODY_TAG = (4 << 3) | 2, (1 << 3) | 2
_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class Headers(msgspec.Struct, frozen=True):
    """The request's headers: the wanted ones, lower-case; `repeated` names a forbidden second copy."""

    values: dict[str, str]
    end_of_stream: bool
    repeated: str = ""
    evidence: Credentials = Credentials()
    #: Nothing follows them here: who asks is all that is asked.
    alone: bool = False
    kind: ClassVar = "request_headers"


class Body(msgspec.Struct, frozen=True):
    """The request's whole body (BUFFERED mode delivers it in one message), or a form's head."""

    data: bytes
    whole: bool = True
    kind: ClassVar = "request_body"


@dataclass(frozen=True, slots=True)
class Other:
    """A phase that this service has no part in; `kind` is its field's name."""

    kind: str


Message = Headers | Body | Other


def read(
    data: bytes,
    *,
    claim: str | None = None,
    proxy: ProxyTrust | None = None,
    named: frozenset[str] = frozenset(),
) -> Message:
    """Decode one ProcessingRequest; raises google.protobuf.message.DecodeError on garbage.

    `claim` is the JWT's that names tenants, `proxy` says in which header a trusted proxy does; in the headers
    `named` routes of the file find their model.
    """
    if len(data) > LARGE_BYTES and (large := _large_body(data)) is not None:
        return large
    message = pb.ProcessingRequest.FromString(data)
    kind = message.WhichOneof("request")
    if kind == "request_body":
        return Body(message.request_body.body, message.request_body.end_of_stream)
    if kind != "request_headers":
        return Other(kind or "")
    return read_headers(message, claim=claim, proxy=proxy, trusted=named)


def _large_body(data: bytes) -> Body | None:
    """A body as Envoy writes it, copied once: first of the message's fields, and first in its own message.

    None for any other shape, which protobuf reads.
    """
    if data[0] != _REQUEST_BODY_TAG:
        return None
    length, inner = varint(data, 1)
    outer_end = inner + length
    if outer_end > len(data) or data[inner] != _BODY_TAG:
        return None
    length, start = varint(data, inner + 1)
    end = start + length
    if end > outer_end:
        return None
    # What stands beside it may not be a body too: the last one would count.
    rest = pb.HttpBody.FromString(data[end:outer_end])
    others = pb.ProcessingRequest.FromString(data[outer_end:])
    if rest.body or others.WhichOneof("request") is not None:
        return None
    return Body(data[start:end], rest.end_of_stream)


def read_headers(
    message: pb.ProcessingRequest,
    *,
    claim: str | None = None,
    proxy: ProxyTrust | None = None,
    trusted: frozenset[str] = frozenset(),
) -> Headers:
    """The headers of a message that holds them; `trusted` are read as well, and refused when repeated."""
    values: dict[str, str] = {}
    repeated = ""
    proxy_header, peer_header = (proxy.header, proxy.peer_header) if proxy is not None else (None, None)
    # Most gateways trust nobody's word: then nothing is made anew for each request.
    wanted = WANTED if proxy is None and not trusted else WANTED.union(trusted, (proxy_header, peer_header))
    for header in message.request_headers.headers.headers:
        key = header.key
        if key in wanted:
            if key in values and (key in SINGLE or key == proxy_header or key in trusted):
                repeated = key
            values[key] = header.raw_value.decode("latin-1") or header.value
    # Envoy joins this one's copies itself; no credentials hold a comma.
    if "," in values.get(AUTHORIZATION, ""):
        repeated = AUTHORIZATION
    proxy_tenant = values.get(proxy_header) if proxy_header is not None else None
    evidence = _evidence(message, values, claim, proxy_tenant)
    if peer_header:
        evidence = replace(evidence, peer=values.get(peer_header, ""))
    alone = message.HasField("protocol_config") and (
        message.protocol_config.request_body_mode == pb.ProtocolConfiguration.NONE
    )
    return Headers(values, message.request_headers.end_of_stream, repeated, evidence, alone)


def _evidence(
    message: pb.ProcessingRequest, values: dict[str, str], claim: str | None, proxy_tenant: str | None
) -> Credentials:
    """Headers for what a client claims; metadata and attributes, which no client can set, for the rest."""
    jwt: str | None = None
    failure = source = subject = ""
    sans: tuple[str, ...] = ()
    if claim is not None and JWT_NAMESPACE in message.metadata_context.filter_metadata:
        said = message.metadata_context.filter_metadata[JWT_NAMESPACE].fields
        if JWT_PAYLOAD_KEY in said:
            payload = said[JWT_PAYLOAD_KEY].struct_value.fields
            jwt = payload[claim].string_value if claim in payload else ""
        if JWT_FAILURE_KEY in said:
            failure = said[JWT_FAILURE_KEY].struct_value.fields["message"].string_value
    if ATTRIBUTES_NAMESPACE in message.attributes:
        attributes = message.attributes[ATTRIBUTES_NAMESPACE].fields
        if SOURCE_ATTRIBUTE in attributes:
            source = attributes[SOURCE_ATTRIBUTE].string_value.rpartition(":")[0].strip("[]")
        sans = tuple(
            name for key in SAN_ATTRIBUTES if key in attributes and (name := attributes[key].string_value)
        )
        if SUBJECT_ATTRIBUTE in attributes:
            subject = attributes[SUBJECT_ATTRIBUTE].string_value
    return Credentials(
        authorization=values.get(AUTHORIZATION),
        api_key=values.get(API_KEY),
        jwt=jwt,
        jwt_failure=failure,
        sans=sans,
        proxy_tenant=proxy_tenant,
        source=source,
        subject=subject,
    )


def _empty(kind: str) -> bytes:
    response = pb.ProcessingResponse()
    phase = getattr(response, kind)
    # The oneof must be set, and its response too: a message without them is spurious to Envoy (500).
    (phase.response if hasattr(phase, "response") else phase).SetInParent()
    return response.SerializeToString()


#: Go on, nothing changed: by phase.
CONTINUE = {
    kind: _empty(kind)
    for kind in (
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
    )
}


def routed(
    decision: Routed,
    phase: str,
    *,
    seal: Seal,
    event_cluster: str = "",
    explained: bool = False,
    carried: str = "",
    body: bytes | None = None,
    as_json: bool = False,
    usage: str = "",
    path_prefix: str = "",
    cache: str = "",
    site: str = "",
) -> bytes:
    """The decision as the answer to a phase (request_headers, request_body, FORM_HEAD or FORM_PART).

    `event_cluster` is the cluster that Envoy tells of the first token; none when empty. `explained`: the
    client is told the reason. `carried` is what of its trace rides along. `body` goes on in place of the
    client's. `as_json` has it declared as what it was read as. `usage` was asked for in its name.
    `path_prefix` stands before its path there. `cache` has Envoy gather the answer, up to so many bytes.
    `site` is signed for the other site that it goes to.
    """
    about = told(decision, seal=seal, event_cluster=event_cluster, explained=explained, carried=carried)
    if usage:
        about[USAGE_KEY] = usage
    if cache:
        about[CACHE_KEY] = cache
    if body is not None and decision.second_model:
        about[SECOND_MODEL_KEY] = second_model(body, decision.second_model)
    data = _changes(phase, decision.cluster, decision.retries, decision.reservation.stream, path_prefix)
    response = pb.ProcessingResponse()
    if body is not None or as_json or site:
        response.MergeFromString(data)
        data = b""
        common = getattr(response, _field(phase)).response
        if body is not None:
            common.body_mutation.body = body
            # Envoy answers 500 itself where its own length and the new body's differ.
            set_header(common.header_mutation, "content-length", str(len(body)))
        if as_json:
            set_header(common.header_mutation, "content-type", JSON)
        if site:
            set_header(common.header_mutation, SITE_HEADER, site)
    tell(response, ",".join(decision.addresses), about)
    # A message's fields may be written apart: what is told is a field of its own.
    return data + response.SerializeToString()


def _field(phase: str) -> str:
    return "request_body" if phase in (FORM_HEAD, FORM_PART) else phase


@lru_cache(maxsize=CHANGES_KEPT_MAX)
def _changes(phase: str, cluster: str, retries: int, stream: bool, path_prefix: str) -> bytes:
    """The answer to a phase less what it tells: where the request goes, by its headers. Mostly the same."""
    response = pb.ProcessingResponse()
    common = getattr(response, _field(phase)).response
    # Where a body's rest is still to come, the script has it chosen anew (control/routes.py): Envoy sends on
    # what it has before it would come to that itself.
    common.clear_route_cache = _field(phase) == phase
    mutation = common.header_mutation
    set_header(mutation, CLUSTER_HEADER, cluster)
    # Envoy tries as often as the list has endpoints: the last one's own answer is what the client gets.
    set_header(mutation, RETRIES_HEADER, str(retries))
    if not stream:
        set_header(mutation, WHOLE_HEADER, "1")
    # Where Envoy keeps it whole, its route takes that away.
    if phase == FORM_PART or (phase == FORM_HEAD and not retries):
        set_header(mutation, ONCE_HEADER, "1")
    if path_prefix:
        set_header(mutation, PATH_PREFIX_HEADER, path_prefix)
    # The key opened our door; the engine has no use for it, and its logs no right to it. The engine's own is
    # Envoy's to put in.
    # What is signed for one site is no other's, and no engine's, to see; it is removed before ours is set.
    mutation.remove_headers.extend((AUTHORIZATION, API_KEY, ENCODING_HEADER, SITE_HEADER))
    return response.SerializeToString()


def told(
    decision: Routed, *, seal: Seal, event_cluster: str = "", explained: bool = False, carried: str = ""
) -> dict[str, str]:
    """What rides with the request as dynamic metadata."""
    about = {
        TICKET_KEY: ticket.write(decision.reservation, seal),
        RESERVATION_KEY: seal.sealed(decision.reservation.id, EVENT),
        POOL_KEY: decision.reservation.pool,
        REASON_KEY: decision.reason.text(),
        **dict(decision.headers),
    }
    if event_cluster:
        about[EVENT_CLUSTER_KEY] = event_cluster
    if carried:
        about[TRACE_KEY] = carried
    if explained:
        about[EXPLAINED_KEY] = about[REASON_KEY]
    return about


def hold(timeout_ms: int) -> bytes:
    """Nothing yet: Envoy shall wait so long for the answer (at most its max_message_timeout)."""
    response = pb.ProcessingResponse()
    response.override_message_timeout.FromMilliseconds(max(1, timeout_ms))
    return response.SerializeToString()


def declares_json(content_type: str) -> bool:
    """Whether engines take a body that is declared so: application/json, or a kind of it (+json)."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def tell(response: pb.ProcessingResponse, endpoints: str, about: dict[str, str]) -> None:
    """Dynamic metadata: the endpoints for the balancer, and what rides with the request."""
    metadata = response.dynamic_metadata.fields
    if endpoints:
        metadata[LB_NAMESPACE].struct_value.fields[LB_ENDPOINTS_KEY].string_value = endpoints
    fields = metadata[DECISION_NAMESPACE].struct_value.fields
    for key, value in about.items():
        fields[key].string_value = value


def immediate(
    answer: LocalAnswer | Reject, dialect: Dialect, *, headers: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """An answer that no upstream sees; `headers` on top of its own."""
    response = pb.ProcessingResponse()
    out = response.immediate_response
    out.status.code = answer.status
    if isinstance(answer, LocalAnswer):
        set_header(out.headers, "content-type", answer.content_type)
        out.body = answer.body
        out.details = f"steersman_{answer.by}"
        for name, value in answer.headers:
            set_header(out.headers, name, value)
    else:
        set_header(out.headers, "content-type", JSON)
        out.body = error_body(answer, dialect)
        # %RESPONSE_CODE_DETAILS% must hold no blanks.
        out.details = f"steersman_{answer.code}"
        if answer.retry_after_s is not None:
            set_header(out.headers, "retry-after", str(answer.retry_after_s))
        for name, value in answer.headers:
            set_header(out.headers, name, value)
        if answer.status == 401:
            set_header(out.headers, "www-authenticate", "Bearer")
    for name, value in headers:
        set_header(out.headers, name, value)
    return response.SerializeToString()


def set_header(mutation: pb.HeaderMutation, key: str, value: str) -> None:
    """Set a header, whatever it was."""
    option = mutation.set_headers.add()
    option.header.key = key
    option.header.raw_value = value.encode()
    option.append_action = _OVERWRITE
