"""TGI's request bodies, its validation rules, and what a valid request turns into.

Owns parsing (msgspec), TGI's validation messages word for word, and the plan of an answer. Pure: no
HTTP, no clock; the status of an error is data here and becomes a response in the shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from extproc.sim import text
from extproc.sim.spec import ReplicaSpec

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]

GENERATE_DEFAULT_NEW_TOKENS: Final = 100


class SimError(Exception):
    """An error as TGI words it: `status` and `kind` (its `error_type`) for non-stream answers.

    `metric` is the label under `tgi_request_failure`, where TGI counts it.
    """

    def __init__(self, status: int, kind: str, message: str, *, metric: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.metric = metric


def overloaded() -> SimError:
    """No permit: TGI's 429, which carries no Retry-After."""
    return SimError(429, "overloaded", "Model is overloaded", metric="overloaded")


def invalid(message: str) -> SimError:
    """TGI's 422 for what validation refuses."""
    return SimError(422, "validation", f"Input validation error: {message}", metric="validation")


class BodyError(Exception):
    """A body that TGI's web framework refuses: `status` and plain text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Parameters(Struct):
    """`parameters` of `/generate`."""

    best_of: U32 | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = GENERATE_DEFAULT_NEW_TOKENS
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: U32 | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    adapter_id: str | None = None


class GenerateRequest(Struct):
    """`/generate` and `/generate_stream`; `/` and `/invocations` with `stream`."""

    inputs: str
    parameters: Parameters | None = None
    stream: bool = False


class MessagePart(Struct):
    """A piece of a chat message; only its text counts here (images are not simulated)."""

    type: str = "text"
    text: str = ""


class Message(Struct):
    """One chat message."""

    role: str
    content: str | list[MessagePart] | None = None

    def plain(self) -> str:
        """Its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Struct):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ChatRequest(Struct):
    """`/v1/chat/completions`. `n`, tools and response formats are read past, `n` as TGI does."""

    messages: list[Message]
    model: str | None = None
    max_tokens: U32 | None = None
    max_completion_tokens: U32 | None = None
    stop: list[str] | str | None = None
    stream: bool = False
    seed: U64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream_options: StreamOptions | None = None

    def prompt(self) -> str:
        """The messages through a plain template; `SimError` where a template would fail."""
        if not self.messages:
            raise SimError(422, "template_error", "Template error: no messages", metric="template")
        turns = "".join(f"<|{message.role}|>\n{message.plain()}\n" for message in self.messages)
        return f"{turns}<|assistant|>\n"

    def parameters(self) -> Parameters:
        """As `/generate` parameters: no limit means up to `max_total_tokens`."""
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return _openai_parameters(limit, self.stop, self.seed, self.temperature, self.top_p)


class CompletionRequest(Struct):
    """`/v1/completions`; several prompts take a permit each."""

    prompt: str | list[str]
    model: str | None = None
    max_tokens: U32 | None = None
    stop: list[str] | str | None = None
    stream: bool = False
    seed: U64 | None = None
    temperature: float | None = None
    top_p: float | None = None

    def prompts(self) -> list[str]:
        """One or more prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def parameters(self) -> Parameters:
        """As `/generate` parameters."""
        return _openai_parameters(self.max_tokens, self.stop, self.seed, self.temperature, self.top_p)


class VertexInstance(Struct):
    """One instance of a Vertex request: generate's body or chat's."""

    inputs: str | None = None
    parameters: Parameters | None = None
    messages: list[Message] | None = None
    max_tokens: U32 | None = None


class VertexRequest(Struct):
    """`/vertex`."""

    instances: list[VertexInstance]


class SagemakerProbe(Struct):
    """Just enough of `/invocations` to tell which of three bodies it holds."""

    messages: object = None
    prompt: object = None


def _openai_parameters(
    limit: int | None,
    stop: list[str] | str | None,
    seed: int | None,
    temperature: float | None,
    top_p: float | None,
) -> Parameters:
    """OpenAI's temperature 0 means greedy, which TGI maps to no temperature; its top_p 1 means unset."""
    return Parameters(
        max_new_tokens=limit,
        stop=[stop] if isinstance(stop, str) else stop,
        seed=seed,
        temperature=temperature or None,
        top_p=None if top_p == 1.0 else top_p,
        do_sample=True,
    )


T = TypeVar("T")


