"""Bodies that engines take reach them through the real Envoy, with the engine's own key where it has one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, wait_for
from shaped_engine import ShapedEngine

#: By conftest.py: the last test changes the key.
IN_ORDER = True
pytestmark = pytest.mark.envoy

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
SAY = [{"role": "user", "content": "x"}]
#: A body for each kind that used to be refused, by its path.
TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "numbers": (CHAT, {"model": "m", "max_tokens": 100.0, "n": 1.0, "messages": SAY}),
    "number in quotes": (CHAT, {"model": "m", "max_tokens": "100", "stream": "false", "messages": SAY}),
    "no limit": (CHAT, {"model": "g", "max_tokens": -1, "messages": SAY}),
    "parts of text": (CHAT, {"model": "m", "messages": [{"role": "user", "content": ["a", "b"]}]}),
    "mixed prompt": (COMPLETION, {"model": "g", "prompt": [12, "hello", 34], "max_tokens": 4}),
    "text beside ids": (COMPLETION, {"model": "g", "prompt": ["hello", [1, 2]], "max_tokens": 4}),
    "prompt as object": (COMPLETION, {"model": "g", "prompt": {"prompt_string": "hi"}}),
    "embeddings": (COMPLETION, {"model": "m", "prompt_embeds": "QUJD", "max_tokens": 4}),
    "batch": (COMPLETION, {"model": "g", "prompt": [f"p{i}" for i in range(8)], "max_tokens": 2}),
    "tokenize": ("/tokenize", {"model": "m", "prompt": "hello"}),
    "tokenize of llama.cpp": ("/tokenize", {"model": "g", "content": "hello"}),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[ShapedEngine]:
    with ShapedEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(engine: ShapedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    key = tmp_path_factory.mktemp("key") / "engine-key"
    key.write_text("sk-of-the-engine\n")
    vllm, lcpp, tgi, _ = engine.addresses
    pools = {
        "vllm": {
            "models": ["m"],
            "engine": "vllm",
            "upstream": {"key": {"file": str(key)}},
            "addresses": [vllm],
        },
        "lcpp": {
            "models": ["g"],
            "engine": "llamacpp",
            "addresses": [{"address": lcpp, "max_concurrent": 4}],
        },
        "tgi": {"models": ["t"], "engine": "tgi", "addresses": [{"address": tgi, "max_concurrent": 4}]},
    }
    with Gateway(pools, mode="ads") as gateway:
        yield gateway


@pytest.mark.parametrize("name", TAKEN)
def test_what_an_engine_takes_reaches_it(gateway: Gateway, engine: ShapedEngine, name: str) -> None:
    """With every field as its client wrote it."""
    path, body = TAKEN[name]
    status, _, answer = gateway.call(path, body, headers={"x-name": name})
    assert status == 200, answer
    assert engine.asked[name][1] == body


def test_the_engines_own_key(gateway: Gateway, engine: ShapedEngine) -> None:
    """It takes the place of the client's; an engine without one is given none."""
    for name, model in (("keyed", "m"), ("plain", "g")):
        headers = {"x-name": name, "x-api-key": "sk-test-acme"}
        assert gateway.call(CHAT, {"model": model, "messages": SAY}, headers=headers)[0] == 200
    assert engine.asked["keyed"][0]["authorization"] == "Bearer sk-of-the-engine"
    assert "x-api-key" not in engine.asked["keyed"][0]
    assert not {"authorization", "x-api-key"} & engine.asked["plain"][0].keys()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": "t"}, 422),
        (CHAT, {"model": "m"}, 400),
        (CHAT, {"model": "g"}, 400),
        (COMPLETION, {"model": "t", "prompt": ["a"] * 5}, 422),
        ("/generate", {"model": "t", "inputs": "x", "parameters": {"best_of": 5}}, 422),
        ("/generate", {"parameters": {}}, 422),
        (CHAT, b'{"model":"t"', 400),
    ],
)
def test_what_is_refused_has_the_engines_status(gateway: Gateway, path: str, body: Any, status: int) -> None:
    """TGI's 422 where TGI serves the model or its own path is asked; 400 elsewhere, and for no JSON."""
    got, _, answer = gateway.call(path, body)
    assert (got, "validation" in json.dumps(answer)) == (status, path == "/generate"), answer


def test_a_key_taken_at_a_reload(gateway: Gateway, engine: ShapedEngine) -> None:
    """A new key of the engine needs no restart where the service tells Envoy its pools."""
    Path(gateway.config["pools"][0]["upstream"]["key"]["file"]).write_text("sk-the-next")
    gateway.service.signal(signal.SIGHUP)

    def given() -> bool:
        gateway.call(CHAT, {"model": "m", "messages": SAY}, headers={"x-name": "next"})
        return engine.asked["next"][0]["authorization"] == "Bearer sk-the-next"

    wait_for("the new key", given)
