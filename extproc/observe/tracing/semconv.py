"""The names of the GenAI semantic conventions, by release: the one place that knows them.

Sources: https://github.com/open-telemetry/semantic-conventions/tree/v1.36.0/docs/gen-ai and v1.41.0 (the
last release there), and https://github.com/open-telemetry/semantic-conventions-genai v0.1.0 (where they went
on). All of them are "in development" and change; what differs is a field of `Names`, and nothing else in
Steersman spells a `gen_ai.` name.

Two names are no release's: `gen_ai.server.time_to_first_token` as a span's attribute (integer nanoseconds,
which Latitude reads), and provider names: no release has one for an open engine, so the engine's own name
(tgi, vllm, sglang, llamacpp) stands there, as the conventions allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from extproc.core.request import RouteKind

OPERATION: Final = "gen_ai.operation.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
CHOICES: Final = "gen_ai.request.choice.count"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
CONVERSATION: Final = "gen_ai.conversation.id"
WHICH_TOKENS: Final = "gen_ai.token.type"
MODALITY: Final = "gen_ai.token.modality"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_STATUS: Final = "http.response.status_code"
#: Latitude's, in integer nanoseconds.
TTFT_NS: Final = "gen_ai.server.time_to_first_token"

#: Who answers where no engine was reached.
OURSELVES: Final = "steersman"

#: What a path asks for, in the conventions' words; what is not here is no inference.
OPERATIONS: Final = {
    RouteKind.CHAT: "chat",
    RouteKind.RESPONSES: "chat",
    RouteKind.MESSAGES: "chat",
    RouteKind.EMBEDDINGS: "embeddings",
    RouteKind.COMPLETION: "text_completion",
    RouteKind.GENERATE: "text_completion",
    RouteKind.GENERATE_STREAM: "text_completion",
    RouteKind.COMPAT: "text_completion",
    RouteKind.INVOCATIONS: "text_completion",
    RouteKind.VERTEX: "text_completion",
}

DURATION_BUCKETS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TPOT_BUCKETS: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument: its name, what is measured (`of`), unit and words; a counter where it has no buckets.

    `of`: duration, ttft, tpot (seconds), input, output (tokens), tokens (input and output, apart by
    gen_ai.token.type).
    """

    name: str
    of: str
    unit: str
    description: str
    buckets: tuple[float, ...] | None = None


_SERVER = (
    Metric(
        "gen_ai.server.request.duration",
        "duration",
        "s",
        "Generative AI server request duration such as time-to-last byte or last output token.",
        DURATION_BUCKETS,
    ),
    Metric(
        "gen_ai.server.time_to_first_token",
        "ttft",
        "s",
        "Time to generate first token for successful responses.",
        TTFT_BUCKETS,
    ),
    Metric(
        "gen_ai.server.time_per_output_token",
        "tpot",
        "s",
        "Time per output token generated after the first token for successful responses.",
        TPOT_BUCKETS,
    ),
)
_CLIENT_OLD = (
    Metric(
        "gen_ai.client.token.usage",
        "tokens",
        "{token}",
        "Number of input and output tokens used.",
        TOKEN_BUCKETS,
    ),
    Metric(
        "gen_ai.client.operation.duration", "duration", "s", "GenAI operation duration.", DURATION_BUCKETS
    ),
)
_CLIENT = (
    Metric(
        "gen_ai.client.inference.duration",
        "duration",
        "s",
        "GenAI client inference operation duration.",
        DURATION_BUCKETS,
    ),
    Metric(
        "gen_ai.client.inference.time_to_first_chunk",
        "ttft",
        "s",
        "Time to receive the first chunk, measured from when the client issues the generation request to "
        "when the first chunk is received in the response stream.",
        DURATION_BUCKETS,
    ),
    Metric(
        "gen_ai.client.inference.usage.input_tokens",
        "input",
        "{token}",
        "The number of input (prompt) tokens used, including cached tokens.",
    ),
    Metric(
        "gen_ai.client.inference.usage.output_tokens",
        "output",
        "{token}",
        "The number of output (completion) tokens used, including reasoning tokens.",
    ),
)


@dataclass(frozen=True, slots=True)
class Names:
    """What differs between releases; an empty name is one that the release does not have."""

    provider: str
    stream: str
    first_chunk: str
    cache_read: str
    messages: str
    #: Whether a generation that broke off has `error` for its finish reason.
    error_finish: bool
    schema_url: str
    metrics: tuple[Metric, ...]


_V1_41: Final = Names(
    provider="gen_ai.provider.name",
    stream="gen_ai.request.stream",
    first_chunk="gen_ai.response.time_to_first_chunk",
    cache_read="gen_ai.usage.cache_read.input_tokens",
    messages="gen_ai.input.messages",
    error_finish=False,
    schema_url="https://opentelemetry.io/schemas/1.41.0",
    metrics=(*_SERVER, *_CLIENT_OLD),
)
_V0_1: Final = replace(_V1_41, error_finish=True, schema_url="", metrics=(*_SERVER, *_CLIENT))

#: By the configuration's `otel.semconv`.
RELEASES: Final = {
    "1.36": replace(
        _V1_41,
        provider="gen_ai.system",
        stream="",
        first_chunk="",
        cache_read="",
        messages="",
        schema_url="https://opentelemetry.io/schemas/1.36.0",
    ),
    "1.41": _V1_41,
    "0.1": _V0_1,
    "0.1/dup": replace(_V0_1, metrics=(*_SERVER, *_CLIENT, *_CLIENT_OLD)),
}
