"""One sequence's bookkeeping inside a replica, and the limits a replica runs under.

Plain state: the rules that change it are `replica.py`'s.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

from extproc.sim.events import SimRequest
from extproc.sim.prefix_cache import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """TGI's launcher limits; tokens, except the permits (requests) and `max_batch_size` (sequences
    running at once; None no limit). `prefill_parallel` lanes share them out (parallel.py). `slice_tokens` is
    TGI's 1024.
    """

    kv_capacity_tokens: int
    max_concurrent_requests: int = 128
    max_batch_prefill_tokens: int = 4096
    max_batch_size: int | None = None
    prefill_parallel: int = 1
    slice_tokens: int = 1024
    block_tokens: int = 16
    prefix_caching: bool = True

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
