"""Spill-over and the provider's own word: rate limits are heeded before they hit, refusals lead home."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from gateway import KEYS, Gateway, logs_of_failed, tenants, wait_for
from scripted_engine import Script, ScriptedEngine

pytestmark = pytest.mark.envoy


def chat(model: str, headers: dict[str, str] | None = None, status: int = 200) -> Script:
    """A chat completion, or an error."""
    if status != 200:
        return Script({"error": {"message": "not now"}}, status, headers or {})
    message = {"role": "assistant", "content": model}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    about = {"id": "x", "object": "chat.completion", "created": 0}
    return Script({**about, "model": model, "choices": choices, "usage": usage}, 200, headers or {})


class Site:
    """One place of our own, and a provider that says what the test has it say."""

    def __init__(self, gateway: Gateway, own: ScriptedEngine, paid: ScriptedEngine) -> None:
        self.gateway, self.own, self.paid = gateway, own, paid

    def ask(self, key: str = KEYS["acme"], **more: Any) -> tuple[int, dict[str, str], Any]:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "small", "max_tokens": 50, "messages": messages, **more}
        return self.gateway.call("/v1/chat/completions", body, key=key)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """The own place is taken until the end of the block."""
        before = len(self.own.seen)
        self.own.open.clear()
        taking = threading.Thread(target=self.ask, kwargs={"key": KEYS["globex"]})
        taking.start()
        try:
            wait_for("a full pool", lambda: len(self.own.seen) > before)
            yield
        finally:
            self.own.open.set()
            taking.join()
            wait_for("quiet", self.gateway.quiet)

    def spill(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gateway.status()["spill"]
        return found

    def waits_at_home(self, ask: Any) -> Any:
        """What a request is answered that is held in a full pool: its place is freed then."""
        found: list[Any] = []
        with self.full():
            waiting = threading.Thread(target=lambda: found.append(ask()))
            waiting.start()
            wait_for("a held request", lambda: self.gateway.status()["held"] == 1)
        waiting.join()
        return found[0]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    key_file = tmp_path_factory.mktemp("keys") / "provider"
    key_file.write_text("sk-of-the-operator")
    with ExitStack() as stack:
        own = stack.enter_context(ScriptedEngine(lambda _: chat("small")))
        paid = stack.enter_context(ScriptedEngine(lambda _: chat("gpt")))
        pools: dict[str, dict[str, Any]] = {
            "little": {
                "models": ["small"],
                "addresses": [{"address": own.address, "max_concurrent": 1}],
                "engine": "vllm",
                "spill": {"to": "paid", "models": {"small": "gpt"}, "wait_ms": 100},
            },
            "paid": {
                "models": ["gpt"],
                "addresses": [paid.address],
                "engine": "vllm",
                # With a key a cluster has filters of its own, without one the router's.
                "upstream": {"key": {"file": str(key_file)}} if request.param else {},
            },
        }
        people = tenants(acme={"spill": {}, "quota": {"requests_per_minute": 1_000}})
        classes = [{"name": "standard", "hold_ms": 20_000}]
        gateway = stack.enter_context(Gateway(pools, tenants=people, classes=classes))
        yield from _logged(request, Site(gateway, own, paid))


def _logged(request: pytest.FixtureRequest, site: Site) -> Iterator[Site]:
    logs = logs_of_failed(request, site.gateway)
    next(logs)
    yield site
    next(logs, None)


@pytest.mark.parametrize("site", [True], indirect=True, ids=["keyed"])
def test_what_a_provider_has_left_is_heeded_before_it_hits(site: Site) -> None:
    """One request is left: one goes, the next waits at home. The client reads its tenant's own figures, and
    nothing of what only the gateway may say."""
    site.paid.answer = lambda _: chat(
        "gpt",
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "10m0s",
            "x-ratelimit-remaining-tokens": "90000",
            "x-ratelimit-reset-tokens": "6ms",
            "x-steersman-cache": "hit",
        },
    )
    with site.full():
        status, told, body = site.ask()
        assert (status, body["model"], told["x-steersman-spilled"]) == (200, "gpt", "load")
        assert told["x-ratelimit-limit-requests"] == "1000"
        assert not {"x-steersman-provider", "x-steersman-cache"} & set(told)
        wait_for("its word", lambda: site.spill()["left"]["paid"]["requests"] == 1)
        site.paid.answer = lambda _: chat("gpt")  # says nothing more
        assert site.ask()[2]["model"] == "gpt"
        wait_for("its end", lambda: site.spill()["left"]["paid"]["requests"] == 0)
    seen = len(site.paid.seen)
    _, told, body = site.waits_at_home(site.ask)
    assert (body["model"], "x-steersman-spilled" in told) == ("small", False)
    assert len(site.paid.seen) == seen


@pytest.mark.parametrize("site", [False], indirect=True, ids=["bare"])
def test_a_clients_next_try_is_served_at_home(site: Site) -> None:
    """A refusal says so as OpenAI's clients read it, though the provider says half an hour; nothing more goes
    there."""
    refused: list[openai.APIStatusError] = []
    site.paid.answer = lambda _: chat("gpt", {"retry-after": "1800", "x-should-retry": "false"}, 429)

    def call() -> Any:
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        base = f"{site.gateway.url}/v1"
        with openai.OpenAI(base_url=base, api_key=KEYS["acme"], max_retries=0, timeout=60) as client:
            try:
                client.chat.completions.create(model="small", messages=messages, max_tokens=50)
            except openai.RateLimitError as error:
                refused.append(error)
            wait_for("its end", lambda: not site.spill()["open"]["paid"])
            again = client.with_options(max_retries=3)
            return again.chat.completions.create(model="small", messages=messages, max_tokens=50)

    made = site.waits_at_home(call)
    assert made.choices[0].message.content == "small"
    assert len(site.paid.seen) == 1
    told = refused[0].response.headers
    assert (told["retry-after"], told["x-should-retry"]) == ("1", "true")
    assert told["x-steersman-spilled"] == "load"
