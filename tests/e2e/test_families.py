"""Families through the real Envoy: simple prompts to the small model, complex ones to the large."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gateway import KEYS, Gateway, wait_for
from one_model import Engine

from extproc.core.tenant import hash_key

pytestmark = pytest.mark.envoy

SIMPLE = "hello, what is the capital of France?"
COMPLEX = (
    "Prove step by step that the algorithm is optimal, derive its complexity, compare it with two "
    "alternatives and justify every assumption; then design and implement it in Rust, with "
    "tests for each edge case."
)
EXPLAIN = {"x-steersman-explain": "reason"}


TENANTS = [
    {"name": "acme", "keys": [{"sha256": hash_key(KEYS["acme"])}], "explain": True},
    {"name": "globex", "keys": [{"sha256": hash_key(KEYS["globex"])}], "models": ["small"]},
    {"name": "strict", "keys": [{"sha256": hash_key("sk-strict")}], "quality_floor": "large"},
]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Gateway, Engine, Engine]]:
    with ExitStack() as stack:
        small, large = stack.enter_context(Engine("small")), stack.enter_context(Engine("large"))
        pools: dict[str, dict[str, Any]] = {
            "little": {"models": ["small"], "addresses": [small.address], "engine": "vllm"},
            "big": {
                "models": ["large"],
                "addresses": [{"address": large.address, "max_concurrent": 1}],
                "engine": "vllm",
            },
        }
        gateway = Gateway(
            pools,
            gateway={"debug_headers": False},
            tenants=TENANTS,
            families=[{"name": "auto", "models": ["small", "large"]}],
            classes=[{"name": "standard", "hold_ms": 8_000}],
        )
        yield stack.enter_context(gateway), small, large


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}], **more}


def asked(
    gateway: Gateway, prompt: str, *, key: str = KEYS["acme"], headers: dict[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """Who answered, and the response's headers."""
    status, told, body = gateway.call("/v1/chat/completions", chat(prompt), key=key, headers=headers)
    assert status == 200, body
    return body["choices"][0]["message"]["content"], told


def test_prompts_go_where_they_should(running: tuple[Gateway, Engine, Engine]) -> None:
    """The simple one to the small model, the complex one to the large; each client is told which it got."""
    gateway, _, _ = running
    for prompt, model in ((SIMPLE, "small"), (COMPLEX, "large")):
        answered, told = asked(gateway, prompt)
        assert (answered, told["x-steersman-model"]) == (model, model)
        assert "x-steersman-model-shifted" not in told
    wait_for("quiet", gateway.quiet)


def test_the_engine_sees_the_real_name(running: tuple[Gateway, Engine, Engine]) -> None:
    """The name alone is another; lengths fit, and other fields stay to the letter."""
    gateway, small, _ = running
    body = chat(
        SIMPLE, temperature=0.10, seed=12345678901234567890, extra={"a": [1.0, None]}, stop=["\u2603"]
    )
    status, _, _ = gateway.call("/v1/chat/completions", json.dumps(body, indent=3).encode())
    assert status == 200
    headers, seen = small.seen[-1]
    assert json.loads(seen) == {**body, "model": "small"}
    assert b"12345678901234567890" in seen
    assert int(headers["content-length"]) == len(seen)
    assert "authorization" not in headers
    assert "x-steersman-explain" not in headers


def test_a_body_in_chunks_is_renamed_too(running: tuple[Gateway, Engine, Engine]) -> None:
    """It has no length of its own; the engine gets one that fits."""
    gateway, small, _ = running
    data = json.dumps(chat(SIMPLE)).encode()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    with contextlib.closing(connection):
        headers = {"authorization": f"Bearer {KEYS['acme']}", "transfer-encoding": "chunked"}
        parts = iter((data[:20], data[20:]))
        connection.request("POST", "/v1/chat/completions", parts, headers, encode_chunked=True)
        assert connection.getresponse().status == 200
    assert json.loads(small.seen[-1][1]) == {**chat(SIMPLE), "model": "small"}


def test_a_named_model_passes_untouched(running: tuple[Gateway, Engine, Engine]) -> None:
    """A body that asks for no family goes on to the letter, and no header speaks of a choice."""
    gateway, small, _ = running
    raw = b'{ "messages":[{"content":"x"}],  "model":"small" }'
    status, told, _ = gateway.call("/v1/chat/completions", raw)
    assert (status, small.seen[-1][1]) == (200, raw)
    assert not [name for name in told if name.startswith("x-steersman-")]


