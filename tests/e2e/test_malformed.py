"""What is malformed is refused in the words of the route called: each route that takes a body, each kind of
mistake, asked for as a stream and not. No engine hears of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from gateway import KEYS, Gateway
from scripted_engine import Script, ScriptedEngine

from extproc.core.request import Dialect, RouteKind
from extproc.core.routes import EXTRA_ROWS, ROWS, BodyKind, Route

pytestmark = pytest.mark.envoy

#: Every route with a body.
TAKES = [row for row in (*ROWS, *EXTRA_ROWS) if row.body is not BodyKind.NONE]
JSON_ROUTES = [row for row in TAKES if row.body is BodyKind.JSON]
FORMS = [row for row in TAKES if row.body is BodyKind.FORM]
OWN = [{"path": "/v1/own", "work": "embedding", "input": ["text"]}]

#: What no engine could read at all; and what is JSON, but no request. What is said of each.
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the body is empty"),
    "cut off": (b'{"model": "tiny-chat", "stream": true', "not valid JSON"),
    "two values": (b'{"stream": true} {}', "not valid JSON"),
    "single quotes": (b"{'stream': true}", "not valid JSON"),
    "not UTF-8": (b'{"model": "tiny-chat", "stream": true, "prompt": "\xff"', "JSON"),
    "a form": (b"model=tiny-chat&stream=true", "not valid JSON"),
    "nested too deep": (b'{"stream": true, "tools": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", ""),
}
UNFIT: dict[str, tuple[Any, str]] = {
    "a list": ([{"stream": True}], ""),
    "a text": ("tiny-chat", ""),
    "a number": (7, ""),
    "nothing": (None, ""),
    "no input": ({"model": "tiny-chat", "stream": True}, "missing"),
    "no input, whole": ({"model": "tiny-chat", "stream": False}, "missing"),
}


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Gateway, ScriptedEngine]]:
    with ScriptedEngine(lambda _: Script({"answered": True})) as engine:
        pools = {"chat": {"models": ["tiny-chat"], "engine": "vllm", "addresses": [engine.address]}}
        extra = {"extra_routes": ["/invocations", "/vertex"]}
        with Gateway(pools, gateway=extra, routes=OWN) as gateway:
            yield gateway, engine


@pytest.fixture(scope="module")
def client(site: tuple[Gateway, ScriptedEngine]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site[0].url, timeout=60) as found:
        yield found


def refused(answer: httpx.Response, dialect: Dialect, statuses: set[int]) -> str:
    """What a client reads of an error, once its shape was found to be its dialect's; JSON, and no event."""
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    if dialect is Dialect.TGI:
        assert set(body) == {"error", "error_type"}
        said = body["error"]
    elif dialect is Dialect.ANTHROPIC:
        assert (body["type"], set(body)) == ("error", {"type", "error"})
        assert set(body["error"]) == {"type", "message"}
        said = body["error"]["message"]
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] == "invalid_request_error"
        said = body["error"]["message"]
    assert said
    return str(said)


def headers(kind: str = "application/json") -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS['acme']}", "content-type": kind}


def named(row: Route) -> str:
    return row.path


@pytest.mark.parametrize("row", JSON_ROUTES, ids=named)
def test_each_json_route_says_what_is_wrong(
    site: tuple[Gateway, ScriptedEngine], client: httpx.Client, row: Route
) -> None:
    """400 for what is no JSON; for JSON that is no request 400 as vLLM has it, and 422 on TGI's routes."""
    seen = len(site[1].seen)
    for body, part in UNREADABLE.values():
        answer = client.post(row.path, content=body, headers=headers())
        # A list's size is all that is looked at of what is nested.
        assert part in refused(answer, row.dialect, {400, 413, 422} if not part else {400}), row.path
    unfit = {422} if row.dialect is Dialect.TGI else {400}
    for sent, part in UNFIT.values():
        answer = client.post(row.path, content=json.dumps(sent).encode(), headers=headers())
        said = refused(answer, row.dialect, unfit)
        assert part in said or (row.kind is RouteKind.VERTEX and "'instances' must hold" in said), row.path
    assert len(site[1].seen) == seen


def test_a_route_of_the_file_says_so_too(site: tuple[Gateway, ScriptedEngine], client: httpx.Client) -> None:
    """By the same table."""
    seen = len(site[1].seen)
    for body, part in UNREADABLE.values():
        answer = client.post("/v1/own", content=body, headers=headers())
        assert part in refused(answer, Dialect.OPENAI, {400, 413})
    for sent, part in UNFIT.values():
        answer = client.post("/v1/own", content=json.dumps(sent).encode(), headers=headers())
        assert part in refused(answer, Dialect.OPENAI, {400})
    assert len(site[1].seen) == seen


@pytest.mark.parametrize("row", FORMS, ids=named)
def test_each_form_says_what_is_wrong(
    site: tuple[Gateway, ScriptedEngine], client: httpx.Client, row: Route
) -> None:
    """No form, none that begins with its boundary, a part without a name."""
    seen = len(site[1].seen)
    nameless = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"
    for body in (b"", b'{"model": "tiny-chat"}', b"preamble\r\n--b\r\n", nameless):
        answer = client.post(row.path, content=body, headers=headers("multipart/form-data; boundary=b"))
        refused(answer, row.dialect, {400})
    assert len(site[1].seen) == seen


@pytest.mark.parametrize("row", TAKES, ids=named)
def test_each_says_so_of_a_packed_body_and_a_second_key(
    site: tuple[Gateway, ScriptedEngine], client: httpx.Client, row: Route
) -> None:
    """415 and 400, on the headers alone."""
    seen = len(site[1].seen)
    answer = client.post(row.path, content=b"x", headers={**headers(), "content-encoding": "gzip"})
    refused(answer, row.dialect, {415})
    twice = [*headers().items(), ("x-model", "tiny-chat"), ("x-model", "tiny-chat")]
    answer = client.post(row.path, content=b"{}", headers=twice)
    assert "'x-model' was sent twice" in refused(answer, row.dialect, {400})
    assert len(site[1].seen) == seen
