"""Error bodies in the dialect of the route: OpenAI's error object, or TGI's pair."""

from __future__ import annotations

import msgspec

from extproc.core.outcome import Reject
from extproc.core.request import Dialect

#: OpenAI's `type` by status; clients' libraries choose their exception by status first.
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
#: TGI's `error_type` for what it has a word for.
_TGI_TYPES = {"invalid_request": "validation", "body_too_large": "validation"}

_encoder = msgspec.json.Encoder()


def error_body(reject: Reject, dialect: Dialect) -> bytes:
    """The JSON body of a refusal."""
    if dialect is Dialect.OPENAI:
        return _encoder.encode(
            {
                "error": {
                    "message": reject.message,
                    "type": _OPENAI_TYPES.get(reject.status, "server_error"),
                    "param": None,
                    "code": reject.code,
                }
            }
        )
    return _encoder.encode({"error": reject.message, "error_type": _TGI_TYPES.get(reject.code, reject.code)})
