"""Routes of the file's own, through the real Envoy: read, placed, charged, refused as any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2 as httpx
import pytest
from gateway import KEYS, Gateway, tenants, wait_for
from scripted_engine import Script, ScriptedEngine, SeenRequest

pytestmark = pytest.mark.envoy

#: What the double says of every answer, and where the file says that it stands.
META = {"meta": {"in": 17, "out": 5}}
USAGE = {"input": "meta.in", "output": "meta.out"}
ROUTES: list[dict[str, Any]] = [
    {"path": "/v1/classify", "work": "embedding", "input": ["texts"], "usage": {"input": "meta.in"}},
    {
        "path": "/custom/write",
        "work": "generation",
        "model": {"field": "options.model"},
        "input": ["text"],
        "output_limit": "options.most",
        "streams": "asked",
        "stream_field": "options.live",
        "dialect": "tgi",
        "usage": USAGE,
    },
    {"path": "/claude/write", "work": "generation", "streams": "always", "dialect": "anthropic"},
    {"path": "/v1/tool", "work": "none", "dialect": "tgi", "model": {"header": "x-tool-model"}},
    {"path": "/v1/state", "method": "GET", "body": "none", "work": "none", "model": {"fixed": "other"}},
    {"path": "/v1/ocr", "body": "form", "work": "generation", "model": {"form": "model"}, "usage": USAGE},
    {"path": "/v1/plain", "work": "embedding"},
]


def scripted(request: SeenRequest) -> Script:
    """A stream where one is asked for; usage in the file's places, and of chats in OpenAI's."""
    if request.path == "/v1/chat/completions":
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        # As engines repeat what clients send: nobody is charged by it.
        return Script({"choices": [], "usage": usage, "meta": request.json.get("meta", {})})
    if b'"live": true' in request.body or request.path == "/claude/write":
        events: list[tuple[str, Any]] = [("", {"choices": [{"text": f"w{i}"}]}) for i in range(5)]
        return Script(events=[*events, ("", META), ("", "[DONE]")])
    return Script({"ok": True, **META})


class Site:
    """A gateway before two models, one of them kept from globex."""

    def __init__(self, gateway: Gateway, engine: ScriptedEngine, other: ScriptedEngine) -> None:
        self.gateway, self.engine, self.other = gateway, engine, other

    def charged(self, tenant: str = "acme") -> tuple[int, int, int]:
        """Requests that ended well, prompt and output tokens of a tenant so far."""
        wait_for("the records", self.gateway.quiet)
        found = self.gateway.tenant(tenant)
        return found["ok"], found["prompt_tokens"], found["output_tokens"]

    def grown(self, ask: Any) -> tuple[Any, tuple[int, ...]]:
        """What a call answers, and what acme is charged for it."""
        before = self.charged()
        answer = ask()
        wait_for("its record", lambda: self.charged()[0] > before[0])
        return answer, tuple(now - then for now, then in zip(self.charged(), before, strict=True))


@pytest.fixture(scope="module", params=["static", "ads"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        engine = stack.enter_context(ScriptedEngine(scripted))
        other = stack.enter_context(ScriptedEngine(scripted))
        pools = {
            "chat": {"models": ["tiny-chat"], "engine": "vllm", "addresses": [engine.address]},
            "other": {"models": ["other"], "engine": "vllm", "addresses": [other.address]},
        }
        people = tenants(acme={"quota": {"requests_per_minute": 10_000}}, globex={"models": ["tiny-chat"]})
        gateway = Gateway(pools, mode=request.param, routes=ROUTES, tenants=people)
        yield Site(stack.enter_context(gateway), engine, other)


def test_an_embedding_is_charged_where_the_file_says(site: Site) -> None:
    """The path, the body and the answer stay as they are; the tenant's rate limits are told."""
    body = {"model": "tiny-chat", "texts": ["up", "down"], "top_k": 3}
    (status, told, answer), charged = site.grown(lambda: site.gateway.call("/v1/classify?debug=1", body))
    assert (status, answer) == (200, {"ok": True, **META})
    assert charged == (1, 17, 0)
    assert told["x-ratelimit-limit-requests"] == "10000"
    seen = site.engine.seen[-1]
    assert (seen.method, seen.path, seen.json) == ("POST", "/v1/classify?debug=1", body)


@pytest.mark.parametrize("live", [False, True])
def test_a_generation_whole_and_streamed(site: Site, live: bool) -> None:
    """Its model, limit and stream are found in the fields that the file names, usage in an event's too."""
    body = {"text": "Ahoy", "options": {"model": "other", "most": 50, "live": live}}
    (status, told, answer), charged = site.grown(lambda: site.gateway.call("/custom/write", body))
    assert (status, charged) == (200, (1, 17, 5))
    assert told["x-steersman-pool"] == "other"
    assert (b"[DONE]" in answer) if live else (answer == {"ok": True, **META})
    assert site.other.seen[-1].json == body


