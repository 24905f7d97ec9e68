"""Official clients get through the gateway what they get from the engine: objects, events, files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import clients_engine
import httpx2 as httpx
import openai
import pytest
from clients_places import KEY, MODEL, SAY, Both, Place, others_sockets, plain
from gateway import Gateway, chat_pool
from huggingface_hub import InferenceClient
from pydantic import BaseModel
from scripted_engine import ScriptedEngine

pytestmark = pytest.mark.envoy

__all__ = ["others_sockets"]

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SEE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Which course?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DOT}"}},
        ],
    }
]
SEEN_BY_CLAUDE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DOT}},
            {"type": "text", "text": "Which course?"},
        ],
    }
]
SCHEMA: Any = {"type": "object", "properties": {"course": {"type": "integer"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "steer", "parameters": SCHEMA}}]
FLAT_TOOLS: Any = [{"type": "function", "name": "steer", "parameters": SCHEMA, "strict": False}]
CLAUDES_TOOLS: Any = [{"name": "steer", "input_schema": SCHEMA}]


class Order(BaseModel):
    """What a structured answer holds."""

    course: int


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with ScriptedEngine(clients_engine.answer) as engine:
        with Gateway(chat_pool([engine.address], engine="vllm")) as gateway:
            yield Both(engine, gateway)


OPENAI: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=SAY),
    "chat, streamed": lambda c: list(c.chat.completions.create(model=MODEL, messages=SAY, stream=True)),
    "chat, streamed with usage": lambda c: list(
        c.chat.completions.create(
            model=MODEL, messages=SAY, stream=True, stream_options={"include_usage": True}
        )
    ),
    "tools": lambda c: c.chat.completions.create(model=MODEL, messages=SAY, tools=TOOLS),
    "tools, streamed": lambda c: list(
        c.chat.completions.create(model=MODEL, messages=SAY, tools=TOOLS, stream=True)
    ),
    "a picture": lambda c: c.chat.completions.create(model=MODEL, messages=SEE),
    "structured": lambda c: (
        c.chat.completions.parse(model=MODEL, messages=SAY, response_format=Order).choices[0].message.parsed
    ),
    "completion": lambda c: c.completions.create(model=MODEL, prompt=["a", "b"]),
    "completion, streamed": lambda c: list(c.completions.create(model=MODEL, prompt="a", stream=True)),
    "embeddings in base64": lambda c: c.embeddings.create(model=MODEL, input=["a", "b", "c"]),
    "embeddings in numbers": lambda c: c.embeddings.create(
        model=MODEL, input=[[1, 2], [3]], encoding_format="float", dimensions=2
    ),
    "response": lambda c: c.responses.create(model=MODEL, input="Which course?"),
    "response, streamed": lambda c: list(c.responses.create(model=MODEL, input="Which?", stream=True)),
    "response with tools": lambda c: c.responses.create(model=MODEL, input="Which?", tools=FLAT_TOOLS),
    "structured response": lambda c: (
        c.responses.parse(model=MODEL, input="Which?", text_format=Order).output_parsed
    ),
    "response by id": lambda c: [
        c.responses.create(model=MODEL, input="Which?"),
        c.responses.retrieve("resp_1"),
        list(c.responses.input_items.list("resp_1")),
        c.responses.cancel("resp_1"),
        c.responses.with_raw_response.delete("resp_1").status_code,
    ],
    "a sound": lambda c: c.audio.transcriptions.create(model=MODEL, file=("a.wav", io.BytesIO(b"RIFF" * 99))),
    "a sound, streamed": lambda c: list(
        c.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF" * 99), stream=True)
    ),
    "a sound, translated": lambda c: c.audio.translations.create(model=MODEL, file=("a.wav", b"RIFF" * 99)),
    "speech": lambda c: c.audio.speech.create(model=MODEL, input="Land ho!", voice="alloy").read(),
}
ANTHROPIC: dict[str, Callable[[anthropic.Anthropic], Any]] = {
    "message": lambda c: c.messages.create(model=MODEL, messages=SAY, max_tokens=9),
    "message, events": lambda c: list(
        c.messages.create(model=MODEL, messages=SAY, max_tokens=9, stream=True)
    ),
    "message, streamed": lambda c: _streamed(c, messages=SAY),
    "tools": lambda c: c.messages.create(model=MODEL, messages=SAY, max_tokens=9, tools=CLAUDES_TOOLS),
    "tools, streamed": lambda c: _streamed(c, messages=SAY, tools=CLAUDES_TOOLS),
    "a picture": lambda c: c.messages.create(model=MODEL, messages=SEEN_BY_CLAUDE, max_tokens=9),
    "count": lambda c: c.messages.count_tokens(model=MODEL, messages=SAY),
}


def _streamed(client: anthropic.Anthropic, **asked: Any) -> Any:
    with client.messages.stream(model=MODEL, max_tokens=9, **asked) as stream:
        return [list(stream), stream.get_final_message()]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI's own, of translations
@pytest.mark.parametrize("name", OPENAI)
def test_openais_client_gets_the_same(both: Both, name: str) -> None:
    """Object by object and event by event, usage included."""
    with both.direct.openai() as direct, both.through.openai() as through:
        assert plain(OPENAI[name](through)) == plain(OPENAI[name](direct))


@pytest.mark.parametrize("name", ANTHROPIC)
def test_anthropics_client_gets_the_same(both: Both, name: str) -> None:
    """Its messages, its events in their order, pings as well, and its counts."""
    with both.direct.anthropic() as direct, both.through.anthropic() as through:
        assert plain(ANTHROPIC[name](through)) == plain(ANTHROPIC[name](direct))


HUB: dict[str, Callable[[InferenceClient], Any]] = {
    "chat": lambda c: c.chat_completion(SAY, model=MODEL),
    "chat, streamed": lambda c: list(c.chat_completion(SAY, model=MODEL, stream=True)),
    "tools": lambda c: c.chat_completion(SAY, model=MODEL, tools=TOOLS),
    "a picture": lambda c: c.chat.completions.create(SEE, model=MODEL),
}


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("name", HUB)
def test_hugging_faces_client_gets_the_same(both: Both, name: str, base: str) -> None:
    """At each base address that it takes."""
    assert HUB[name](both.through.hub(base)) == HUB[name](both.direct.hub(base))


def test_tgis_clients_get_the_same(both: Both) -> None:
    """text-generation's own, whole and streamed."""

    def asked(place: Place) -> Any:
        client = place.tgi()
        return [client.generate("Which?").dict(), [each.dict() for each in client.generate_stream("Which?")]]

    assert asked(both.through) == asked(both.direct)


def test_a_reranker_is_asked_as_coheres_client_does(both: Both) -> None:
    """Either path, the answer as it is."""
    body = {"model": MODEL, "query": "north", "documents": ["up", "down"], "top_n": 2}
    for path in ("/v1/rerank", "/rerank"):
        said = [
            httpx.post(f"{place.url}{path}", json=body, headers={"authorization": f"Bearer {KEY}"}).json()
            for place in (both.direct, both.through)
        ]
        assert said[0] == said[1]
