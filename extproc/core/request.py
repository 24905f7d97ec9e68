"""What a decision sees of a client's request: its route, its dialect, and what it asks for.

Owns what becomes of the limits that engines read differently. The routes are the table of routes.py; how a
request is read from a body is reading.py's.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from extproc.core.prefix import chain, chain_ids
from extproc.engines import traits_of

#: Tokens that one image part counts as, when the engine's own count is not known yet (a ViT-L/14 at
#: 336 pixels makes 576 patches).
IMAGE_TOKENS = 576
#: A client that allows more new tokens than this allows any number: no engine produces them, and sums and
#: floats must hold it.
NEW_TOKENS_MAX = 2**31 - 1


class Dialect(Enum):
    """Whose error bodies the client expects."""

    OPENAI = "openai"
    TGI = "tgi"
    ANTHROPIC = "anthropic"


class RouteKind(Enum):
    """What a path asks for."""

    CHAT = "chat"
    COMPLETION = "completion"
    GENERATE = "generate"
    GENERATE_STREAM = "generate_stream"
    COMPAT = "compat"  # TGI's POST /, streamed or not by its `stream` field
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    RESPONSES = "responses"
    RESPONSE = "response"  # one that was made before, by its id
    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    TRANSCRIPTION = "transcription"
    SPEECH = "speech"
    TOKENIZE = "tokenize"
    MODEL = "model"
    MODELS = "models"
    INFO = "info"
    HEALTH = "health"
    SITE = "site"  # what there is here, told to another site's Steersman
    METRICS = "metrics"  # the replica's own
    INVOCATIONS = "invocations"  # SageMaker's: a body of any of the others
    VERTEX = "vertex"  # Vertex AI's: a list of them
    OTHER = "other"  # of the file's own
    OTHER_FREE = "other_free"  # the same, of no work worth counting


class UsageAsked(Enum):
    """What an OpenAI stream's client asked to be told of its usage."""

    NO_STREAM = "no stream"  # nor one of another dialect
    NONE = "none"
    LAST = "last"  # stream_options.include_usage
    EACH = "each"  # vLLM's continuous_usage_stats


class TokenLimits(NamedTuple):
    """New tokens by each name that engines know for them: None where the client said nothing, NO_LIMIT where
    it said what is no number of tokens."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None


#: A limit that bounds nothing: `-1` to llama.cpp, a mistake to the others, which is theirs to refuse.
NO_LIMIT = -1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as a decision sees it.

    `prompt_bytes` is the UTF-8 length of the prompt's text; `prompt_tokens` is set only where the
    client sent token ids. `max_new_tokens` is per sequence, None when the client set no limit.
    `marks[i]` says what stands before `segments[i]`: roles, images, tool calls and tools (see
    `prefix.chain`). `prompt_ids` are the first prompt's token ids, 4 bytes each, as far as hashed.

    `prefix` is for callers that bring ready hashes (see `prefix_of`); `prefix_block_tokens` says how
    many tokens one stands for, None for BLOCK_BYTES of text. `messages` counts a chat's messages,
    `tools` the tools it offers; `user` is the `session_id`, else the `user`, that the client named.
    """

    kind: RouteKind
    dialect: Dialect
    model: str | None = None
    stream: bool = False
    max_new_tokens: int | None = None
    sequences: int = 1
    prompt_bytes: int = 0
    prompt_tokens: int | None = None
    images: int = 0
    segments: tuple[str, ...] = ()
    marks: tuple[bytes, ...] = ()
    prompt_ids: bytes = b""
    prefix: tuple[int, ...] = ()
    prefix_block_tokens: float | None = None
    messages: int = 0
    tools: int = 0
    user: str | None = None
    json_output: bool = False
    #: The LoRA adapter that it names beside its model (TGI's `adapter_id`).
    adapter: str | None = None
    #: Not of the body but of the gateway that asks: the addresses it may go to (None any), and targets of
    #: its own instead of its class's (0 none).
    only: frozenset[str] | None = None
    #: Where more than one limit is named, or one that is not every engine's (`limited`).
    limits: TokenLimits | None = None
    usage: UsageAsked = UsageAsked.NO_STREAM
    #: It cannot be sent a second time.
    once: bool = False
    #: The response before it, which one replica holds.
    follows: str | None = None
    #: Its engine reads more than its body says: a response before it, what tools of the engine's own find.
    beside: bool = False
    ttft_ms: int = 0
    tpot_ms: int = 0
    #: The site that sent it on, and how many gateways have ("" and 0: it came from a client).
    site: str = ""
    hops: int = 0
    #: For the record: by what hash it shows that it equals another; "" where nobody asks.
    question: str = ""

    @property
    def more_than_text(self) -> bool:
        """Whether its engine counts tokens of which no text of it tells."""
        return self.images > 0 or self.beside


def limited(request: Request, engine: str) -> Request:
    """The request with the limit that an engine obeys of several (`EngineRow.obeys`)."""
    if request.limits is None:
        return request
    tokens, completion, predict = request.limits
    traits = traits_of(engine)
    if traits.obeys == "max_completion_tokens":
        limit = completion or tokens
    elif traits.obeys == "max_tokens":
        limit = tokens or completion
    elif traits.n_predict and predict is not None:
        limit = predict
    else:
        given = [each for each in (tokens, completion) if each is not None]
        limit = NO_LIMIT if NO_LIMIT in given else max(given, default=None)
    return replace(request, max_new_tokens=bounded(limit), limits=None)


def bounded(limit: int | None) -> int | None:
    """A limit as it is reckoned with: None where it bounds nothing."""
    return None if limit is None or limit < 0 else min(limit, NEW_TOKENS_MAX)


def without_text(request: Request) -> Request:
    """The request without what it says; the hashes of its prefix stay."""
    return replace(request, segments=(), marks=(), prompt_ids=b"")


def prefix_of(request: Request) -> tuple[int, ...]:
    """The chained hashes of the (first) prompt's blocks: those that came with it, else our own."""
    if request.prefix:
        return request.prefix
    if request.prompt_ids:
        return chain_ids(request.prompt_ids)
    # A completion's segments are prompts of their own.
    segments = request.segments[:1] if request.kind is RouteKind.COMPLETION else request.segments
    return chain(segments, request.marks)
