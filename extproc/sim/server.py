"""A TGI-compatible HTTP server over simulated replicas: one port a replica, one event loop for all.

Owns the routes, status codes, headers and error bodies. Knows nothing of Steersman. Routes that TGI lacks
answer as other engines do (other_routes.py). Two more things are ours and not TGI's: the headers
`x-sim-replica` and `x-sim-port` on every answer, and the control routes under `/sim`. A request's header
`x-sim-output-tokens: N`, or `[[sim:out=N]]` in its prompt, fixes its length.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from extproc.observe.metrics.text import PLAIN
from extproc.sim import control, sse
from extproc.sim.answer import Answers
from extproc.sim.engine import SimEngine, validation_error
from extproc.sim.lora_routes import LoadAdapterRequest, LoraRoutes, UnloadAdapterRequest
from extproc.sim.other_routes import OtherRoutes
from extproc.sim.protocol import (
    BodyError,
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    Parameters,
    PlannedAnswer,
    SagemakerProbe,
    SimError,
    T,
    VertexRequest,
    invalid,
    parse,
)
from extproc.sim.spec import ReplicaSpec


class ReplicaServer:
    """The routes of one replica. Built inside its event loop."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.engine = SimEngine(spec)
        self.answers = Answers(self.engine)
        self.others = OtherRoutes(spec, self.answers)
        self.lora = LoraRoutes(spec)
        self.faults = control.HttpFaults(f"{spec.seed}/{spec.name}/faults")
        self.port = spec.port

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self.spec.payload_limit_bytes)
        app.on_response_prepare.append(self._sign)
        app.router.add_routes(
            [
                web.post("/", self._guard(self._root)),
                web.post("/generate", self._guard(self._generate)),
                web.post("/generate_stream", self._guard(self._generate_stream)),
                web.post("/v1/chat/completions", self._guard(self._chat)),
                web.post("/v1/completions", self._guard(self._completions)),
                web.post("/v1/embeddings", self._guard(self.others.embeddings)),
                web.post("/v1/rerank", self._guard(self.others.rerank)),
                web.post("/rerank", self._guard(self.others.rerank)),
                web.post("/v1/score", self._guard(self.others.score)),
                web.post("/v1/responses", self._guard(self.others.responses)),
                web.get("/v1/responses/{id}", self._guard(self.others.response)),
                web.delete("/v1/responses/{id}", self._guard(self.others.forget)),
                web.post("/v1/messages", self._guard(self.others.messages)),
                web.post("/v1/messages/count_tokens", self._guard(self.others.count_tokens, faulty=False)),
                web.post("/v1/audio/transcriptions", self._guard(self.others.transcription)),
                web.post("/v1/audio/speech", self._guard(self.others.speech)),
                web.post("/vertex", self._guard(self._vertex)),
                web.post("/invocations", self._guard(self._invocations)),
                web.post("/tokenize", self._guard(self._tokenize, faulty=False)),
                web.post("/chat_tokenize", self._guard(self._chat_tokenize, faulty=False)),
                web.get("/", self._health),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/info", self._info),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                *self._lora_calls(),
                web.post("/sim/fault", self._guard(self._fault, faulty=False)),
                web.get("/sim/state", self._state),
            ]
        )
        return app

    def _lora_calls(self) -> list[web.RouteDef]:
        """The two calls, where it was started with leave for them (vLLM has no such routes otherwise)."""
        if not self.spec.adapter_calls:
            return []

        async def load(request: web.Request) -> web.StreamResponse:
            return await self.lora.load(await _body(request, LoadAdapterRequest))

        async def unload(request: web.Request) -> web.StreamResponse:
            return await self.lora.unload(await _body(request, UnloadAdapterRequest))

        return [
            web.post("/v1/load_lora_adapter", self._guard(load)),
            web.post("/v1/unload_lora_adapter", self._guard(unload)),
        ]

    async def _sign(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-sim-replica"] = self.spec.name
        response.headers["x-sim-port"] = str(self.port)

    def _guard(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], *, faulty: bool = True
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Turn typed errors into TGI's bodies, and let scripted faults strike first."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if faulty and (status := self.faults.strike()):
                return _error(SimError(status, "simulated_fault", "Simulated fault"))
            try:
                return await handler(request)
            except SimError as error:
                return _error(error)
            except BodyError as error:
                return web.Response(status=error.status, text=error.message)

        return guarded

    # Generation routes.

    async def _root(self, request: web.Request) -> web.StreamResponse:
        return await self._compatible(request, await _body(request, GenerateRequest))

    async def _compatible(self, request: web.Request, body: GenerateRequest) -> web.StreamResponse:
        """`/` and SageMaker: streams on request, and wraps a whole answer in an array."""
        if body.stream:
            return await self._stream_generate(request, body)
        payload, headers = await self._generate_whole(request, body)
        return _json([payload], headers=headers)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        payload, headers = await self._generate_whole(request, await _body(request, GenerateRequest))
        return _json(payload, headers=headers)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream_generate(request, await _body(request, GenerateRequest))

    async def _stream_generate(self, request: web.Request, body: GenerateRequest) -> web.StreamResponse:
        parameters = body.parameters or Parameters()
        frames = sse.GenerateFrames(details=parameters.details, full_text=bool(parameters.return_full_text))
        return await self.answers.stream(request, [body.inputs], parameters, [frames])

    async def _generate_whole(
        self, request: web.Request, body: GenerateRequest
    ) -> tuple[dict[str, Any], dict[str, str]]:
        parameters = body.parameters or Parameters()
        self.engine.metrics.requests += 1
        copies = 1 if parameters.best_of is None else parameters.best_of
        # TGI checks the count of copies before it takes their permits, and the rest after.
        if copies < 1 or copies > self.spec.max_best_of:
            raise validation_error(
                invalid(f"`best_of` must be > 0 and <= {self.spec.max_best_of}. Given: {copies}"),
                self.engine.metrics,
            )
        plans, headers = await self.answers.whole(request, [body.inputs] * copies, parameters, best_of=True)
        plan = plans[0]
        written = plan.story.text(plan.output_tokens)
        payload: dict[str, Any] = {
            "generated_text": plan.prompt + written if parameters.return_full_text else written
        }
        if parameters.details or parameters.decoder_input_details:
            top = bool(parameters.top_n_tokens)
            prefill = self._prefill_tokens(plan) if parameters.decoder_input_details else []
            details = sse.sequence_details(plan, prefill, top_tokens=top)
            if len(plans) > 1:
                details["best_of_sequences"] = [
                    {
                        "generated_text": other.story.text(other.output_tokens),
                        **sse.sequence_details(other, prefill, top_tokens=top),
                    }
                    for other in plans[1:]
                ]
            payload["details"] = details
        return payload, headers

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, ChatRequest)
        if (unknown := self.lora.unknown(body.model)) is not None:
            return unknown
        with self.lora.serving(body.model):
            return await self._chat_body(request, body)

    async def _chat_body(self, request: web.Request, body: ChatRequest) -> web.StreamResponse:
        try:
            prompt = body.prompt()
        except SimError as error:
            self.engine.metrics.requests += 1
            raise validation_error(error, self.engine.metrics) from None
        model, created_s = self.spec.model_id, int(time.time())
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            frames = sse.ChatFrames(model=model, created_s=created_s, include_usage=include_usage)
            return await self.answers.stream(request, [prompt], body.parameters(), [frames])
        plans, headers = await self.answers.whole(request, [prompt], body.parameters())
        return _json(sse.chat_body(plans[0], model=model, created_s=created_s), headers=headers)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, CompletionRequest)
        if (unknown := self.lora.unknown(body.model)) is not None:
            return unknown
        with self.lora.serving(body.model):
            return await self._completions_body(request, body)

    async def _completions_body(self, request: web.Request, body: CompletionRequest) -> web.StreamResponse:
        prompts = body.prompts()
        if not 0 < len(prompts) <= self.spec.max_client_batch_size:
            raise invalid(
                f"Number of prompts must be > 0 and <= {self.spec.max_client_batch_size}. "
                f"Given: {len(prompts)}"
            )
        model, created_s = self.spec.model_id, int(time.time())
        if body.stream:
            frames = [
                sse.CompletionFrames(model=model, created_s=created_s, choice_index=at)
                for at in range(len(prompts))
            ]
            return await self.answers.stream(request, prompts, body.parameters(), frames)
        plans, headers = await self.answers.whole(request, prompts, body.parameters())
        return _json(sse.completion_body(plans, model=model, created_s=created_s), headers=headers)

    async def _vertex(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request, VertexRequest)
        predictions: list[str] = []
        for instance in body.instances:
            if instance.messages is not None:
                chat = ChatRequest(messages=instance.messages, max_tokens=instance.max_tokens)
                prompt, parameters = chat.prompt(), chat.parameters()
            else:
                prompt, parameters = instance.inputs or "", instance.parameters or Parameters()
            plans, _ = await self.answers.whole(request, [prompt], parameters)
            predictions.append(plans[0].story.text(plans[0].output_tokens))
        return _json({"predictions": predictions})

    async def _invocations(self, request: web.Request) -> web.StreamResponse:
        raw = await _raw(request)
        probe = parse(raw, SagemakerProbe)
        if probe.messages is not None:
            return await self._chat_body(request, parse(raw, ChatRequest))
        if probe.prompt is not None:
            return await self._completions_body(request, parse(raw, CompletionRequest))
        return await self._compatible(request, parse(raw, GenerateRequest))

    # Everything else.

    def _pieces(self, prompt: str) -> list[dict[str, Any]]:
        """A prompt's tokens: runs of `bytes_per_token` bytes, each with an id from its bytes."""
        data = prompt.encode()
        size = self.spec.bytes_per_token
        tokens: list[dict[str, Any]] = []
        start = 0
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            stop = len(data[: at + size].decode(errors="ignore"))
            tokens.append(
                {
                    "id": int.from_bytes(piece, "big") % 128_000,
                    "text": piece.decode(errors="replace"),
                    "start": start,
                    "stop": stop,
                }
            )
            start = stop
        return tokens

    def _prefill_tokens(self, plan: PlannedAnswer) -> list[dict[str, Any]]:
        return [
            {"id": piece["id"], "text": piece["text"], "logprob": -1.0 if at else None}
            for at, piece in enumerate(self._pieces(plan.prompt))
        ]

    async def _tokenize(self, request: web.Request) -> web.Response:
        return _json(self._pieces((await _body(request, GenerateRequest)).inputs))

    async def _chat_tokenize(self, request: web.Request) -> web.Response:
        prompt = (await _body(request, ChatRequest)).prompt()
        return _json({"tokenize_response": self._pieces(prompt), "templated_text": prompt})

    async def _health(self, _request: web.Request) -> web.Response:
        if self.faults.unhealthy:
            return _error(SimError(503, "healthcheck", "unhealthy"))
        return web.Response()

    async def _info(self, _request: web.Request) -> web.Response:
        return _json(control.info(self.spec))

    async def _models(self, _request: web.Request) -> web.Response:
        model = self.spec.model_id
        entry = {"id": model, "object": "model", "created": 0, "owned_by": model}
        if self.lora.on:
            entry = {**entry, "root": model, "parent": None}
        return _json({"object": "list", "data": [entry, *self.lora.models()]})

    async def _metrics(self, _request: web.Request) -> web.Response:
        engine = self.engine
        engine.settle()
        replica = engine.replica
        body = engine.metrics.render(
            queue_size=0 if self.spec.hidden_queue else replica.waiting,
            batch_size=replica.running,
            batch_max_tokens=replica.batch_current_max_tokens,
        )
        return web.Response(body=body.encode(), headers={"content-type": PLAIN})

    async def _fault(self, request: web.Request) -> web.Response:
        self.faults.apply(parse(await _raw(request), control.FaultOrder), self.engine)
        return await self._state(request)

    async def _state(self, _request: web.Request) -> web.Response:
        self.engine.settle()
        return _json(control.state(self.engine, self.faults, self.lora, self.port))


async def _raw(request: web.Request) -> bytes:
    """The body, within the limit and of the right type; `BodyError` otherwise."""
    kind = request.content_type
    if kind != "application/json" and not kind.endswith("+json"):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyError(413, "Failed to buffer the request body: length limit exceeded") from None


async def _body(request: web.Request, kind: type[T]) -> T:
    return parse(await _raw(request), kind)


def _json(payload: object, *, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(payload), headers=headers, content_type="application/json")


def _error(error: SimError) -> web.Response:
    response = _json({"error": error.message, "error_type": error.kind})
    response.set_status(error.status)
    return response
