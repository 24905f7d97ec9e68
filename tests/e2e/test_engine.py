"""A real engine behind the gateway: llama.cpp's server with SmolLM2-135M, on CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import KEYS, Child, Gateway, free_ports, wait_for
from openai import OpenAI

pytestmark = [pytest.mark.envoy, pytest.mark.engine]

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / ".weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running engine."""
    if not WEIGHTS.exists():
        _missing(f"no weights at {WEIGHTS}: make weights")
    try:
        import xllamacpp  # noqa: F401  (whether it is there)
    except ImportError:
        _missing("xllamacpp is not installed: make setup")
    port = free_ports(1)[0]
    script = Path(__file__).parent / "engine_server.py"
    child = Child(
        "engine", [sys.executable, str(script), str(WEIGHTS), str(port)], tmp_path_factory.mktemp("e")
    )
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