def test_a_model_by_header_form_and_one_for_all(site: Site) -> None:
    """Each finds its pool; a header and a form go on as they came, and what is no work is charged none."""
    gateway = site.gateway
    call = lambda: gateway.call("/v1/tool", {"x": 1}, headers={"x-tool-model": "other"})  # noqa: E731
    (status, told, _), charged = site.grown(call)
    assert (status, told["x-steersman-pool"], charged) == (200, "other", (1, 0, 0))
    assert site.other.seen[-1].headers["x-tool-model"] == "other"
    (status, told, _), charged = site.grown(lambda: gateway.call("/v1/state", method="GET"))
    assert (status, told["x-steersman-pool"], charged) == (200, "other", (1, 0, 0))
    files = {"file": ("a.png", b"\0" * 300_000, "image/png")}
    key = {"authorization": f"Bearer {KEYS['acme']}"}
    answer, charged = site.grown(
        lambda: httpx.post(
            f"{gateway.url}/v1/ocr", data={"model": "other"}, files=files, headers=key, timeout=30
        )
    )
    assert (answer.status_code, answer.headers["x-steersman-pool"]) == (200, "other")
    assert charged == (1, 17, 5)
    assert len(site.other.seen[-1].body) > 300_000


def test_what_a_tenant_may_not_use_is_not_there(site: Site) -> None:
    """A model of others is 404 on every such route, in the route's own dialect; a stranger gets 401."""
    gateway, key = site.gateway, KEYS["globex"]
    status, _, body = gateway.call("/custom/write", {"text": "x", "options": {"model": "other"}}, key=key)
    assert (status, set(body)) == (404, {"error", "error_type"})
    status, _, body = gateway.call("/v1/state", method="GET", key=key)
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, _, body = gateway.call("/claude/write", {"model": "other"}, key=key)
    assert (status, body["error"]["type"]) == (404, "not_found_error")
    for path, dialect in (("/custom/write", str), ("/v1/classify", dict)):
        status, _, body = gateway.call(path, {"model": "tiny-chat"}, key="sk-nobody")
        assert (status, type(body["error"])) == (401, dialect)


def test_malformed_bodies_are_400_or_422_in_its_dialect(site: Site) -> None:
    """As on the gateway's own routes: no JSON, no object, no input, a name that is none, a wrong method."""
    gateway = site.gateway
    for body, said in (
        (b"{", "not valid JSON"),
        (b"", "the body is empty"),
        ([1], "does not fit"),
        ({"model": "tiny-chat"}, "'texts' is missing"),
        ({"model": 7, "texts": "x"}, "'model' is no text"),
    ):
        status, _, answer = gateway.call("/v1/classify", body)
        assert status == 400, answer
        assert said in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"
    status, _, answer = gateway.call("/custom/write", {"options": {}})
    assert (status, answer["error_type"]) == (422, "validation")
    status, _, answer = gateway.call("/v1/ocr", {"model": "other"})
    assert "multipart/form-data" in answer["error"]["message"]
    status, _, answer = gateway.call("/custom/write", method="GET")
    assert (status, answer["error"]) == (405, "no route GET /custom/write: it takes POST")


def test_what_envoy_says_itself_is_in_its_dialect(site: Site) -> None:
    """A body above the bound: also where the path looks like another's."""
    key = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
    said = {}
    for path in ("/v1/tool", "/claude/write", "/v1/classify"):
        large = b"x" * (4 * 1024 * 1024 + 1)
        answer = httpx.post(f"{site.gateway.url}{path}", content=large, headers=key, timeout=30)
        assert answer.status_code == 413
        said[path] = answer.json()
    assert set(said["/v1/tool"]) == {"error", "error_type"}
    assert said["/claude/write"]["error"]["type"] == "request_too_large"
    assert said["/v1/classify"]["error"]["code"] == "body_too_large"


def test_no_other_route_is_charged_by_the_files_places(site: Site) -> None:
    """What a chat's answer repeats in such a place, as its client sent it, counts for nothing."""
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "x"}], "meta": {"in": 0, "out": 0}}
    (status, _, answer), charged = site.grown(lambda: site.gateway.call("/v1/chat/completions", body))
    assert (status, answer["meta"]) == (200, {"in": 0, "out": 0})
    assert charged == (1, 3, 2)


def test_usage_of_openai_counts_unasked(site: Site) -> None:
    """Without places of its own a route is charged by usage.prompt_tokens; without any by its input."""
    site.engine.answer = lambda _: Script({"usage": {"prompt_tokens": 29}})
    try:
        _, charged = site.grown(lambda: site.gateway.call("/v1/plain", {"model": "tiny-chat", "x": "y" * 99}))
    finally:
        site.engine.answer = scripted
    assert charged == (1, 29, 0)
