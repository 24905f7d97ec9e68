"""Real clients through the real Envoy: every route, streamed and not."""

from __future__ import annotations

import gc
import json
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateway import KEYS, Gateway, wait_for
from huggingface_hub import InferenceClient
from openai import AuthenticationError, NotFoundError, OpenAI
from replicas import Replicas
from text_generation import Client
from text_generation.errors import NotFoundError as TgiNotFoundError

pytestmark = pytest.mark.envoy

MESSAGES = [{"role": "user", "content": "Which way to the harbour? [[sim:out=12]]"}]


@pytest.fixture(autouse=True)
def others_sockets() -> Iterator[None]:
    """Libraries leave connections to the collector, which would tell of them in whatever test it runs."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def openai_client(fleet: tuple[Gateway, Replicas]) -> OpenAI:
    return OpenAI(base_url=f"{fleet[0].url}/v1", api_key=KEYS["acme"], max_retries=0)


def test_openai_chat_answers_with_its_tokens(openai_client: OpenAI) -> None:
    """A chat answers whole, with the engine's own counts."""
    answer = openai_client.chat.completions.create(model="tiny-chat", messages=MESSAGES, max_tokens=50)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_openai_chat_streams(openai_client: OpenAI) -> None:
    """A streamed chat comes in as many pieces as it has tokens."""
    stream = openai_client.chat.completions.create(
        model="tiny-code", messages=MESSAGES, max_tokens=50, stream=True
    )
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert len([piece for piece in pieces if piece]) == 12


def test_openai_completion_both_ways(openai_client: OpenAI) -> None:
    """/v1/completions works streamed and not."""
    whole = openai_client.completions.create(model="tiny-chat", prompt="[[sim:out=7]]", max_tokens=20)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 7
    stream = openai_client.completions.create(
        model="tiny-chat", prompt="[[sim:out=7]]", max_tokens=20, stream=True
    )
    assert sum(bool(chunk.choices and chunk.choices[0].text) for chunk in stream) == 7


def test_openai_lists_models(openai_client: OpenAI) -> None:
    """The models of all pools are listed."""
    assert [model.id for model in openai_client.models.list()] == ["tiny-chat", "tiny-code"]


def test_openai_errors_are_its_own_exceptions(fleet: tuple[Gateway, Replicas], openai_client: OpenAI) -> None:
    """A wrong key and a wrong model raise what the client library has for them."""
    with pytest.raises(NotFoundError):
        openai_client.chat.completions.create(model="nope", messages=MESSAGES)
    stranger = OpenAI(base_url=f"{fleet[0].url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(AuthenticationError):
        stranger.chat.completions.create(model="tiny-chat", messages=MESSAGES)


def test_openai_without_v1_is_told_the_base_address(fleet: tuple[Gateway, Replicas]) -> None:
    """Every call of a client whose base address lacks /v1 raises NotFoundError with the address to use."""
    url = fleet[0].url
    client = OpenAI(base_url=url, api_key=KEYS["acme"], max_retries=0)
    calls: list[Callable[[], object]] = [
        lambda: client.chat.completions.create(model="tiny-chat", messages=MESSAGES),
        lambda: client.chat.completions.create(model="tiny-chat", messages=MESSAGES, stream=True),
        lambda: client.completions.create(model="tiny-chat", prompt="Ahoy!"),
        client.models.list,
        lambda: client.models.retrieve("tiny-chat"),
        lambda: client.embeddings.create(model="tiny-chat", input="Ahoy!"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match=f"use the base address {re.escape(url)}/v1") as caught:
            call()
        assert caught.value.code == "not_found"
        assert caught.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/v1/v1", "use the base address {url}/v1"),
        ("/openai/v1", "use the base address {url}/v1"),
        ("/v1/chat/completions", "use the base address {url}/v1"),
    ],
)
def test_openai_with_too_much_of_a_base(fleet: tuple[Gateway, Replicas], base: str, said: str) -> None:
    """A base address with more than /v1 is told the right one too."""
    url = fleet[0].url
    client = OpenAI(base_url=url + base, api_key=KEYS["acme"], max_retries=0)
    with pytest.raises(NotFoundError, match=re.escape(said.format(url=url))):
        client.chat.completions.create(model="tiny-chat", messages=MESSAGES)


def test_tgi_clients_with_v1_are_told_the_base_address(fleet: tuple[Gateway, Replicas]) -> None:
    """TGI's client at /v1 gets TGI's error pair, with the address to use."""
    client = Client(f"{fleet[0].url}/v1", headers={"Authorization": f"Bearer {KEYS['acme']}"})
    with pytest.raises(TgiNotFoundError, match=f"use the base address {re.escape(fleet[0].url)}"):
        client.generate("Ahoy!")


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/v1/generate", 404, "no route POST /v1/generate: use the base address {url}"),
        ("POST", "/generate/", 404, "no route POST /generate/: write /generate"),
        ("GET", "/v1/models/", 404, "no route GET /v1/models/: write /v1/models"),
        ("GET", "/models", 404, "no route GET /models: use the base address {url}/v1"),
        ("GET", "/v1/chat/completions", 405, "no route GET /v1/chat/completions: it takes POST"),
        ("POST", "//v1//chat/completions", 200, None),
        ("GET", "/v1//models", 200, None),
    ],
)
def test_near_misses(
    fleet: tuple[Gateway, Replicas], method: str, path: str, status: int, said: str | None
) -> None:
    """A path that is almost a route is told which one; doubled slashes are Envoy's to merge."""
    gateway, _ = fleet
    body = {"model": "tiny-chat", "messages": MESSAGES} if method == "POST" else None
    came, _, text = gateway.call(path, body, method=method)
    assert came == status, text
    if said is not None:
        error = text["error"]
        message = error["message"] if isinstance(error, dict) else error
        assert message == said.format(url=gateway.url)


