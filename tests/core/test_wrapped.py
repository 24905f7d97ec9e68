"""SageMaker's and Vertex AI's routes: bodies that wrap others'."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extproc.core.outcome import Reject
from extproc.core.reading import parse
from extproc.core.request import Request, RouteKind
from extproc.core.routes import EXTRA_ROUTES, ROUTES, find_route

CHAT = {"messages": [{"content": "hello"}], "max_tokens": 7}
GENERATE = {"inputs": "hello", "parameters": {"max_new_tokens": 5, "best_of": 2}}


def read(path: str, body: Any) -> Request | Reject:
    return parse(EXTRA_ROUTES[path][0], json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "kind", "limit"),
    [
        (GENERATE, RouteKind.COMPAT, 5),
        (CHAT, RouteKind.CHAT, 7),
        ({"prompt": "hello", "max_tokens": 3}, RouteKind.COMPLETION, 3),
        ({"inputs": None, **CHAT}, RouteKind.CHAT, 7),
        ({**GENERATE, **CHAT}, RouteKind.COMPAT, 5),
    ],
)
def test_an_invocation_is_read_as_what_it_holds(body: dict[str, Any], kind: RouteKind, limit: int) -> None:
    """In TGI's own order; its stream flag counts."""
    request = read("/invocations", {**body, "stream": True})
    assert isinstance(request, Request)
    assert (request.kind, request.max_new_tokens, request.stream) == (kind, limit, True)


def test_vertexs_instances_count_together() -> None:
    """Their sequences and bytes add up, the longest answer bounds each, and nothing is streamed."""
    request = read("/vertex", {"instances": [GENERATE, CHAT, {**CHAT, "stream": True}]})
    assert isinstance(request, Request)
    assert (request.sequences, request.max_new_tokens, request.stream) == (4, 7, False)
    assert request.prompt_bytes == 3 * len("hello")
    unbounded = read("/vertex", {"instances": [GENERATE, {"inputs": "hello"}]})
    assert isinstance(unbounded, Request)
    assert unbounded.max_new_tokens is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": [GENERATE, {}]},
        {"instances": [GENERATE] * 5_000},
        {"instances": [1]},
        {"instances": {}},
        [],
    ],
)
def test_what_vertex_cannot_read_is_refused(body: Any) -> None:
    """No instances, too many, or one that is no request."""
    answer = read("/vertex", body)
    assert isinstance(answer, Reject)
    assert answer.status == 422


def test_further_routes_are_there_when_named() -> None:
    """And none of them stands among the usual ones."""
    assert not set(ROUTES) & set(EXTRA_ROUTES)
    for path, (route,) in EXTRA_ROUTES.items():
        assert find_route(route.method, path) is None
        assert find_route(route.method, f"{path}?x=1", {path: (route,)}) == route
        assert find_route("PUT", path, {path: (route,)}) is None


def test_head_is_get() -> None:
    """What answers one answers the other; nothing else does."""
    assert find_route("HEAD", "/v1/models") == find_route("GET", "/v1/models") is not None
    assert find_route("HEAD", "/") == find_route("GET", "/") is not None
    assert find_route("HEAD", "/generate") is None
