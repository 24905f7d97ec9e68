"""Routes of the file that stand for several paths, through the real Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gateway import Gateway, wait_for
from scripted_engine import Script, ScriptedEngine

pytestmark = pytest.mark.envoy

ROUTES: list[dict[str, Any]] = [
    {"path": "/v1/things/*", "work": "none", "model": {"fixed": "b"}},
    {"path": "/v1/things/{id}", "work": "embedding", "input": ["text"]},
    {"path": "/v1/things/whole", "work": "none", "model": {"fixed": "b"}},
    {"path": "/v1/*", "method": "GET", "body": "none", "work": "none", "model": {"fixed": "b"}},
]


@pytest.fixture(scope="module", params=["static", "ads"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, ScriptedEngine, ScriptedEngine]]:
    with ExitStack() as stack:
        engines = [
            stack.enter_context(ScriptedEngine(lambda _: Script({"usage": {"prompt_tokens": 9}})))
            for _ in "ab"
        ]
        pools = {
            name: {"models": [name], "engine": "vllm", "addresses": [engine.address]}
            for name, engine in zip("ab", engines, strict=True)
        }
        gateway = stack.enter_context(Gateway(pools, mode=request.param, routes=ROUTES))
        yield gateway, engines[0], engines[1]


def test_each_goes_by_its_own_route(site: tuple[Gateway, ScriptedEngine, ScriptedEngine]) -> None:
    """To the replica with its path and query as they came, charged as its route says."""
    gateway, first, second = site
    for path, engine in (
        ("/v1/things/t-1?x=%20", first),
        ("/v1/things/whole", second),
        ("/v1/things/t-1/parts/2", second),
    ):
        assert gateway.call(path, {"model": "a", "text": "hello"})[0] == 200
        assert engine.seen[-1].path == path
    assert gateway.call("/v1/things/t-2", {"model": "a"})[0] == 400  # its input is not there
    wait_for("the records", gateway.quiet)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/load_lora_adapter", 404),
        ("/v1/other", 405),  # GET is a route of the file's
        ("/v1/things/sleep", 404),
        ("/v1/things/%2e%2e/sleep", 404),
        ("/v1/things/a%2fb/c", 400),  # Envoy's own: nobody could say which path it is
        ("/v1/things/", 404),
        ("/other/x", 404),
    ],
)
def test_what_stays_closed(
    site: tuple[Gateway, ScriptedEngine, ScriptedEngine], path: str, status: int
) -> None:
    """What manages an engine, what is written otherwise than a plain path, and what no route names."""
    gateway, first, second = site
    seen = len(first.seen) + len(second.seen)
    assert gateway.call(path, {"model": "a", "text": "hello"})[0] == status
    assert len(first.seen) + len(second.seen) == seen
