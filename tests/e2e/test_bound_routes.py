"""What holds for chats holds on the routes beside them: regions, web pages, HEAD, an engine's own headers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gateway import KEYS, Gateway
from scripted_engine import Script, ScriptedEngine, SeenRequest

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

PAGE = "https://pages.example"
TEXT = [{"role": "user", "content": "secret of acme"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 10, "messages": TEXT},
    "/v1/messages/count_tokens": {"messages": TEXT},
    "/v1/responses": {"input": "secret of acme"},
    "/v1/embeddings": {"input": ["secret of acme"]},
    "/v1/rerank": {"query": "secret", "documents": ["of acme"]},
    "/v1/score": {"text_1": "secret", "text_2": "of acme"},
    "/v1/audio/speech": {"input": "secret of acme", "voice": "x"},
    "/tokenize": {"prompt": "secret of acme"},
}


def well(_: SeenRequest) -> Script:
    usage = {"prompt_tokens": 3, "input_tokens": 3, "output_tokens": 4, "total_tokens": 3}
    return Script({"object": "list", "data": [], "usage": usage}, headers={"x-steersman-pool": "another"})


def full(_: SeenRequest) -> Script:
    return Script({"error": {"message": "overloaded", "code": 503}}, status=503)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Gateway, ScriptedEngine, ScriptedEngine]]:
    """A replica in the EU that refuses everything, and one in the US that would serve it; many retries."""
    with ExitStack() as stack:
        eu, us = (stack.enter_context(ScriptedEngine(answer)) for answer in (full, well))
        listed = [{"address": eu.address, "region": "eu"}, {"address": us.address, "region": "us"}]
        pools: dict[str, dict[str, Any]] = {"m": {"models": ["m"], "engine": "vllm", "addresses": listed}}
        tenants = [
            {"name": name, "keys": [{"sha256": hash_key(KEYS[name])}], **more}
            for name, more in (("acme", {"regions": ["eu"]}), ("globex", {}))
        ]
        edge = {"retries": 5, "cors": {"origins": [PAGE]}}
        yield stack.enter_context(Gateway(pools, tenants=tenants, gateway=edge)), eu, us


def call(
    gateway: Gateway, method: str, path: str, key: str | None = None, **headers: str
) -> http.client.HTTPResponse:
    """One request, read whole."""
    body = json.dumps({"model": "m", **ROUTES[path]}) if method == "POST" else None
    told = {"content-type": "application/json", **headers}
    if key is not None:
        told["authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request(method, path, body, told)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_leaves_its_tenants_region(
    site: tuple[Gateway, ScriptedEngine, ScriptedEngine], path: str
) -> None:
    """Whatever the only replica there answers: the other one never sees the prompt."""
    gateway, _, us = site
    us.seen.clear()
    statuses = {call(gateway, "POST", path, KEYS["acme"]).status for _ in range(3)}
    assert statuses <= {429, 503}
    assert not [each for each in us.seen if b"acme" in each.body]


@pytest.mark.parametrize("path", ROUTES)
def test_an_engine_says_nothing_in_our_name_there(
    site: tuple[Gateway, ScriptedEngine, ScriptedEngine], path: str
) -> None:
    """Who may go anywhere is served by the other replica, whose own x-steersman-pool is dropped."""
    gateway, _, us = site
    answer = call(gateway, "POST", path, KEYS["globex"])
    assert answer.status == 200
    assert answer.headers.get_all("x-steersman-pool") == ["m"]
    assert answer.headers["x-steersman-endpoint"] == us.address


@pytest.mark.parametrize("path", ROUTES)
def test_a_preflight_is_answered_before_anybody_is_asked_for_a_key(
    site: tuple[Gateway, ScriptedEngine, ScriptedEngine], path: str
) -> None:
    """From the pages that may ask, and from no other."""
    gateway, *_ = site
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = call(gateway, "OPTIONS", path, origin=PAGE, **wanted)
    assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
    other = call(gateway, "OPTIONS", path, origin="https://other.example", **wanted)
    assert (other.status, other.headers["access-control-allow-origin"]) == (401, None)


@pytest.mark.parametrize("path", ROUTES)
def test_head_of_what_is_posted_is_405(
    site: tuple[Gateway, ScriptedEngine, ScriptedEngine], path: str
) -> None:
    """It names what is allowed, and no engine hears of it."""
    gateway, _, us = site
    us.seen.clear()
    answer = call(gateway, "HEAD", path, KEYS["globex"])
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert not us.seen
