"""One sequence's bookkeeping inside a replica, and the limits a replica runs under.

Plain state: the rules that change it are `replica.py`'s.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final, NotRequired, Protocol, TypedDict

from extproc.sim.events import SimRequest
from extproc.sim.prefix_cache import EVICTIONS, Lease

#: In which order an engine's queue is served: as it came; the shortest prompt first; every fourth request
#: (by its id) before the others.
ORDERS: Final = ("fifo", "shortest", "urgent")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """TGI's launcher limits; tokens, except the permits (requests) and `max_batch_size` (sequences
    running at once; None no limit). `prefill_parallel` lanes share them out (parallel.py). `slice_tokens` is
    TGI's 1024.

    What follows makes an engine unlike TGI. `prefill_interference` (0..1) is what each other lane's prefill
    under way adds to a prefill that begins: 0 nothing, 1 its whole length, as where they share one card.
    `queue_order` is one of `ORDERS`. The prefix cache keeps `cache_share` (0..1) of the KV memory at
    most, and forgets by `eviction` (prefix_cache.EVICTIONS). With `adapter_places` it serves so many LoRA
    adapters at once, each loaded in `adapter_load_ms` (lora_replica.py); 0: no request needs a place.
    """

    kv_capacity_tokens: int
    max_concurrent_requests: int = 128
    max_batch_prefill_tokens: int = 4096
    max_batch_size: int | None = None
    prefill_parallel: int = 1
    slice_tokens: int = 1024
    block_tokens: int = 16
    prefix_caching: bool = True
    prefill_interference: float = 0.0
    queue_order: str = "fifo"
    cache_share: float = 1.0
    eviction: str = "lru"
    adapter_places: int = 0
    adapter_load_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "kv_capacity_tokens",
            "max_concurrent_requests",
            "max_batch_prefill_tokens",
            "max_batch_size",
            "prefill_parallel",
            "slice_tokens",
            "block_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.adapter_places and self.prefill_parallel > 1:
            raise ValueError("adapters are simulated on replicas of one lane; set prefill_parallel to 1")
        if problems := unlike_problems(self):
            raise ValueError("; ".join(problems))

    def check(self, request: SimRequest) -> None:
        """ValueError where a replica under these limits could never run it."""
        need = request.prompt_tokens + request.max_new_tokens - 1
        if request.prompt_tokens < 1 or not 1 <= request.output_tokens <= request.max_new_tokens:
            raise ValueError(f"impossible token counts in {request!r}")
        if len(request.blocks) * self.block_tokens > request.prompt_tokens:
            raise ValueError("more blocks than the prompt has tokens for")
        if need > self.kv_capacity_tokens:
            raise ValueError(f"needs {need} KV tokens, the replica has {self.kv_capacity_tokens}")


class _Unlike(Protocol):
    """What a replica's limits and its spec both say."""

    @property
    def prefill_interference(self) -> float: ...
    @property
    def queue_order(self) -> str: ...
    @property
    def cache_share(self) -> float: ...
    @property
    def eviction(self) -> str: ...


def unlike_problems(of: _Unlike) -> list[str]:
    """What is wrong with the settings that make an engine unlike TGI, a line each."""
    found = [
        f"{name} must lie in 0..1, not {value}"
        for name in ("prefill_interference", "cache_share")
        if not 0.0 <= (value := getattr(of, name)) <= 1.0
    ]
    found += [
        f"{name} must be one of {', '.join(known)}, not {value!r}"
        for name, known in (("queue_order", ORDERS), ("eviction", EVICTIONS))
        if (value := getattr(of, name)) not in known
    ]
    return found


class SlotState(Enum):
    QUEUED = 0
    PREFILLING = 1
    DECODING = 2
    GONE = 3


class Slot:
    """One request's way through the replica."""

    __slots__ = (
        "admitted_ns",
        "base",
        "blocks",
        "cached",
        "cancelled",
        "first_ns",
        "input_tokens",
        "joined_step",
        "lease",
        "left",
        "request",
        "reserved",
        "slice",
        "state",
        "submitted_ns",
    )

    def __init__(self, request: SimRequest, now_ns: int) -> None:
        self.request = request
        self.submitted_ns = now_ns
        self.state = SlotState.QUEUED
        self.cancelled = False
        self.input_tokens = request.prompt_tokens  # grows by each slice made
        self.blocks: Sequence[Hashable] = request.blocks
        self.base = 0  # tokens made in earlier slices
        self.slice = 0  # tokens to make in this one
        self.left = 0  # prompt tokens still to prefill
        self.reserved = 0
        self.cached = -1  # of the first slice; −1 until admitted
        self.lease: Lease | None = None
        self.joined_step = 0  # the step that made this slice's first token
        self.admitted_ns = -1
        self.first_ns = -1

    def sliced(self, made: int, block_tokens: int) -> None:
        """A slice ended after `made` tokens in all: they become prompt, cacheable at the next slice's end."""
        self.base = made
        self.input_tokens += self.slice
        full, known = self.input_tokens // block_tokens, len(self.blocks)
        own = ((self.request.request_id, "generated", index) for index in range(known, full))
        self.blocks = (*self.blocks, *own)  # nobody else's


class ReplicaConduct(TypedDict):
    """What every kind of replica is made with beside its hardware and limits (see SimReplica)."""

    rng: Random
    noise: NotRequired[float]
    slowdown: NotRequired[float]
    step_events: NotRequired[bool]
