"""The routes that TGI lacks, over the same simulated engine, in the shapes of vLLM and llama.cpp.

Owns their bodies, answers and streams. What is prefilled alone makes one token that nobody is sent: a
simulated replica has no other work than prompts and tokens after them.
"""

from __future__ import annotations

import base64
import re
import struct
from collections import OrderedDict
from typing import Any, Final
from uuid import uuid4

import msgspec
from aiohttp import web

from extproc.sim.answer import Answers
from extproc.sim.protocol import Parameters, PlannedAnswer, SimError, invalid, parse
from extproc.sim.routes_frames import MessageFrames, ResponseFrames, message, response
from extproc.sim.spec import ReplicaSpec

Json = dict[str, Any]

#: Numbers in a simulated embedding, and answers that are kept for who continues them.
DIMENSIONS: Final = 8
RESPONSES_KEPT_MAX: Final = 1_024
#: Bytes of sound that one token of a prompt stands for, as the gateway takes it.
SOUND_BYTES_A_TOKEN: Final = 320
CHUNK_BYTES: Final = 64 * 1024


class EmbeddingsRequest(msgspec.Struct):
    """`/v1/embeddings`."""

    input: str | list[str]
    model: str | None = None
    encoding_format: str = "float"


class RerankRequest(msgspec.Struct):
    """`/v1/rerank` and `/rerank`."""

    query: str
    documents: list[str]
    model: str | None = None
    top_n: int | None = None


class ScoreRequest(msgspec.Struct):
    """`/v1/score`."""

    text_1: str | list[str]
    text_2: str | list[str]
    model: str | None = None


class SpeechRequest(msgspec.Struct):
    """`/v1/audio/speech`."""

    input: str
    model: str | None = None


class ResponsesRequest(msgspec.Struct):
    """`/v1/responses`."""

    input: str | list[Any]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool = False
    previous_response_id: str | None = None


class MessagesRequest(msgspec.Struct):
    """`/v1/messages` and `/v1/messages/count_tokens`."""

    messages: list[Any]
    model: str | None = None
    system: Any = None
    max_tokens: int | None = None
    stream: bool = False


