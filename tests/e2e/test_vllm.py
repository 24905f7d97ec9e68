"""A real vLLM behind the gateway: what clients get, what is counted, what its agent hears."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from agents_harness import Processes, telemetry
from anthropic import Anthropic
from gateway import KEYS, Gateway, wait_for
from openai import NotFoundError, OpenAI
from vllm_engine import BLOCK_TOKENS, MODEL, Vllm, command, vllm

#: Its start may take minutes where much else runs.
pytestmark = [pytest.mark.envoy, pytest.mark.engine, pytest.mark.timeout(1200)]
ADAPTERS = ["one", "two"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A running one."""
    if (given := command()) is None:
        pytest.skip("no vllm: tests/e2e/vllm_engine.py says how to get one, or give its path in VLLM")
    with vllm(given, tmp_path_factory.mktemp("v"), *ADAPTERS) as running:
        yield running


def pool(engine: Vllm, **more: Any) -> dict[str, dict[str, Any]]:
    """One pool with one endpoint."""
    named = {"address": engine.address, "max_concurrent": 8}
    return {MODEL: {"models": [MODEL], "engine": "vllm", "addresses": [named], **more}}


def test_what_clients_are_told_is_what_is_counted(engine: Vllm) -> None:
    """Chat, completions, responses and messages, streamed and not, by the official clients."""
    with Gateway(pool(engine)) as gateway:
        openai = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=120)
        anthropic = Anthropic(base_url=gateway.url, api_key=KEYS["acme"], max_retries=0, timeout=120)
        ask: dict[str, Any] = {"model": MODEL, "max_tokens": 8}
        ask["messages"] = [{"role": "user", "content": "Name three colours of the rainbow."}]
        chat = openai.chat.completions.create(**ask)
        *_, streamed = openai.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
        unsaid = list(openai.chat.completions.create(**ask, stream=True))
        several = openai.completions.create(model=MODEL, prompt=["a", "b c"], max_tokens=4, n=2)
        response = openai.responses.create(model=MODEL, input="Ahoy!", max_output_tokens=8)
        *_, end = openai.responses.create(model=MODEL, input="Ahoy!", max_output_tokens=8, stream=True)
        message = anthropic.messages.create(**ask)
        with anthropic.messages.stream(**ask) as stream:
            last = stream.get_final_message()
        assert end.type == "response.completed"
        assert response.usage is not None
        assert end.response.usage is not None
        assert unsaid[-1].usage is None, "who did not ask for usage is told none"
        wait_for("the records", gateway.quiet)
        acme = gateway.tenant("acme")
        made = [each.completion_tokens for each in (chat.usage, streamed.usage, several.usage) if each]
        made += [each.output_tokens for each in (response.usage, end.response.usage)]
        made += [each.usage.output_tokens for each in (message, last)]
        assert acme["ok"] == 8
        # One event may have several tokens: vLLM sends what it has made since the last.
        assert acme["output_tokens"] == sum(made) + 8
        with pytest.raises(NotFoundError):
            openai.embeddings.create(model=MODEL, input="It serves no embeddings, and says so itself.")
        openai.close()
        anthropic.close()


def test_a_stream_that_is_left_is_charged_what_was_made(engine: Vllm) -> None:
    """Within 5 % of the engine's own counter of generated tokens."""
    with Gateway(pool(engine)) as gateway:
        wait_for("a probe's end", lambda: engine.total("vllm:num_requests_running") == 0)
        before = engine.total("vllm:generation_tokens_total")
        for _ in range(3):
            client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=120)
            ask = {"model": MODEL, "max_tokens": 2_000, "ignore_eos": True, "stream": True}
            body = json.dumps({**ask, "messages": [{"role": "user", "content": "Sing!"}]})
            headers = {"authorization": f"Bearer {KEYS['acme']}", "content-type": "application/json"}
            client.request("POST", "/v1/chat/completions", body, headers)
            answer = client.getresponse()
            seen = 0
            while seen < 200:
                seen += answer.readline().startswith(b"data:")
            answer.close()
            client.close()
        wait_for("the records", gateway.quiet)
        wait_for("the engine's end", lambda: engine.total("vllm:num_requests_running") == 0)
        made = engine.total("vllm:generation_tokens_total") - before
        charged = gateway.tenant("acme")["output_tokens"]
        assert gateway.tenant("acme")["client_gone"] == 3
        # It stops a moment after its client has left: these tokens nobody has seen.
        assert 597 <= charged <= made
        assert charged >= 0.95 * made - 3 * 20


def test_its_kv_events_are_heard_and_replayed(engine: Vllm) -> None:
    """A prompt's blocks are in the set, also of an agent that came after them."""
    section = telemetry(["n1"])
    with Processes() as processes, Gateway(pool(engine), telemetry=section) as gateway:
        openai = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=120)
        for replays in (0, 1):
            told: dict[str, Any] = {"address": engine.address, "pool": MODEL, "engine": "vllm"}
            told["kv_events"] = {"endpoint": engine.events, "replay": engine.replay}
            agent = processes.agent(gateway, "n1", MODEL, [], replicas=[told], nvml="off")
            wait_for("the agent", partial(agent.reported, gateway), timeout_s=120)
            ids = [random.Random(replays).randrange(100, 2_000) for _ in range(4 * BLOCK_TOKENS)]
            said = openai.completions.create(model=MODEL, prompt=[*ids, 99], max_tokens=1)
            again = openai.completions.create(model=MODEL, prompt=[*ids, 98], max_tokens=1)
            assert said.usage is not None
            assert again.usage is not None
            assert again.usage.prompt_tokens_details is not None
            assert again.usage.prompt_tokens_details.cached_tokens == 4 * BLOCK_TOKENS
            wait_for("its events", lambda: _heard(gateway, engine)["cached_tokens"] >= 4 * BLOCK_TOKENS)
            heard = _heard(gateway, engine)
            assert (heard["complete"], heard["gaps"], heard["unreadable"]) == (True, 0, 0)
            if replays:
                assert heard["replays"] == 1
                assert heard["cached_tokens"] >= 8 * BLOCK_TOKENS, "what was there before it came"
            agent.child.stop()
        openai.close()


def test_its_adapters_are_loaded_by_calls(engine: Vllm) -> None:
    """Two adapters, and a place for one: each is loaded when it is asked for, and answers."""
    load = {"path": str(engine.folder / "{name}")}
    adapters = {"names": ADAPTERS, "loaded_max": 1, "load_ms": 500, "load": load}
    with Gateway(pool(engine, models=[MODEL, *ADAPTERS], adapters=adapters)) as gateway:
        openai = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=120)
        for name in (*ADAPTERS, ADAPTERS[0], MODEL):
            ask: list[Any] = [{"role": "user", "content": "Ahoy!"}]
            answer = openai.chat.completions.create(model=name, messages=ask, max_tokens=2)
            assert (answer.model, len(answer.choices)) == (name, 1)
        openai.close()


def _heard(gateway: Gateway, engine: Vllm) -> dict[str, Any]:
    found: dict[str, Any] = gateway.endpoint(engine.address)["kv_events"]
    return found
