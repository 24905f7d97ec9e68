from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest

from extproc.core.errors import Error, error_body, no_model, wanted_room
from extproc.core.outcome import Reject
from extproc.core.request import Dialect

SOURCES = Path(__file__).resolve().parents[2] / "extproc"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (413, "invalid_request_error"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (431, "invalid_request_error"),
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


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropic(status: int, kind: str) -> None:
    """Anthropic's error object, its type by the status."""
    body = error_body(Reject(status=status, code="overloaded", message="full"), Dialect.ANTHROPIC)
    assert msgspec.json.decode(body) == {"type": "error", "error": {"type": kind, "message": "full"}}


def test_no_error_is_twice_in_the_table() -> None:
    """A status and a code name one; who is asked to come again is told when."""
    assert len({(each.status, each.code) for each in Error}) == len(Error)
    assert all(each.retry_after_s for each in Error if each.status in (429, 503))
    assert all(each.when and each.message for each in Error)


def test_who_refuses_may_know_better() -> None:
    """Its own words and time go before the table's; what a client said is not filled in once more."""
    assert Error.OVERLOADED.reject(pool="p{x}").message == "every replica of pool 'p{x}' is full"
    assert Error.OVERLOADED.reject("full {x}", retry_after_s=7) == Reject(
        status=429, code="overloaded", message="full {x}", retry_after_s=7
    )
    assert no_model("{}").message == "no model '{}' here; GET /v1/models lists what there is"
    assert [each for each in Error if wanted_room(each.code) and each.status == 429] == [Error.OVERLOADED]


def test_every_refusal_is_made_from_the_table() -> None:
    """No other module builds one: its status, code, type and Retry-After stand in one place."""
    makers = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Reject"
    }
    assert makers == {"core/errors.py"}