class OtherRoutes:
    """The routes of one replica."""

    def __init__(self, spec: ReplicaSpec, answers: Answers) -> None:
        self._spec, self._answers = spec, answers
        #: What each response was made of, by its id.
        self._kept: OrderedDict[str, tuple[str, Json]] = OrderedDict()

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """One vector an input."""
        body = parse(await request.read(), EmbeddingsRequest)
        inputs = [body.input] if isinstance(body.input, str) else body.input
        plans = await self._prefilled(request, inputs)
        data = [
            {"object": "embedding", "index": at, "embedding": _vector(plan, body.encoding_format)}
            for at, plan in enumerate(plans)
        ]
        model = body.model or self._spec.model_id
        return _json({"object": "list", "data": data, "model": model, "usage": _prefill_usage(plans)})

    async def rerank(self, request: web.Request) -> web.StreamResponse:
        """A score a document, the best first."""
        body = parse(await request.read(), RerankRequest)
        plans = await self._prefilled(request, [f"{body.query}\n{each}" for each in body.documents])
        ranked = sorted(enumerate(plans), key=lambda each: -_score(each[1]))
        results = [
            {"index": at, "document": {"text": body.documents[at]}, "relevance_score": _score(plan)}
            for at, plan in ranked
        ]
        model, usage = body.model or self._spec.model_id, _prefill_usage(plans)
        return _json({"id": _id("rerank"), "model": model, "usage": usage, "results": results[: body.top_n]})

    async def score(self, request: web.Request) -> web.StreamResponse:
        """A score a pair."""
        body = parse(await request.read(), ScoreRequest)
        ones = [body.text_1] if isinstance(body.text_1, str) else body.text_1
        others = [body.text_2] if isinstance(body.text_2, str) else body.text_2
        pairs = zip(ones * len(others) if len(ones) == 1 else ones, others, strict=False)
        plans = await self._prefilled(request, [f"{one}\n{other}" for one, other in pairs])
        data = [{"index": at, "object": "score", "score": _score(plan)} for at, plan in enumerate(plans)]
        model, usage = body.model or self._spec.model_id, _prefill_usage(plans)
        return _json({"id": _id("score"), "object": "list", "data": data, "model": model, "usage": usage})

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's responses; what is continued must have been made here."""
        body = parse(await request.read(), ResponsesRequest)
        prompt = body.input if isinstance(body.input, str) else _said(body.input)
        if body.instructions:
            prompt = f"{body.instructions}\n{prompt}"
        if body.previous_response_id is not None:
            prompt = f"{self._made(body.previous_response_id)[0]}\n{prompt}"
        identity, model = _id("resp"), body.model or self._spec.model_id
        parameters = Parameters(max_new_tokens=body.max_output_tokens)
        if body.stream:
            frames = ResponseFrames(identity, model, lambda plan: self._keep(identity, prompt, plan, model))
            return await self._answers.stream(request, [prompt], parameters, [frames])
        plans, headers = await self._answers.whole(request, [prompt], parameters)
        return _json(self._keep(identity, prompt, plans[0], model), headers=headers)

    async def response(self, request: web.Request) -> web.StreamResponse:
        """One that was made before."""
        return _json(self._made(request.match_info["id"])[1])

    async def forget(self, request: web.Request) -> web.StreamResponse:
        """Drop one that was made before."""
        identity = request.match_info["id"]
        self._made(identity)
        del self._kept[identity]
        return _json({"id": identity, "object": "response", "deleted": True})

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Anthropic's messages."""
        body = parse(await request.read(), MessagesRequest)
        prompt, model = _said([body.system, body.messages]), body.model or self._spec.model_id
        parameters = Parameters(max_new_tokens=body.max_tokens)
        if body.stream:
            frames = MessageFrames(_id("msg"), model)
            return await self._answers.stream(request, [prompt], parameters, [frames])
        plans, headers = await self._answers.whole(request, [prompt], parameters)
        return _json(message(_id("msg"), model, plans[0]), headers=headers)

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        """What a message's prompt would have."""
        body = parse(await request.read(), MessagesRequest)
        size = len(_said([body.system, body.messages]).encode())
        return _json({"input_tokens": -(-size // self._spec.bytes_per_token)})

    async def transcription(self, request: web.Request) -> web.StreamResponse:
        """Words as many as the sound is long; read piece by piece, as a large file must be."""
        size, head = 0, b""
        while chunk := await request.content.read(CHUNK_BYTES):
            size += len(chunk)
            head = head if len(head) >= CHUNK_BYTES else head + chunk
        if b"filename" not in head:
            raise invalid("`file` is missing")
        seconds = size / SOUND_BYTES_A_TOKEN / 50
        plans, _ = await self._answers.whole(
            request, [f"sound of {size} bytes"], Parameters(max_new_tokens=max(1, int(4 * seconds)))
        )
        text = plans[0].story.text(plans[0].output_tokens)
        usage = {"type": "duration", "seconds": round(seconds)}
        return _json({"text": text, "usage": usage, "model": _form_model(head) or self._spec.model_id})

    async def speech(self, request: web.Request) -> web.StreamResponse:
        """Silence, a fifth of a second a token."""
        body = parse(await request.read(), SpeechRequest)
        plans = await self._prefilled(request, [body.input])
        return web.Response(body=b"\0" * 3_200 * plans[0].prompt_tokens, content_type="audio/wav")

    async def _prefilled(self, request: web.Request, prompts: list[str]) -> list[PlannedAnswer]:
        if not prompts:
            raise invalid("there is nothing to read")
        plans, _ = await self._answers.whole(request, prompts, Parameters(max_new_tokens=1))
        return plans

    def _made(self, identity: str) -> tuple[str, Json]:
        found = self._kept.get(identity)
        if found is None:
            raise SimError(404, "not_found", f"Response with id '{identity}' not found.")
        return found

    def _keep(self, identity: str, prompt: str, plan: PlannedAnswer, model: str) -> Json:
        made = response(identity, model, plan)
        self._kept[identity] = (f"{prompt}\n{plan.story.text(plan.output_tokens)}", made)
        while len(self._kept) > RESPONSES_KEPT_MAX:
            self._kept.popitem(last=False)
        return made


def _form_model(head: bytes) -> str:
    found = re.search(rb'name="model"\r\n\r\n([^\r\n]*)', head)
    return found.group(1).decode("utf-8", "replace") if found is not None else ""


def _said(value: Any) -> str:
    """Every text in a list of messages, in order."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(said for each in value if (said := _said(each)))
    if isinstance(value, dict):
        return _said([value.get("content"), value.get("text"), value.get("output")])
    return ""


def _vector(plan: PlannedAnswer, encoding: str) -> list[float] | str:
    """Numbers that are the same for the same text."""
    values = [(plan.story.word_id(at) % 200 - 100) / 100 for at in range(DIMENSIONS)]
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *values)).decode()
    return values


def _score(plan: PlannedAnswer) -> float:
    return plan.story.word_id(0) % 1_000 / 1_000


def _prefill_usage(plans: list[PlannedAnswer]) -> Json:
    tokens = sum(plan.prompt_tokens for plan in plans)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _id(kind: str) -> str:
    return f"{kind}_{uuid4().hex}"


def _json(payload: object, *, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(payload), headers=headers, content_type="application/json")
