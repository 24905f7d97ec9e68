from __future__ import annotations

import msgspec
import pytest

from extproc.core.outcome import Reject
from extproc.core.request import Dialect
from extproc.wire.dialect import error_body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "server_error"),
    ],
)
def test_openai(status: int, kind: str) -> None:
    """OpenAI's error object, its type by the status."""
    body = error_body(Reject(status=status, code="overloaded", message="full"), Dialect.OPENAI)
    error = {"message": "full", "type": kind, "param": None, "code": "overloaded"}
    assert msgspec.json.decode(body) == {"error": error}


@pytest.mark.parametrize(
    ("code", "kind"),
    [("invalid_request", "validation"), ("overloaded", "overloaded"), ("not_found", "not_found")],
)
def test_tgi(code: str, kind: str) -> None:
    """TGI's pair, in its own words where it has one."""
    body = error_body(Reject(status=400, code=code, message="no"), Dialect.TGI)
    assert msgspec.json.decode(body) == {"error": "no", "error_type": kind}
