"""What a simulation replays: arrivals, and the workload that they make.

Owns the two values and their statistics. Knows no file, no replica, no strategy; draws nothing by chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import sqrt

NS_PER_S = 1_000_000_000


class WorkloadError(ValueError):
    """A trace or a request for one that cannot be used; the message names file, line and mend."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it reaches the gateway.

    `at_ns` counts from the workload's start and never decreases from one arrival to the next. Tokens
    are at least 1. `output_tokens` is what the model will write: only the replica and the oracle may
    read it; `max_new_tokens` is what the client said (None: nothing). `blocks` are ids of the prompt's
    full prefix blocks, the workload's `block_tokens` tokens each: equal ids mean equal prefixes. `ending` is
    the id of the prompt's last tokens, whether a full block or not; None where nobody knows it. `model` is
    asked for, such as an adapter of the base ("": the simulation's own).
    """

    at_ns: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int | None
    blocks: tuple[int, ...] = ()
    session: str = ""
    ending: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadStats:
    """Means of a workload. Tokens, except the rate (1/s) and `interarrival_cv` (1 is Poisson).

    `uncached_mean` is the prompt that is left behind an infinite cache which never forgets a block:
    the least that any placement can prefill.
    """

    requests: int
    prompt_mean: float
    output_mean: float
    uncached_mean: float
    requests_per_s: float
    interarrival_cv: float


@dataclass(frozen=True)
class Workload:
    """Arrivals in time order. `dropped` and `clipped` count those that did not fit the replicas."""

    name: str
    arrivals: Sequence[Arrival]
    block_tokens: int
    tenants: tuple[str, ...]
    dropped: int = 0
    clipped: int = 0

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last; there is one at least."""
        return (self.arrivals[-1].at_ns - self.arrivals[0].at_ns) / 1e9

    @cached_property
    def stats(self) -> WorkloadStats:
        """The workload's means; `WorkloadError` where it is empty."""
        count = len(self.arrivals)
        if not count:
            raise WorkloadError(f"workload {self.name!r} is empty; widen its time range or its token bounds")
        return WorkloadStats(
            requests=count,
            prompt_mean=sum(arrival.prompt_tokens for arrival in self.arrivals) / count,
            output_mean=sum(arrival.output_tokens for arrival in self.arrivals) / count,
            uncached_mean=_uncached(self) / count,
            requests_per_s=_rate(self.arrivals),
            interarrival_cv=_interarrival_cv(self.arrivals),
        )

    def rescaled(self, requests_per_s: float) -> Workload:
        """The same requests in the same order, time stretched so that the mean rate is this.

        Burstiness (the inter-arrival CV) stays. `WorkloadError` where all arrivals share one instant.
        """
        if not requests_per_s > 0:
            raise WorkloadError(f"a workload's rate must be above 0 requests/s, not {requests_per_s}")
        own = _rate(self.arrivals)
        if not own:
            raise WorkloadError(f"workload {self.name!r} spans no time: its rate cannot be set")
        factor = own / requests_per_s
        return replace(
            self,
            arrivals=tuple(
                replace(arrival, at_ns=round(arrival.at_ns * factor)) for arrival in self.arrivals
            ),
        )

    def head(self, count: int) -> Workload:
        """The first `count` arrivals; tenants stay, so that reports compare."""
        return replace(self, arrivals=tuple(self.arrivals[: max(count, 0)]))


def lru_hit_share(workload: Workload, *, cache_tokens: int) -> float:
    """Prompt tokens found in one LRU cache of `cache_tokens`, of all prompt tokens; 0..1.

    A single cache as large as all replicas' together bounds what perfect affinity finds; one replica's
    share of it is nearer to what round robin finds. Hand it to `capacity` as `hit_share`.
    """
    room = cache_tokens // workload.block_tokens
    held: OrderedDict[int, None] = OrderedDict()
    found = total = 0
    for arrival in workload.arrivals:
        total += arrival.prompt_tokens
        found += min(_matched(arrival.blocks, held) * workload.block_tokens, arrival.prompt_tokens - 1)
        # Deepest first, so that a prefix's beginning is forgotten after its end.
        for block in reversed(arrival.blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)
    return found / total if total else 0.0


def _matched(blocks: tuple[int, ...], held: OrderedDict[int, None] | set[int]) -> int:
    for at, block in enumerate(blocks):
        if block not in held:
            return at
    return len(blocks)


def _uncached(workload: Workload) -> int:
    """The last prompt token is always computed: its logits make the first output token."""
    seen: set[int] = set()
    left = 0
    for arrival in workload.arrivals:
        matched = _matched(arrival.blocks, seen) * workload.block_tokens
        left += max(arrival.prompt_tokens - matched, 1)
        seen.update(arrival.blocks)
    return left


def _rate(arrivals: Sequence[Arrival]) -> float:
    """Gaps over span: unbiased where the span begins and ends with an arrival."""
    if len(arrivals) < 2:
        return 0.0
    span_ns = arrivals[-1].at_ns - arrivals[0].at_ns
    return (len(arrivals) - 1) * NS_PER_S / span_ns if span_ns else 0.0


def _interarrival_cv(arrivals: Sequence[Arrival]) -> float:
    gaps = [later.at_ns - sooner.at_ns for sooner, later in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    if not mean:
        return 0.0
    return sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean
