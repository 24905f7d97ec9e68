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
    """Where answers are kept: in this service's memory, or in the Redis of `sharing`, for all services."""
    store_budget_ms: int = Field(default=5, ge=1, le=1_000)
    """How long a request waits for Redis; what takes longer is a miss."""
    keys_file: str | None = Field(default=None, min_length=1)
    """A file with keys that answers in Redis are encrypted with (AES-256-GCM), one a line, of 64 hex digits:
    from 'openssl rand -hex 32'. The first encrypts, each of them decrypts. Not encrypted when left out."""
    keys_env: str | None = Field(default=None, min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable with those keys, blanks between them. Either this or keys_file."""


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


class PoolCache(Section):
    """Whether a pool's answers are cached."""

    mode: CacheMode = "on"
    """For tenants that say nothing themselves; 'off' for all."""
    revision: str = Field(default="", max_length=128)
    """What the replicas run exactly (a commit of the model): another text here, and older answers are gone.
    Change it with the model. When left out, what the replicas say by their agents counts."""