def test_huggingface_text_generation_both_ways(fleet: tuple[Gateway, Replicas]) -> None:
    """InferenceClient speaks TGI's native route at /."""
    client = InferenceClient(base_url=fleet[0].url, token=KEYS["globex"])
    whole = client.text_generation("[[sim:out=9]]", max_new_tokens=30, details=True)
    assert whole.details is not None
    assert whole.details.generated_tokens == 9
    stream = client.text_generation("[[sim:out=9]]", max_new_tokens=30, stream=True, details=True)
    assert len(list(stream)) == 9


def test_huggingface_chat_both_ways(fleet: tuple[Gateway, Replicas]) -> None:
    """InferenceClient speaks the chat route too."""
    client = InferenceClient(base_url=fleet[0].url, token=KEYS["globex"])
    whole = client.chat_completion(MESSAGES, model="tiny-chat", max_tokens=30)
    assert whole.usage.completion_tokens == 12
    stream = client.chat_completion(MESSAGES, model="tiny-chat", max_tokens=30, stream=True)
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in stream) == 12


def test_text_generation_both_ways(fleet: tuple[Gateway, Replicas]) -> None:
    """TGI's own Python client works streamed and not."""
    client = Client(fleet[0].url, headers={"Authorization": f"Bearer {KEYS['acme']}"})
    assert client.generate("[[sim:out=5]]", max_new_tokens=20).details.generated_tokens == 5
    assert len(list(client.generate_stream("[[sim:out=5]]", max_new_tokens=20))) == 5


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/tokenize", "/info"])
def test_native_routes_answer(fleet: tuple[Gateway, Replicas], path: str) -> None:
    """TGI's native routes reach a replica of the model that the header names."""
    gateway, _ = fleet
    method = "GET" if path == "/info" else "POST"
    body = None if path == "/info" else {"inputs": "[[sim:out=3]]", "parameters": {"max_new_tokens": 9}}
    status, headers, _ = gateway.call(path, body, method=method, headers={"x-model": "tiny-code"})
    assert status == 200
    assert headers["x-steersman-pool"] == "code"


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": MESSAGES}),
        ("/v1/completions", {"model": "tiny-chat", "prompt": "[[sim:out=12]]", "stream": True}),
        ("/generate", {"inputs": "[[sim:out=12]]"}),
    ],
)
def test_what_curl_declares_by_default_is_served(
    fleet: tuple[Gateway, Replicas], path: str, body: dict[str, Any]
) -> None:
    """`curl -d` says it sends a form, which TGI answers 415: what was read as JSON goes on as JSON."""
    gateway, replicas = fleet
    direct = urllib.request.Request(f"http://{replicas.addresses[0]}{path}", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError, match="415") as refused:
        urllib.request.urlopen(direct, timeout=30)
    refused.value.close()
    assert gateway.call(path, body, headers={"content-type": FORM})[0] == 200


def test_a_browsers_page_that_declares_a_form_is_told_what_to_declare(
    fleet: tuple[Gateway, Replicas],
) -> None:
    """A page may send a form's type to anywhere unasked: the engine's own 415 stands."""
    headers = {"content-type": FORM, "origin": "https://elsewhere.example"}
    body = {"model": "tiny-chat", "messages": MESSAGES}
    status, _, answer = fleet[0].call("/v1/chat/completions", body, headers=headers)
    assert status == 415
    assert b"Content-Type: application/json" in answer


def test_tokens_and_ttft_of_every_kind_are_counted(fleet: tuple[Gateway, Replicas]) -> None:
    """What the tenants used is known from the access log alone, streamed or not, on each dialect."""
    gateway, _ = fleet
    wait_for("quiet", gateway.quiet)
    sent = [
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": MESSAGES, "max_tokens": 50}),
        (
            "/v1/chat/completions",
            {
                "model": "tiny-chat",
                "messages": MESSAGES,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        ("/v1/completions", {"model": "tiny-chat", "prompt": "[[sim:out=12]]", "stream": True}),
        ("/generate", {"inputs": "[[sim:out=12]]", "parameters": {"max_new_tokens": 50}}),
        ("/generate_stream", {"inputs": "[[sim:out=12]]", "parameters": {"max_new_tokens": 50}}),
        ("/", {"inputs": "[[sim:out=12]]", "parameters": {"max_new_tokens": 50}, "stream": True}),
    ]
    for path, body in sent:
        before = gateway.tenant("acme")
        assert gateway.call(path, body)[0] == 200
        wait_for(f"the record of {path}", gateway.quiet)
        after = gateway.tenant("acme")
        assert after["output_tokens"] - before["output_tokens"] == 12, (path, body)
        assert after["ok"] - before["ok"] == 1
    assert gateway.status()["tenants"]["acme"]["ttft_p50_ms"] > 0
