"""What waits, what is turned away, and the bounds on both: the fair queue's value types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

#: Further than any clock goes.
NEVER_NS = 1 << 62


class Tokens(Protocol):
    """What a request is predicted to cost, or has cost, in tokens over all its sequences."""

    @property
    def input_tokens(self) -> int: ...

    @property
    def output_tokens(self) -> int: ...


@dataclass(slots=True, kw_only=True, eq=False)
class QueuedRequest:
    """A request that waits for a replica. Times are monotonic nanoseconds.

    `klass` is its service class, 0 served first. `prefill_ns` is predicted on an idle replica;
    requests of the same `affinity_group` (prefix, adapter or length class) gain from running on one replica.
    `payload` is the caller's own.
    """

    id: str
    tenant: str
    weight: float
    klass: int
    pool: str
    work: Tokens
    arrived_ns: int
    shed_at_ns: int
    ttft_deadline_ns: int
    prefill_ns: int = 0
    affinity_group: bytes | int | None = None
    permits: int = 1
    #: Its strategy's own order; the queue's where None. One tenant's requests for a pool have the same.
    order: Any = None
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Shed:
    """A held request that is turned away; in `retry_after_s` its tenant's queue will have moved on."""

    held: QueuedRequest
    retry_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    """The queue's named bounds.

    `class_held_max` has one number for each service class. `tenants_held_max` names the tenants whose
    bound is not `tenant_held_max`. `oldest_after_ns` is how long a tenant's oldest request waits before
    some of its turns are that one's, whatever the order. Counters are kept for at most `counters_max` idle
    tenants a pool and band. `slack_tokens` is how far (in counter units, tokens over weight) a tenant may
    be ahead of the least served and still be released early with its affinity group; of that so many are
    looked at as `affinity_group_tried_max` says.
    `guests_max` is how many that were served above their class are known until they end; of one that was
    forgotten only its own class's counter is corrected.
    """

    held_max: int = 10_000
    class_held_max: tuple[int, ...] = (1_000,)
    tenant_held_max: int = 200
    tenants_held_max: Mapping[str, int] = field(default_factory=dict)
    ageing_ns: int = 2_000_000_000
    oldest_after_ns: int = 10_000_000_000
    counters_max: int = 10_000
    slack_tokens: float = 8_192.0
    affinity_group_tried_max: int = 8
    guests_max: int = 100_000

    def __post_init__(self) -> None:
        assert self.ageing_ns > 0, "no ageing is a long ageing, not none"
        assert self.class_held_max, "there is one class at least"

    def of_tenant(self, tenant: str) -> int:
        """Requests of one tenant held at once."""
        return self.tenants_held_max.get(tenant, self.tenant_held_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a token counts (Sheng et al., OSDI 2024, §3.1: w_p = 1, w_q = 2)."""

    per_input: float = 1.0
    per_output: float = 2.0

    def of(self, work: Tokens) -> float:
        """w_in · input + w_out · output."""
        return self.per_input * work.input_tokens + self.per_output * work.output_tokens
