"""What a client is told when its request is not served: the one table of errors, in every dialect.

Owns each error's status, code, message, Retry-After and type in each dialect. The service's own refusals
(`Error.reject`), Envoy's local replies (control/replies.py) and the table of docs/api.md are made from it.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final

import msgspec

from extproc.core.outcome import QUOTA_EXCEEDED, Reject
from extproc.core.request import Dialect
from extproc.engines import traits_of

#: How much of an unknown model's name a message repeats.
MODEL_SHOWN_MAX: Final = 128
#: OpenAI's `type` where a status has one of its own (their error codes' page; clients' libraries go by the
#: status first); any other 4xx is the request's fault, any other status the server's.
OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
#: TGI's `error_type` by code, where it has a word of its own (router/src/lib.rs); elsewhere the code.
TGI_TYPES: Final = {
    "invalid_request": "validation",
    "body_too_large": "validation",
    "context_length_exceeded": "validation",
}
#: Anthropic's `error.type` by status; any other 4xx is an invalid request, any other status the server's.
ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
#: The code of what Envoy says in its own words.
GATEWAY_ERROR: Final = "gateway_error"

_encoder = msgspec.json.Encoder()


class Error(Enum):
    """The errors, in the order of docs/api.md: status, code, message, when it comes, seconds to wait.

    The message is what is said where nothing nearer is known; its `{names}` are filled in.
    """

    INVALID_REQUEST = (
        400,
        "invalid_request",
        "the request is malformed",
        "the body is no JSON, the prompt is missing, or a header such as `authorization` was sent twice",
    )
    UNFIT = (
        422,
        "invalid_request",
        "the body is no request",
        "JSON that is no request, where TGI serves the model or TGI's own path was called; elsewhere 400",
    )
    CONTEXT_LENGTH = (
        400,
        "context_length_exceeded",
        "the prompt has {prompt} tokens and {asked} more are asked for; the model's context is {context}",
        "the prompt and what is asked for do not fit `pools[].tokenizer.context_tokens`, as counted",
    )
    INVALID_API_KEY = (
        401,
        "invalid_api_key",
        "unknown API key",
        "no key, or one that is unknown, expired or revoked",
    )
    IDENTITY_CONFLICT = (
        401,
        "identity_conflict",
        "{proofs} prove different tenants; send one",
        "two proofs of different tenants, such as a key and a certificate",
    )
    SITE_NOT_TRUSTED = (
        401,
        "site_not_trusted",
        "the other site's word is not taken: {why}",
        "`x-steersman-site` is forged, expired, used before, for another site, or its site may not forward",
    )
    REGION_NOT_ALLOWED = (
        403,
        "region_not_allowed",
        "no replica of pool {pool!r} is in a region that this tenant may use ({regions})",
        "no replica is in a region that the tenant may use",
    )
    NOT_ALLOWED = (
        403,
        "not_allowed",
        "this is not allowed here",
        "Envoy does not serve it, such as an upgrade",
    )
    MODEL_NOT_FOUND = (
        404,
        "model_not_found",
        "{what}; GET /v1/models lists what there is",
        "a model that is unknown, or not this tenant's (the same words for both)",
    )
    RESPONSE_NOT_FOUND = (
        404,
        "response_not_found",
        "there is no response {id!r} here",
        "a response that this tenant did not make here, or that was forgotten",
    )
    NOT_FOUND = (404, "not_found", "there is no such route", "an unknown path")
    METHOD_NOT_ALLOWED = (
        405,
        "method_not_allowed",
        "this route takes another method",
        "a path that is served, with another method; `allow` names those it takes",
    )
    REQUEST_TIMEOUT = (
        408,
        "request_timeout",
        "the request took too long to arrive",
        "the request did not arrive in time: `gateway.upload_timeout_ms`",
    )
    LENGTH_REQUIRED = (
        411,
        "length_required",
        "say with Content-Length how long the form is; at most {bytes} bytes",
        "a form, such as an upload of sound, came without its length",
    )
    BODY_TOO_LARGE = (
        413,
        "body_too_large",
        "the body is too large; at most {bytes} bytes",
        "the body is above `gateway.body_bytes_max` (a form: `upload_bytes_max`), or holds too many pieces",
    )
    UNSUPPORTED_ENCODING = (
        415,
        "unsupported_encoding",
        "the body is {encoding}-encoded; send it plain",
        "the body is compressed",
    )
    HEADERS_TOO_LARGE = (431, "headers_too_large", "the headers are too large", "Envoy takes no such headers")
    QUOTA = (
        429,
        QUOTA_EXCEEDED,
        "the quota {limit} is spent",
        "a quota is used up: requests, tokens, GPU time, concurrency or budget",
        1,
    )
    OVERLOADED = (
        429,
        "overloaded",
        "every replica of pool {pool!r} is full",
        "no replica had room within the class's `hold_ms`, or a queue is full",
        1,
    )
    TOO_MANY_REFUSED = (
        429,
        "too_many_refused",
        "too many of this tenant's requests were refused for what was in them",
        "too many bodies of this tenant were refused for what is in them (`limits.refused_bytes_per_minute`)",
        1,
    )
    TOO_MANY_ATTEMPTS = (
        429,
        "too_many_attempts",
        "too many failed attempts from this address",
        "too many wrong keys from one address",
        1,
    )
    NO_READY_ENDPOINT = (
        503,
        "no_ready_endpoint",
        "no replica is ready",
        "no replica is ready; where one can be started, after `cold_hold_ms`, and it says when",
        5,
    )
    IN_FLIGHT = (
        503,
        "overloaded",
        "too many requests are in flight",
        "Envoy's circuit breaker for the upstream cluster is open",
        1,
    )
    ENDPOINT_UNREACHABLE = (
        503,
        "endpoint_unreachable",
        "no replica could be reached",
        "none of the decision's replicas could be reached",
        1,
    )
    GATEWAY_UNAVAILABLE = (
        503,
        "gateway_unavailable",
        "the gateway cannot decide just now",
        "the service is away, and `failure_mode` is `closed`",
        1,
    )
    INTERNAL = (
        503,
        "internal",
        "the gateway could not decide on this request",
        "a fault in the gateway itself",
        1,
    )
    ENDPOINT_TIMEOUT = (
        504,
        "endpoint_timeout",
        "the replica took too long to answer",
        "the replica did not begin to answer within `gateway.first_byte_timeout_ms`",
    )
    GATEWAY_TIMEOUT = (
        504,
        "gateway_timeout",
        "the gateway took too long to decide",
        "the service did not decide in time, and `failure_mode` is `closed`",
    )
    LOOP = (
        508,
        "loop_detected",
        "{hops} gateways have sent this request on, and its model is only at another site",
        "sites name each other for a model that none of them serves, or `site.hops_max` is too small",
    )

    def __init__(
        self, status: int, code: str, message: str, when: str, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.when = when
        self.retry_after_s = retry_after_s

    def reject(
        self,
        message: str | None = None,
        *,
        retry_after_s: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        **named: object,
    ) -> Reject:
        """The service's refusal, with a message and a time of its own where it knows better."""
        return Reject(
            status=self.status,
            code=self.code,
            message=self.message.format(**named) if message is None else message,
            retry_after_s=self.retry_after_s if retry_after_s is None else retry_after_s,
            headers=headers,
        )


