"""Spill-over and the provider's own word: rate limits are heeded before they hit, refusals lead home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from gateway import KEYS, Gateway, tenants, wait_for
from scripted_engine import Script, ScriptedEngine
from spill_site import SpillSite

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


@pytest.fixture
def site(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[SpillSite[ScriptedEngine]]:
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
        # With retries what is refused comes home by itself (test_spill_returns.py).
        tries = {} if request.param else {"retries": 0}
        gateway = stack.enter_context(Gateway(pools, gateway=tries, tenants=people, classes=classes))
        yield SpillSite(gateway, own, paid)


@pytest.mark.parametrize("site", [True], indirect=True, ids=["keyed"])
def test_what_a_provider_has_left_is_heeded_before_it_hits(site: SpillSite[ScriptedEngine]) -> None:
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
def test_a_clients_next_try_is_served_at_home(site: SpillSite[ScriptedEngine]) -> None:
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
