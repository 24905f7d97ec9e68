"""misrouted.py: near misses of a route, as clients make them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.misrouted import (
    ADDED,
    ANTHROPIC_ENDS,
    BASES,
    INSTEAD,
    OPENAI_BEGINS,
    OPENAI_ENDS,
    PATH_SAID_MAX,
    TGI_ENDS,
    advice,
    dialect_of,
)
from extproc.core.request import Dialect, RouteKind
from extproc.core.routes import ROUTES

OPENAI, TGI, ANTHROPIC = Dialect.OPENAI, Dialect.TGI, Dialect.ANTHROPIC
V1, BARE = "use the base address http://gw:8080/v1", "use the base address http://gw:8080"


@pytest.mark.parametrize(
    ("method", "path", "dialect", "what"),
    [
        ("POST", "/chat/completions", OPENAI, V1),
        ("POST", "/completions", OPENAI, V1),
        ("GET", "/models", OPENAI, V1),
        ("GET", "/models/tiny-chat", OPENAI, V1),
        ("POST", "/embeddings", OPENAI, V1),
        ("POST", "/score", OPENAI, V1),
        ("POST", "/audio/speech", OPENAI, V1),
        ("POST", "/chat/completions/", OPENAI, V1),
        ("POST", "//chat//completions", OPENAI, V1),
        ("POST", "/v1/v1/chat/completions", OPENAI, V1),
        ("GET", "/v1/v1/models", OPENAI, V1),
        ("POST", "/v1/chat/completions/chat/completions", OPENAI, V1),
        ("POST", "/openai/v1/chat/completions", OPENAI, V1),
        ("POST", "/api/v1/completions", OPENAI, V1),
        ("POST", "/v1/chat/completions/", OPENAI, "write /v1/chat/completions"),
        ("POST", "//v1/chat/completions", OPENAI, "write /v1/chat/completions"),
        ("GET", "/v1/models/", OPENAI, "write /v1/models"),
        ("GET", "/v1/chat/completions", OPENAI, "it takes POST"),
        ("OPTIONS", "/v1/chat/completions", OPENAI, "it takes POST"),
        ("POST", "/v1/models", OPENAI, "it takes GET"),
        ("POST", "/v1/generate", TGI, BARE),
        ("POST", "/v1/generate_stream", TGI, BARE),
        ("POST", "/v1/generate/", TGI, BARE),
        ("GET", "/v1/health", TGI, BARE),
        ("POST", "/generate/", TGI, "write /generate"),
        ("HEAD", "/", TGI, "it takes POST or GET"),
        ("POST", "/completion", TGI, "not served here; /v1/completions is"),
        ("POST", "/api/chat", TGI, "not served here; /v1/chat/completions is"),
        ("POST", "/v1/v1/messages", ANTHROPIC, BARE),
        ("POST", "/v1/messages/batches", ANTHROPIC, ""),
        ("GET", "/v1/messages", ANTHROPIC, "it takes POST"),
        ("GET", "/rerank", OPENAI, "it takes POST"),
        ("GET", "/v1/embeddings", OPENAI, "it takes POST"),
        ("POST", "/v1/models/tiny-chat", OPENAI, "it takes GET"),
        ("PUT", "/v1/responses/resp_1", OPENAI, "it takes GET or DELETE"),
        ("POST", "/v1/images/generations", OPENAI, ""),
        ("POST", "/GENERATE", TGI, ""),
        ("HEAD", "/nowhere", TGI, ""),
        ("CONNECT", "", TGI, "write /"),
    ],
)
def test_near_misses(method: str, path: str, dialect: Dialect, what: str) -> None:
    """Each is told what to write instead, in the dialect of the client that makes the mistake."""
    assert dialect_of(path) is dialect
    said = advice(method, path, scheme="http", host="gw:8080")
    assert said == f"no route {method} {path}" + (f": {what}" if what else "")


@pytest.mark.parametrize("path", ["/v1", "/v1/", "//v1"])
def test_the_base_address_alone(path: str) -> None:
    """Whoever calls the base address itself is TGI's client, or a person who looks."""
    assert dialect_of(path) is TGI
    said = advice("POST", path, host="gw:8080")
    assert "add /chat/completions" in said
    assert said.endswith(f"for TGI's clients {BARE}")


def test_every_route_without_or_with_v1_leads_back_to_it() -> None:
    """No route of ours can be missed by its base address without being told of the right one."""
    for path, routes in ROUTES.items():
        for route in routes:
            if route.kind in (RouteKind.COMPAT, RouteKind.HEALTH) and path == "/":
                continue
            if route.kind is RouteKind.SITE:
                continue  # no client's: other gateways ask there
            right = BASES[route.dialect]
            added = path.removeprefix(right)
            assert ADDED[added[1:]] is route.dialect
            for wrong in {"", "/v1", "/v1/v1", "/x"} - {right}:
                if wrong + added in ROUTES:
                    continue
                said = advice(route.method, wrong + added, host="h")
                assert said.endswith(f": use the base address http://h{right}"), said


@given(
    st.lists(st.sampled_from([*ADDED, "v1", "models", "x", "", "openai", "chat", "completions"]), max_size=5),
    st.sampled_from(["", "/", "//"]),
)
def test_expressions_say_the_same(parts: list[str], end: str) -> None:
    """Envoy, which has these alone, answers in the dialect that the service would."""
    path = "/" + "/".join(parts) + end

    def ends(expressions: tuple[str, ...]) -> bool:
        return any(re.search(each, path) for each in expressions)

    openai = ends(OPENAI_ENDS) or bool(re.search(OPENAI_BEGINS, path) and not ends(TGI_ENDS))
    anthropic = ends(ANTHROPIC_ENDS)
    assert anthropic is (dialect_of(path) is ANTHROPIC), path
    assert (openai and not anthropic) is (dialect_of(path) is OPENAI), path


def test_what_is_served_instead_is_a_route() -> None:
    """The table names no route that is none, and no path that is one."""
    assert {route for route in INSTEAD.values() if route} <= ROUTES.keys()
    assert not INSTEAD.keys() & ROUTES.keys()


@pytest.mark.parametrize("host", ["", "a b", "evil\r\nx: y", "h" * 300, "<script>"])
def test_a_host_that_is_none_is_not_said_again(host: str) -> None:
    """A name that cannot be a host's is left out."""
    said = advice("GET", "/models", scheme="ftp", host=host)
    assert said == "no route GET /models: use the base address http://HOST/v1"


@given(st.text(max_size=3), st.text(max_size=5_000), st.integers(0, 40))
def test_any_path_gets_a_short_answer(method: str, path: str, times: int) -> None:
    """Whatever is asked for, the answer is bounded."""
    long = (path + "/") * times
    assert len(advice(method, long)) < PATH_SAID_MAX * 6
    assert isinstance(dialect_of(long), Dialect)