#: Codes of refusals that are the fleet's doing.
_WANT_OF_ROOM: Final = frozenset(
    each.code for each in (Error.OVERLOADED, Error.IN_FLIGHT, Error.NO_READY_ENDPOINT, Error.INTERNAL)
)


def wanted_room(code: str) -> bool:
    """Whether a refusal was for want of room: such a request missed its targets.

    A spent quota is not the fleet's doing, and neither is what only its sender is to blame for: a bad
    request, or too many of them.
    """
    return code in _WANT_OF_ROOM


def no_model(name: str | None) -> Reject:
    """A model that is not there for whoever asks: the same words whether it is nowhere or others'."""
    what = "no model was named, and none is yours by default"
    if name is not None:
        what = f"no model {name[:MODEL_SHOWN_MAX]!r} here"
    return Error.MODEL_NOT_FOUND.reject(what=what)


def as_engine_says(refused: Reject, dialect: Dialect, engine: str) -> Reject:
    """A refusal of a body with the status that the client's engine has for it."""
    if refused.status != Error.UNFIT.status or dialect is Dialect.TGI:
        return refused
    if dialect is Dialect.ANTHROPIC:
        return replace(refused, status=Error.INVALID_REQUEST.status)
    return replace(refused, status=traits_of(engine).unfit_status)


def told(status: int, code: str, message: str, dialect: Dialect) -> dict[str, object]:
    """An error's body: OpenAI's error object, TGI's pair, or Anthropic's object."""
    if dialect is Dialect.TGI:
        return {"error": message, "error_type": TGI_TYPES.get(code, code)}
    if dialect is Dialect.ANTHROPIC:
        kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_body(reject: Reject, dialect: Dialect) -> bytes:
    """The JSON of a refusal."""
    return _encoder.encode(told(reject.status, reject.code, reject.message, dialect))
