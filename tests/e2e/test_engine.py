"""A real engine behind the gateway: llama.cpp's server with SmolLM2-135M, on CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from gateway import KEYS, Child, Gateway, free_ports, wait_for
from openai import BadRequestError, InternalServerError, NotFoundError, OpenAI

pytestmark = [pytest.mark.envoy, pytest.mark.engine]

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running engine."""
    yield from _engine(tmp_path_factory.mktemp("e"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one that was started for embeddings."""
    yield from _engine(tmp_path_factory.mktemp("e"), "embedding")


def _engine(folder: Path, *told: str) -> Iterator[str]:
    if not WEIGHTS.exists():
        pytest.skip(f"no weights at {WEIGHTS}: make weights")
    try:
        import xllamacpp  # noqa: F401  (whether it is there)
    except ImportError:
        pytest.skip("xllamacpp is not installed: make setup")
    port = free_ports(1)[0]
    script = Path(__file__).parent / "engine_server.py"
    child = Child("engine", [sys.executable, str(script), str(WEIGHTS), str(port), *told], folder)
    child.start()
    try:
        wait_for("the engine", lambda: "listening on http" in child.log.read_text(errors="replace"))
        yield f"127.0.0.1:{port}"
    finally:
        child.stop()


def test_a_real_engine_answers_through_envoy_and_its_tokens_are_counted(engine: str) -> None:
    """A chat, streamed and not: the client's usage and the service's count agree."""
    pools = {"smol": {"models": ["smollm2"], "engine": "llamacpp", "addresses": [engine]}}
    with Gateway(pools) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=60)
        messages = [{"role": "user", "content": "Name three colours of the rainbow."}]
        whole = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=16)  # type: ignore[arg-type]
        assert whole.choices[0].message.content
        assert whole.usage is not None
        stream = client.chat.completions.create(
            model="smollm2",
            messages=messages,  # type: ignore[arg-type]
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        usage = chunks[-1].usage
        assert usage is not None
        wait_for("the records", gateway.quiet)
        status = gateway.status()
        acme = status["tenants"]["acme"]
        assert acme["ok"] == 2
        assert acme["output_tokens"] == whole.usage.completion_tokens + usage.completion_tokens
        assert acme["prompt_tokens"] == whole.usage.prompt_tokens + usage.prompt_tokens
        assert acme["ttft_p50_ms"] > 0
        # The engine's count of this prompt has taught the pool its bytes per token.
        assert status["pools"]["smol"]["bytes_per_token"] != 4.0


def test_a_real_engine_answers_responses_and_messages(engine: str) -> None:
    """OpenAI's and Anthropic's clients, streamed and not: what is counted is what the engine says, a prompt
    that it had cached included."""
    pools = {"smol": {"models": ["smollm2"], "engine": "llamacpp", "addresses": [engine]}}
    with Gateway(pools) as gateway:
        openai = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=60)
        anthropic = Anthropic(base_url=gateway.url, api_key=KEYS["acme"], max_retries=0, timeout=60)
        ask: dict[str, Any] = {"model": "smollm2", "max_tokens": 8}
        ask["messages"] = [{"role": "user", "content": "Name three colours of the rainbow."}]
        message = anthropic.messages.create(**ask)
        with anthropic.messages.stream(**ask) as streamed:
            last = streamed.get_final_message()
        response = openai.responses.create(model="smollm2", input="Ahoy!", max_output_tokens=8)
        *_, end = openai.responses.create(model="smollm2", input="Ahoy!", max_output_tokens=8, stream=True)
        assert end.type == "response.completed"
        assert response.usage is not None
        assert end.response.usage is not None
        assert anthropic.messages.count_tokens(model="smollm2", messages=ask["messages"]).input_tokens > 8
        wait_for("the records", gateway.quiet)
        acme = gateway.status()["tenants"]["acme"]
        usages = (response.usage, end.response.usage, message.usage, last.usage)
        cached = sum(each.cache_read_input_tokens or 0 for each in (message.usage, last.usage))
        assert cached > 0, "the engine has the prompt from the first call"
        assert acme["ok"] == 5
        assert acme["output_tokens"] == sum(each.output_tokens for each in usages)
        assert acme["prompt_tokens"] == cached + sum(each.input_tokens for each in usages)
        # What it cannot continue it says itself; what nobody made here never reaches it.
        with pytest.raises(NotFoundError, match="no response 'resp_x' here"):
            openai.responses.create(model="smollm2", input="x", previous_response_id="resp_x")
        with pytest.raises(BadRequestError, match="does not support"):
            openai.responses.create(model="smollm2", input="x", previous_response_id=response.id)
        anthropic.close()
        openai.close()


def test_a_real_engine_embeds_and_says_itself_what_it_lacks(engine: str, embedder: str) -> None:
    """Embeddings of a batch: the service's count is the engine's, and there is no output to pay; the other
    engine answers 501, its own words come back, and it is as well as before."""
    pools = {
        "embed": {"models": ["embed"], "engine": "llamacpp", "addresses": [embedder]},
        "smol": {"models": ["smollm2"], "engine": "llamacpp", "addresses": [engine]},
    }
    with Gateway(pools) as gateway:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=60)
        one = client.embeddings.create(model="embed", input="Red sails in the sunset.")
        many = client.embeddings.create(
            model="embed", input=["To port!", "To starboard, and quickly."], encoding_format="float"
        )
        assert [each.index for each in many.data] == [0, 1]
        assert len(one.data[0].embedding) == len(many.data[0].embedding) > 100
        wait_for("the records", gateway.quiet)
        acme = gateway.status()["tenants"]["acme"]
        assert acme["ok"] == 2
        assert acme["prompt_tokens"] == one.usage.prompt_tokens + many.usage.prompt_tokens
        assert acme["output_tokens"] == 0
        for _ in range(4):
            with pytest.raises(InternalServerError, match="--embeddings") as caught:
                client.embeddings.create(model="smollm2", input="Ahoy!")
            assert caught.value.status_code == 501
        wait_for("the records", gateway.quiet)
        assert gateway.status()["tenants"]["acme"]["refused"] == 4
        assert gateway.endpoint(engine)["health"] == 1.0


def test_a_real_engines_tokenizer_counts_what_it_prefills(engine: str) -> None:
    """With the engine's own /tokenize a prompt that came before is reserved at its tokens there."""
    tokenizer = {"source": "engine", "cpu_share": 1.0, "context_tokens": 200}
    pools = {
        "smol": {
            "models": ["smollm2"],
            "engine": "llamacpp",
            "addresses": [engine],
            "tokenizer": tokenizer,
        }
    }
    system = "You answer in one word, and never say why. " * 6 + "数字: 8317, 99213; naïve façade."
    with Gateway(pools) as gateway:

        def tokens() -> dict[str, Any]:
            found = gateway.status()["tokens"]["smol"]
            assert isinstance(found, dict)
            return found

        wait_for("the tokenizer", lambda: not tokens()["problem"])
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS["acme"], max_retries=0, timeout=60)

        def ask(question: str) -> int:
            whole = client.chat.completions.create(
                model="smollm2",
                messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
                max_tokens=1,
            )
            assert whole.usage is not None
            return whole.usage.prompt_tokens

        def counted() -> bool:
            return not tokens()["waiting"]

        for number in range(4):
            ask(f"Is {number} even?")
        wait_for("the counts", counted)
        for number in range(10):
            ask(f"Is {number % 4} even?")
        wait_for("the records", gateway.quiet)
        found = tokens()
        # Ten questions came again: of those all was counted before.
        assert found["prompts"]["exact"] >= 9
        assert found["answers"] >= 8
        assert found["error"] < 0.01
        assert found["error"] <= found["estimate_error"]
        # Too long for the bound: nobody knows so the first time, and the engine answers.
        assert ask(system + system) > 200
        wait_for("its count", counted)
        with pytest.raises(BadRequestError) as caught:
            ask(system + system)
        assert caught.value.code == "context_length_exceeded"
