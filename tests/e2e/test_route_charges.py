"""What routes beside chats are charged: quotas that embeddings spend, and tokenizers that cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import openai
import pytest
from gateway import KEYS, Gateway, tenants, wait_for
from replicas import Replicas, specs
from scripted_engine import Script, ScriptedEngine, SeenRequest

pytestmark = pytest.mark.envoy

#: As vLLM answers (its TokenizeResponse), and embeddings whose usage a test knows.
TOKENIZED = {"count": 3, "max_model_len": 4_096, "tokens": [1, 22_172, 3_186], "token_strs": None}
VECTOR = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
EMBEDDED = {
    "object": "list",
    "model": "vector",
    "data": [VECTOR],
    "usage": {"prompt_tokens": 40, "total_tokens": 40},
}


def vllm(request: SeenRequest) -> Script:
    return Script(TOKENIZED if request.path == "/tokenize" else EMBEDDED)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Gateway, ScriptedEngine]]:
    with ExitStack() as stack:
        engine = stack.enter_context(ScriptedEngine(vllm))
        replicas = stack.enter_context(Replicas(specs(1)))
        pools = {
            "vectors": {"models": ["vector"], "engine": "vllm", "addresses": [engine.address]},
            "chat": {"models": ["tiny-chat"], "engine": "tgi", "addresses": replicas.addresses},
        }
        people = tenants(globex={"quota": {"input_tokens_per_hour": 100}})
        yield stack.enter_context(Gateway(pools, tenants=people)), engine


def test_embeddings_spend_a_tenants_tokens(site: tuple[Gateway, ScriptedEngine]) -> None:
    """The engine's count is charged, 40 of 100 an hour, whatever was planned; a third is refused unsent."""
    gateway, engine = site
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["globex"], max_retries=0) as client:
        for _ in range(2):
            assert client.embeddings.create(model="vector", input="x").usage.prompt_tokens == 40
            wait_for("its record", gateway.quiet)
        seen = len(engine.seen)
        with pytest.raises(openai.RateLimitError) as caught:
            client.embeddings.create(model="vector", input="ahoy " * 40)
    assert caught.value.code == "quota_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert len(engine.seen) == seen
    assert gateway.tenant("globex")["prompt_tokens"] == 80


@pytest.mark.parametrize(
    "said", [{"prompt": "Ahoy!"}, {"messages": [{"role": "user", "content": "Ahoy!"}]}], ids=["text", "chat"]
)
def test_vllms_tokenizer_answers_in_its_own_shape(
    site: tuple[Gateway, ScriptedEngine], said: dict[str, object]
) -> None:
    """Question and answer pass as they are, and cost a tenant whose tokens are spent nothing."""
    gateway, engine = site
    wait_for("the records", gateway.quiet)
    before = gateway.tenant("globex")
    body = {"model": "vector", "add_special_tokens": True, **said}
    status, _, answer = gateway.call("/tokenize", body, key=KEYS["globex"])
    assert (status, answer) == (200, TOKENIZED)
    assert engine.seen[-1].json == body
    wait_for("its record", lambda: gateway.tenant("globex")["ok"] == before["ok"] + 1)
    assert gateway.tenant("globex")["prompt_tokens"] == before["prompt_tokens"]


def test_tgis_tokenizer_answers_in_its_own_shape(site: tuple[Gateway, ScriptedEngine]) -> None:
    """Its list of tokens, each with its text and place."""
    gateway = site[0]
    status, _, answer = gateway.call("/tokenize", {"inputs": "Ahoy there"}, headers={"x-model": "tiny-chat"})
    assert status == 200
    assert answer
    assert all(set(each) == {"id", "text", "start", "stop"} for each in answer)
    assert "".join("Ahoy there"[each["start"] : each["stop"]] for each in answer) == "Ahoy there"
