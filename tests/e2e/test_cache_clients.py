"""The response cache through the real Envoy, with real clients: a hit is what the miss was."""

from __future__ import annotations

import gc
import http.client
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cache_gateway import MESSAGES, caching, kept, looked, served
from gateway import KEYS, Gateway, wait_for
from huggingface_hub import InferenceClient
from openai import OpenAI
from text_generation import Client

pytestmark = pytest.mark.envoy


@pytest.fixture(autouse=True)
def others_sockets() -> Iterator[None]:
    """Libraries leave connections to the collector, which would tell of them in whatever test it runs."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with caching() as (gateway, _):
        yield gateway


def raw(gateway: Gateway, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    """One request's status, headers and bytes as they came."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "tiny-chat", "messages": MESSAGES, "temperature": 0}),
    ("/v1/chat/completions", {"model": "tiny-chat", "messages": MESSAGES, "seed": 7, "stream": True}),
    (
        "/v1/chat/completions",
        {
            "model": "tiny-chat",
            "messages": MESSAGES,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    ("/v1/completions", {"model": "tiny-chat", "prompt": "[[sim:out=7]]", "temperature": 0.0}),
    ("/v1/completions", {"model": "tiny-chat", "prompt": "[[sim:out=7]]", "temperature": 0, "stream": True}),
    ("/generate", {"inputs": "[[sim:out=9]]", "parameters": {"details": True}}),
    ("/generate", {"inputs": "[[sim:out=9]]"}),
    ("/generate_stream", {"inputs": "[[sim:out=9]]", "parameters": {"details": True}}),
    ("/", {"inputs": "[[sim:out=9]]", "parameters": {"do_sample": False}}),
    ("/", {"inputs": "[[sim:out=9]]", "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_hit_is_byte_for_byte_what_the_miss_was(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    """On every cached route, streamed or not, with the same type, and no replica hears of it."""
    before = looked(gateway, "hit")
    wait_for("quiet", gateway.quiet)
    held = gateway.status()["cache"]["answers"]
    status, headers, first = raw(gateway, path, body)
    assert status == 200, first
    assert "x-steersman-cache" not in headers
    kept(gateway, held + 1)
    sent = served(gateway)
    # Another spelling of the same request.
    status, again, second = raw(gateway, path, dict(reversed(body.items())))
    assert (status, second) == (200, first)
    assert again["x-steersman-cache"].startswith("hit; age=")
    assert again["content-type"].split(";")[0] == headers["content-type"].split(";")[0]
    assert served(gateway) == sent
    assert looked(gateway, "hit") == before + 1


def _openai(gateway: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0)


def _chat(gateway: Gateway) -> Any:
    answer = _openai(gateway).chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "openai [[sim:out=5]]"}], temperature=0
    )
    return answer.model_dump()


def _chat_stream(gateway: Gateway) -> Any:
    stream = _openai(gateway).chat.completions.create(
        model="tiny-chat",
        messages=[{"role": "user", "content": "openai [[sim:out=6]]"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    return [chunk.model_dump() for chunk in stream]


def _hub(gateway: Gateway) -> Any:
    client = InferenceClient(base_url=gateway.url, token=KEYS["acme"])
    whole = client.text_generation("hub [[sim:out=8]]", max_new_tokens=30, details=True)
    stream = client.text_generation("hub [[sim:out=8]]", max_new_tokens=30, stream=True, details=True)
    return whole, list(stream)


def _hub_chat(gateway: Gateway) -> Any:
    client = InferenceClient(base_url=gateway.url, token=KEYS["acme"])
    stream = client.chat_completion(
        [{"role": "user", "content": "hub [[sim:out=4]]"}],
        model="tiny-chat",
        max_tokens=30,
        seed=3,
        stream=True,
    )
    return list(stream)


def _tgi(gateway: Gateway) -> Any:
    client = Client(gateway.url, headers={"Authorization": f"Bearer {KEYS['acme']}"})
    whole = client.generate("tgi [[sim:out=5]]", max_new_tokens=20)
    stream = list(client.generate_stream("tgi [[sim:out=5]]", max_new_tokens=20))
    return whole.dict(), [each.dict() for each in stream]


@pytest.mark.parametrize(
    ("ask", "answers"), [(_chat, 1), (_chat_stream, 1), (_hub, 2), (_hub_chat, 1), (_tgi, 2)]
)
def test_clients_see_no_difference(gateway: Gateway, ask: Callable[[Gateway], Any], answers: int) -> None:
    """openai, huggingface_hub and text-generation get equal objects and equal events, usage included."""
    wait_for("quiet", gateway.quiet)
    held, hits = gateway.status()["cache"]["answers"], looked(gateway, "hit")
    first = ask(gateway)
    kept(gateway, held + answers)
    assert looked(gateway, "hit") == hits
    assert ask(gateway) == first
    assert looked(gateway, "hit") == hits + answers
