"""How much of its resources a pool's replicas use: KV memory and permits, in histograms that forget slowly.

Owns the histogram and what counts as full. Fed by the service (every endpoint now and then) and by the
simulator (every replica on its clock), so that both are judged alike. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from extproc.core.endpoint import Endpoint

#: Shares at the 99th percentile from which KV memory and request permits are full.
KV_FULL, PERMITS_FULL = 0.9, 0.95
#: Steps of a histogram over 0..1.
STEPS: Final = 100


class ResourceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas use, shares of what each has (0..1); None where no replica says what it has.

    `busy`: the share of looks at which requests were in a replica; `waiting`: at which some waited inside it.
    """

    kv_p50: float | None = None
    kv_p99: float | None = None
    permits_p50: float = 0.0
    permits_p99: float = 0.0
    waiting: float = 0.0
    busy: float = 0.0
    #: Looks that it is made of; those long ago count less.
    looks: float = 0.0


class UseMeter:
    """Looks at one pool's replicas, gathered; `age` makes the past count less."""

    __slots__ = ("_busy", "_kv", "_looks", "_permits", "_waiting")

    def __init__(self) -> None:
        self._kv = [0.0] * (STEPS + 1)
        self._permits = [0.0] * (STEPS + 1)
        self._looks = self._busy = self._waiting = 0.0

    def look(self, kv: float | None, permits: float, *, waiting: bool, busy: bool) -> None:
        """One replica at one moment: shares of KV memory (None: unknown) and of permits, at most 1."""
        if kv is not None:
            self._kv[_step(kv)] += 1.0
        self._permits[_step(permits)] += 1.0
        self._looks += 1.0
        self._waiting += waiting
        self._busy += busy

    def age(self, kept: float) -> None:
        """All that was seen counts `kept` (0..1) times as much from now on."""
        self._kv = [each * kept for each in self._kv]
        self._permits = [each * kept for each in self._permits]
        self._looks *= kept
        self._busy *= kept
        self._waiting *= kept

    def use(self) -> ResourceUse:
        """What was seen; quantiles are the upper edges of steps of one percent."""
        looks = self._looks
        return ResourceUse(
            kv_p50=_quantile(self._kv, 0.5),
            kv_p99=_quantile(self._kv, 0.99),
            permits_p50=_quantile(self._permits, 0.5) or 0.0,
            permits_p99=_quantile(self._permits, 0.99) or 0.0,
            waiting=self._waiting / looks if looks else 0.0,
            busy=self._busy / looks if looks else 0.0,
            looks=looks,
        )


def kv_share(endpoint: Endpoint) -> float | None:
    """The share of KV memory in use as the engine says, else as promised by us; None where unknown."""
    report = endpoint.report
    if report is not None and report.kv_used_tokens is not None and report.kv_capacity_tokens:
        return min(1.0, report.kv_used_tokens / report.kv_capacity_tokens)
    capacity = endpoint.kv_tokens
    return min(1.0, endpoint.load.reserved_tokens / capacity) if capacity else None


def look_at(meter: UseMeter, endpoint: Endpoint) -> None:
    """Take in one endpoint as it is now."""
    report = endpoint.report
    requests = endpoint.load_requests
    meter.look(
        kv_share(endpoint),
        endpoint.load_permits / endpoint.max_concurrent,
        waiting=bool(report and report.waiting),
        busy=requests > 0 or bool(report and report.running),
    )


def _step(share: float) -> int:
    return min(STEPS, max(0, round(share * STEPS)))


def _quantile(histogram: Sequence[float], share: float) -> float | None:
    total = sum(histogram)
    if total <= 0.0:
        return None
    below = 0.0
    for step, count in enumerate(histogram):
        below += count
        if below >= share * total:
            return step / STEPS
    return 1.0