def parse(body: bytes, kind: type[T]) -> T:
    """Decode a body; `BodyError` 400 for what is no JSON, 422 for JSON of the wrong shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BodyError(422, f"Failed to deserialize the JSON body into the target type: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyError(400, f"Failed to parse the request body as JSON: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAnswer:
    """A validated request and the answer it will get."""

    prompt: str
    prompt_tokens: int
    max_new_tokens: int
    output_tokens: int
    finish_reason: str  # length, eos_token or stop_sequence
    seed: int | None
    story: text.Story
    blocks: tuple[bytes, ...]
    sliced: bool


def check_parameters(parameters: Parameters, spec: ReplicaSpec, *, stream: bool) -> None:
    """TGI's parameter checks, in its order; raises `SimError`."""
    best_of = 1 if parameters.best_of is None else parameters.best_of
    if stream and best_of != 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if stream and parameters.decoder_input_details:
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    if not 0 < best_of <= spec.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {spec.max_best_of}. Given: {best_of}")
    sampling = parameters.do_sample or any(
        value is not None
        for value in (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    )
    stop = parameters.stop or []
    top_n = parameters.top_n_tokens or 0
    truncate = parameters.truncate
    for wrong, message in (
        (best_of > 1 and not sampling, "you must use sampling when `best_of` is > 1"),
        (_at_most_zero(parameters.temperature), "`temperature` must be strictly positive"),
        (_at_most_zero(parameters.repetition_penalty), "`repetition_penalty` must be strictly positive"),
        (
            not -2.0 <= (parameters.frequency_penalty or 0.0) <= 2.0,
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        (_outside_unit(parameters.top_p), "`top_p` must be > 0.0 and < 1.0"),
        (_outside_unit(parameters.typical_p), "`typical_p` must be > 0.0 and < 1.0"),
        (_at_most_zero(parameters.top_k), "`top_k` must be strictly positive"),
        (parameters.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"),
        (
            len(stop) > spec.max_stop_sequences,
            f"`stop` supports up to {spec.max_stop_sequences} stop sequences. Given: {len(stop)}",
        ),
        (best_of > 1 and parameters.seed is not None, "`seed` must not be set when `best_of` > 1"),
        (
            top_n > spec.max_top_n_tokens,
            f"`top_n_tokens` must be >= 0 and <= {spec.max_top_n_tokens}. Given: {top_n}",
        ),
        (
            truncate is not None and not 0 < truncate <= spec.max_input_tokens,
            f"`truncate` must be strictly positive and less than {spec.max_input_tokens}. Given: {truncate}",
        ),
    ):
        if wrong:
            raise invalid(message)


def plan_answer(
    prompt: str, parameters: Parameters, spec: ReplicaSpec, *, forced_tokens: int | None, attempt: int = 0
) -> PlannedAnswer:
    """Check a prompt against the limits and choose its answer.

    `forced_tokens` (the header) goes before a marker in the prompt, which goes before chance; all are
    capped by the request's limit. `attempt` tells apart the answers of one `best_of`.
    """
    if not prompt:
        raise invalid("`inputs` cannot be empty")
    tokens = text.count_tokens(prompt, bytes_per_token=spec.bytes_per_token)
    if parameters.truncate is not None:
        tokens = min(tokens, parameters.truncate)
    limit = parameters.max_new_tokens
    sliced = limit is None or spec.slice_explicit_limits
    if limit is None:
        limit = spec.max_total_tokens - tokens
    if tokens + limit > spec.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {spec.max_total_tokens}. "
            f"Given: {tokens} `inputs` tokens and {limit} `max_new_tokens`"
        )
    if tokens > spec.max_input_tokens:
        raise invalid(f"`inputs` must have less than {spec.max_input_tokens} tokens. Given: {tokens}")
    limit = max(limit, 1)
    seed = parameters.seed if parameters.seed is not None or not attempt else attempt
    rng = text.rng_for(prompt, replica_seed=spec.seed, request_seed=seed)
    story = text.Story(rng)
    wanted = forced_tokens or text.forced_output_tokens(prompt)
    if wanted is None:
        wanted = text.draw_output_tokens(rng, median=spec.output_median_tokens, sigma=spec.output_sigma)
    made, reason = (limit, "length") if wanted >= limit else (wanted, "eos_token")
    if parameters.stop:
        stopped = story.tokens_until(tuple(parameters.stop), tokens=made)
        if stopped is not None:
            made, reason = stopped, "stop_sequence"
    return PlannedAnswer(
        prompt=prompt,
        prompt_tokens=tokens,
        max_new_tokens=limit,
        output_tokens=made,
        finish_reason=reason,
        seed=parameters.seed,
        story=story,
        blocks=text.prompt_blocks(
            prompt, block_tokens=spec.block_tokens, bytes_per_token=spec.bytes_per_token, tokens=tokens
        ),
        sliced=sliced,
    )


def _at_most_zero(value: float | None) -> bool:
    return value is not None and value <= 0


def _outside_unit(value: float | None) -> bool:
    return value is not None and not 0.0 < value < 1.0
