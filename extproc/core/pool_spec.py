"""What the configuration says of a pool, as the core knows it. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from extproc.core.adapters import PoolAdapters
from extproc.core.endpoint import PREFILL_BUDGET_TOKENS, Member
from extproc.engines import DEFAULT

#: A zone's worth when none is configured: about what a request of the usual kind costs.
ZONE_PENALTY_TOKENS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """A pool as it is configured; `endpoints` are members, or tuples of a member's fields."""

    name: str
    models: tuple[str, ...]
    strategy: str
    endpoints: tuple[tuple[str, str, int] | Member, ...]
    bytes_per_token: float = 4.0
    output_tokens: int = 256
    zone_penalty_tokens: int = ZONE_PENALTY_TOKENS
    engine: str = DEFAULT
    #: Whether the engine is asked for a stream's usage that the client did not ask for.
    ask_usage: bool = True
    #: Parameters by strategy: of `strategy`, and of those that tenants have instead.
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: KV tokens of a replica that says nothing of its own; 0 unknown.
    kv_capacity_tokens: int = 0
    #: Prompt tokens that a replica computes in one step.
    prefill_budget_tokens: int = PREFILL_BUDGET_TOKENS
    #: The tenants that it is reserved for; None for everybody.
    tenants: frozenset[str] | None = None
    #: Which of its models are LoRA adapters of one base.
    adapters: PoolAdapters | None = None
    #: The other site that it is, whose gateway its endpoints are; "" for a pool of replicas.
    site: str = ""
    #: Whether a replica can be started where none is ready, and how long it takes: to react, and to load.
    starts: bool = False
    load_ns: int = 0
    reaction_ns: int = 0