def test_a_large_body_is_renamed_too(running: tuple[Gateway, Engine, Engine]) -> None:
    """Three megabytes of it."""
    gateway, _, large = running
    prompt = COMPLEX + " lorem" * 500_000
    answered, _ = asked(gateway, prompt)
    assert answered == "large"
    assert json.loads(large.seen[-1][1])["messages"][0]["content"] == prompt
    wait_for("quiet", gateway.quiet)


def test_a_tenant_gets_what_it_may(running: tuple[Gateway, Engine, Engine]) -> None:
    """Without the large model the small one answers; a floor keeps a simple prompt on the large one."""
    gateway, _, _ = running
    assert asked(gateway, COMPLEX, key=KEYS["globex"])[0] == "small"
    assert asked(gateway, SIMPLE, key="sk-strict")[0] == "large"
    wait_for("quiet", gateway.quiet)


def test_the_model_list_names_the_family(running: tuple[Gateway, Engine, Engine]) -> None:
    """Beside the models that the tenant may use."""
    gateway, _, _ = running
    for key, names in ((KEYS["acme"], ["large", "small", "auto"]), (KEYS["globex"], ["small", "auto"])):
        _, _, body = gateway.call("/v1/models", key=key, method="GET")
        assert [each["id"] for each in body["data"]] == names


def test_overload_shifts_down_but_not_below_the_floor(running: tuple[Gateway, Engine, Engine]) -> None:
    """With the large model's one place taken a complex prompt gets the small one and is told why; who has the
    large one as its floor waits for it, and its renamed body outlives the wait."""
    gateway, _, large = running
    large.open.clear()
    answers: list[tuple[str, dict[str, str]]] = []
    first = threading.Thread(target=lambda: answers.append(asked(gateway, COMPLEX)))
    first.start()
    wait_for("the place taken", lambda: gateway.status()["in_flight"] == 1)
    answered, told = asked(gateway, COMPLEX)
    assert (answered, told["x-steersman-model"]) == ("small", "small")
    assert told["x-steersman-model-shifted"] == "load"
    second = threading.Thread(target=lambda: answers.append(asked(gateway, SIMPLE, key="sk-strict")))
    second.start()
    wait_for("one held", lambda: gateway.status()["held"] == 1)
    large.open.set()
    first.join(20)
    second.join(20)
    assert [model for model, _ in answers] == ["large", "large"]
    assert json.loads(large.seen[-1][1])["model"] == "large"
    wait_for("quiet", gateway.quiet)


def test_the_reason_on_request(running: tuple[Gateway, Engine, Engine]) -> None:
    """Only where the client asks and the tenant may see it; a client's own copy of the header is stripped."""
    gateway, small, _ = running
    forged = {"x-steersman-reason": "because"}
    _, told = asked(gateway, SIMPLE, headers=EXPLAIN | forged)
    assert told["x-steersman-reason"].startswith(f"steer: {small.address}=")
    assert "x-steersman-reason" not in small.seen[-1][0]
    assert "x-steersman-reason" not in asked(gateway, SIMPLE, headers=forged)[1]
    assert "x-steersman-reason" not in asked(gateway, SIMPLE, key=KEYS["globex"], headers=EXPLAIN)[1]


def test_quotas_and_books_are_of_the_chosen_model(running: tuple[Gateway, Engine, Engine]) -> None:
    """The decision's record names the small model's pool."""
    gateway, _, _ = running
    asked(gateway, SIMPLE)
    newest = gateway.status()["decisions"][0]
    assert (newest["pool"], newest["tenant"]) == ("little", "acme")


def test_a_choice_is_explained_by_envoys_request_id(running: tuple[Gateway, Engine, Engine]) -> None:
    """The id that engines' and Envoy's logs carry names the decision; score and features are told."""
    gateway, small, _ = running
    asked(gateway, SIMPLE)
    found = gateway.order("Explain", id=small.seen[-1][0]["x-request-id"])
    family = found["family"]
    assert (found["model"], family["family"], family["wished"]) == ("small", "auto", "small")
    assert 0.0 < family["score"] < 0.5
    assert family["features"]["simple"] == 1.0
