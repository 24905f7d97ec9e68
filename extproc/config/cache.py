"""The response cache in the file: how much is kept, and whose requests are answered from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from extproc.config.section import Section
from extproc.config.types import Name


def _as_written(value: Any) -> Any:
    """YAML reads a bare on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


#: Whether requests are answered from the cache: never, where they ask for it, or unless they ask not to be.
CacheMode = Annotated[Literal["off", "ask", "on"], BeforeValidator(_as_written)]


class SemanticConfig(Section):
    """Answers to questions that ask the same in other words: what finds them. Nobody is given one before its
    tenant says so (`tenants[].cache.semantic`); then a process is started that embeds, which needs the extra
    `semantic`."""

    model: str = Field(default="", max_length=4_096)
    """A sentence model in ONNX, of which the mean of the last layer is taken; the extra's all-MiniLM-L6-v2
    (int8) when left out. Give its tokenizer too."""
    tokenizer: str = Field(default="", max_length=4_096)
    """Its tokenizer.json; BERT's for lower case when left out."""
    embed_budget_ms: int = Field(default=50, ge=1, le=2_000)
    """How long a request waits to hear of such a question; then it is a miss."""
    entries_max: int = Field(default=2_000, ge=1, le=50_000)
    """Questions kept for each tenant or group; above it the least recently used go."""
    bytes_max: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024, le=16 * 1024**3)
    """Memory for all tenants' questions and their answers; above it the least recently used of whoever has
    most go."""
    keep_s: float = Field(default=604_800.0, ge=1.0, le=31_536_000.0)
    """How long a question, its answer and what was learned of it are kept after its last answer. Longer than
    `ttl_s` no answer is given; the next one renews it where it is the same."""
    question_chars_max: int = Field(default=1_000, ge=1, le=8_000)
    """A longer question is not compared."""


class CacheConfig(Section):
    """Answers that are given again to the same deterministic request. Nobody's before a tenant or a pool says
    so (`tenants[].cache`, `pools[].cache`)."""

    bytes_max: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024, le=256 * 1024**3)
    """Bytes for the answers of all tenants; above it the least recently used of whoever has most go."""
    answer_bytes_max: int = Field(default=256 * 1024, ge=1024, le=1024 * 1024)
    """A larger answer is not kept. Envoy gathers up to so much of each that may be."""
    request_bytes_max: int = Field(default=256 * 1024, ge=1024, le=16 * 1024 * 1024)
    """A larger request is not looked up."""
    ttl_s: float = Field(default=3_600.0, ge=1.0, le=2_592_000.0)
    """How long an answer may be given again, where its tenant says nothing."""
    store: Literal["memory", "redis"] = "memory"
    """Where answers are kept, and questions of the semantic cache: in this service's memory, or in the Redis
    of `sharing`, for all services."""
    store_budget_ms: int = Field(default=5, ge=1, le=1_000)
    """How long a request waits for Redis; what takes longer is a miss."""
    keys_file: str | None = Field(default=None, min_length=1)
    """A file with keys that answers in Redis are encrypted with (AES-256-GCM), one a line, of 64 hex digits:
    from 'openssl rand -hex 32'. The first encrypts, each of them decrypts. Not encrypted when left out. With
    `store: memory` it is for the semantic cache's questions, which are kept in `state.dir` only with keys."""
    keys_env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with those keys, blanks between them. Either this or keys_file."""
    semantic: SemanticConfig = Field(default_factory=SemanticConfig)
    """What finds questions that ask the same in other words, for tenants that have `cache.semantic`."""


class TenantSemantic(Section):
    """Answers to questions that ask the same in other words: how sure must it be."""

    wrong_max: float = Field(default=0.005, gt=0.0, le=0.1)
    """Of the answers given so at most this share may be another question's."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    """How sure that must be, by what was checked, before an answer is given."""
    check_share: float = Field(default=0.05, ge=0.01, le=1.0)
    """Of the answers that could be given this share is asked of a replica all the same, and compared. 1: all
    are, and none is ever given."""
    history: int = Field(default=0, ge=0, le=20)
    """Messages that may stand before the question, system prompts apart; they must be equal."""
    similarity_min: float = Field(default=0.75, ge=0.3, le=1.0)
    """Questions less alike than this (cosine) are not looked at."""
    answers_alike: float = Field(default=0.9, ge=0.5, le=1.0)
    """Two answers in other words are the same from this on (cosine), where numbers, units, negations, names
    and code are equal as well."""


class TenantCache(Section):
    """How a tenant's requests are answered from the cache."""

    mode: CacheMode | None = None
    """'on', 'ask' (only with the header 'x-steersman-cache: use') or 'off'; the pool's when left out. With
    the header a client may also say 'refresh' or 'off'. A pool's 'off' holds for everybody."""
    share: Name | None = None
    """A group whose tenants are given each other's answers: those that name the same group here, and no
    others. Its own alone when left out."""
    sampled: bool = False
    """Whether requests that are not deterministic (no temperature 0, no seed) are cached as well: they get
    the same answer again then."""
    tools: bool = False
    """Whether requests with tools are cached."""
    join: bool = True
    """Whether a request that equals one under way waits for that one's answer, for as long as its class may
    be held (hold_ms; 30 s at most), instead of being sent as well. A stream's comes in one piece then."""
    mark_usage: bool = False
    """Whether a hit's usage says that its prompt tokens were cached, as OpenAI's dialect can
    (usage.prompt_tokens_details.cached_tokens). A hit then differs from its miss in that. The header
    'x-steersman-cache' says it in any case."""
    charge: Literal["request", "nothing", "tokens"] = "request"
    """What a hit costs of its quotas: a request, nothing, or a request and the answer's tokens."""
    ttl_s: float | None = Field(default=None, ge=1.0, le=2_592_000.0)
    """How long its answers may be given again; cache.ttl_s when left out."""
    bytes_max: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=256 * 1024**3)
    """Bytes for its answers; above it the least recently used go."""
    semantic: TenantSemantic | None = None
    """Whether a question that asks the same in other words gets a kept answer, and how sure that must be;
    `{}` takes the defaults, nobody is given one when left out. Its prompts are kept then, where `cache.store`
    keeps answers."""


class PoolCache(Section):
    """Whether a pool's answers are cached."""

    mode: CacheMode = "on"
    """For tenants that say nothing themselves; 'off' for all."""
    revision: str = Field(default="", max_length=128)
    """What the replicas run exactly (a commit of the model): another text here, and older answers are gone.
    Change it with the model. When left out, what the replicas say by their agents counts."""
