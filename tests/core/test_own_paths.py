"""Paths of the file that stand for several."""

from __future__ import annotations

import pytest

from extproc.config.load import loads
from extproc.config.own_routes import own_routes
from extproc.core.misrouted import methods_of
from extproc.core.own_paths import MANAGES, matches
from extproc.core.routes import by_path, find_route

BASE = "gateway: {auth: none}\npools: [{name: p, models: [m], endpoints: [{address: 127.0.0.1:80}]}]\n"


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/v1/things/{id}", "/v1/things/a.b-c_d~1", True),
        ("/v1/things/{id}", "/v1/things", False),
        ("/v1/things/{id}", "/v1/things/", False),
        ("/v1/things/{id}", "/v1/things/a/b", False),
        ("/v1/things/{id}/parts", "/v1/things/a/parts", True),
        ("/v1/things/{id}/parts", "/v1/things/a/others", False),
        ("/v1/*", "/v1/a", True),
        ("/v1/*", "/v1/a/b/c/d/e/f/g", True),
        ("/v1/*", "/v1/a/b/c/d/e/f/g/h", False),
        ("/v1/*", "/v1", False),
        ("/v1/*", "/v1/", False),
        ("/v1/*", "/v1/a//b", False),
        ("/v1/*", "/v1/a/", False),
        ("/v1/*", "/v1/..", False),
        ("/v1/*", "/v1/a/../sleep", False),
        ("/v1/*", "/v1/%2e%2e", False),
        ("/v1/*", "/v1/a%2fb", False),
        ("/v1/*", "/v1/a;b", False),
        ("/v1/*", "/v2/a", False),
        ("/v1/*", "v1/a", False),
        *(("/v1/*", f"/v1/{word}", False) for word in MANAGES),
        ("/v1/*", "/v1/a/load_lora_adapter", False),
        ("/v1/*", "/v1/slots/1", False),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, fits: bool) -> None:
    """Part by part; nothing that is written otherwise than plainly, and nothing that manages an engine."""
    assert matches(pattern, path) is fits


def test_which_comes_first() -> None:
    """The gateway's own, a whole path, what is written out from the left, and `*` last, in any order; the one
    that counts says the methods."""
    paths = ["/v1/*", "/v1/things/*", "/v1/{kind}/x", "/v1/things/{id}", "/v1/things/x"]
    lines = [f"{{path: '{path}', work: none}}" for path in paths]
    rows = own_routes(loads(f"{BASE}routes: [{', '.join(lines)}]").routes)
    for ordered in (rows, rows[::-1]):
        extra = by_path(ordered)

        def found(path: str, method: str = "POST", extra: object = extra) -> str:
            route = find_route(method, path, extra)  # type: ignore[arg-type]
            return "" if route is None else route.path

        assert found("/v1/things/x?y=1") == "/v1/things/x"
        assert found("/v1/things/y") == "/v1/things/{id}"
        assert found("/v1/things/y/z") == "/v1/things/*"
        assert found("/v1/others/x") == "/v1/{kind}/x"
        assert found("/v1/others/y") == "/v1/*"
        assert found("/v1/chat/completions") == "/v1/chat/completions"
        assert found("/v1/models/m") == ""
        assert found("/v1/chat/completions", "DELETE") == ""
        assert found("/v1/things/x", "GET") == ""
        assert found("/other") == ""
        assert methods_of("/v1/things/y", extra) == ("POST",)
