"""The words of quotas: limits, amounts, accounts, and what an attempt to reserve comes to.

Owns the units. A limit over a window is a bucket in *time*: a unit costs window/limit nanoseconds, and
what may be used at once is `burst` windows' worth of them (GCRA). Amounts become integers before anything
is reckoned, always rounded up: GPU time in microseconds, money in billionths of the currency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import msgspec

MINUTE_NS, HOUR_NS = 60 * 1_000_000_000, 3600 * 1_000_000_000
DAY_NS, MONTH_NS = 24 * HOUR_NS, 30 * 24 * HOUR_NS

#: Indexes into an amount's units.
REQUESTS, INPUT, OUTPUT, GPU_US, MONEY = range(5)
GPU_US_PER_S, MONEY_PER_CURRENCY = 1_000_000, 1_000_000_000

#: An amount in whole units, by those indexes.
Units = tuple[int, int, int, int, int]
NO_UNITS: Units = (0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class QuotaUnit:
    """A sort of limit: the one row from which the file's setting, the books and the reference are made.

    Its name in the file, what it counts, over how long, the largest that may be written, and what it is in a
    sentence. `scale` is the smallest unit's share: whole numbers where it is 1.
    """

    name: str
    unit: int
    window_ns: int
    most: float
    about: str
    scale: int = 1
    #: Money is never lent: idle replicas do not make a budget larger.
    lent: bool = True


#: The rows' order is that of the books in memory; files and Redis know them by name.
KINDS = (
    QuotaUnit("requests_per_minute", REQUESTS, MINUTE_NS, 10_000_000, "Requests a minute."),
    QuotaUnit("input_tokens_per_minute", INPUT, MINUTE_NS, 10_000_000_000, "Prompt tokens a minute."),
    QuotaUnit("output_tokens_per_minute", OUTPUT, MINUTE_NS, 10_000_000_000, "Generated tokens a minute."),
    QuotaUnit("input_tokens_per_hour", INPUT, HOUR_NS, 100_000_000_000, "Prompt tokens an hour."),
    QuotaUnit("output_tokens_per_hour", OUTPUT, HOUR_NS, 100_000_000_000, "Generated tokens an hour."),
    QuotaUnit(
        "gpu_seconds_per_hour",
        GPU_US,
        HOUR_NS,
        100_000_000.0,
        "Seconds of a replica's time an hour: predicted at the decision, measured at the end.",
        GPU_US_PER_S,
    ),
    QuotaUnit(
        "budget_per_day",
        MONEY,
        DAY_NS,
        1e12,
        "Currency a day (24 h sliding), by the pools' prices.",
        MONEY_PER_CURRENCY,
        lent=False,
    ),
    QuotaUnit(
        "budget_per_month",
        MONEY,
        MONTH_NS,
        1e12,
        "Currency a month (30 days sliding), by the pools' prices.",
        MONEY_PER_CURRENCY,
        lent=False,
    ),
)
CONCURRENT = "concurrent_requests"


class Amounts(msgspec.Struct, frozen=True):
    """What one request uses. Negative and non-finite figures count as nothing."""

    requests: int
    input_tokens: int
    output_tokens: int
    gpu_ms: float
    cost: float

    def units(self) -> Units:
        """Whole units by REQUESTS … MONEY, rounded up."""
        return (
            max(self.requests, 0),
            max(self.input_tokens, 0),
            max(self.output_tokens, 0),
            _whole(self.gpu_ms, GPU_US_PER_S // 1000),
            _whole(self.cost, MONEY_PER_CURRENCY),
        )


NOTHING = Amounts(0, 0, 0, 0.0, 0.0)


def _whole(amount: float, scale: int) -> int:
    if not 0.0 < amount < math.inf:
        return 0
    # A hair of floating point above a whole number is no further unit.
    return math.ceil(amount * scale - 1e-6)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit over a window. `limit` is in the kind's smallest units, `burst_ns` in time."""

    kind: int
    unit: int
    limit: int
    window_ns: int
    burst_ns: int
    #: What idle capacity adds to the limit; a bucket of its own, so that it can be gone at once.
    extra: int

    @property
    def name(self) -> str:
        """The limit's name in the file."""
        return KINDS[self.kind].name

    def cost_ns(self, units: int) -> int:
        """What so many units cost in time, rounded up."""
        return -(-units * self.window_ns // self.limit)

    def extra_cost_ns(self, units: int) -> int:
        """The same in the bucket of what is borrowed."""
        return -(-units * self.window_ns // self.extra)


@dataclass(frozen=True, slots=True)
class ScopeLimits:
    """The limits of one scope, those alone that are set; `concurrent` None means any number."""

    buckets: tuple[Bucket, ...] = ()
    concurrent: int | None = None
    #: Requests in flight at once while capacity is idle.
    concurrent_lent: int | None = None

    def __bool__(self) -> bool:
        return bool(self.buckets) or self.concurrent is not None

    def scaled(self, factor: float) -> ScopeLimits:
        """The same limits times a factor, none below one unit (dynamic adjustment; budgets stay)."""
        assert factor > 0.0, factor
        return ScopeLimits(
            tuple(
                replace(
                    bucket,
                    limit=max(1, round(bucket.limit * factor)),
                    extra=round(bucket.extra * factor),
                )
                if KINDS[bucket.kind].lent
                else bucket
                for bucket in self.buckets
            ),
            None if self.concurrent is None else max(1, round(self.concurrent * factor)),
            None if self.concurrent_lent is None else max(1, round(self.concurrent_lent * factor)),
        )


def limits(
    *, concurrent_requests: int | None = None, burst: float = 1.0, borrow: float = 1.0, **rates: float | None
) -> ScopeLimits:
    """Limits from a quota's plain values; the names are the file's (config: tenants.quota)."""
    buckets = []
    for number, kind in enumerate(KINDS):
        if (value := rates.pop(kind.name, None)) is not None:
            limit = max(1, round(value * kind.scale))
            buckets.append(
                Bucket(
                    kind=number,
                    unit=kind.unit,
                    limit=limit,
                    window_ns=kind.window_ns,
                    burst_ns=round(kind.window_ns * burst),
                    extra=math.floor(limit * (borrow - 1.0)) if kind.lent else 0,
                )
            )
    assert not rates, f"no limits: {', '.join(rates)}"
    lent = None if concurrent_requests is None else math.floor(concurrent_requests * borrow)
    return ScopeLimits(tuple(buckets), concurrent_requests, lent)


@dataclass(frozen=True, slots=True)
class Account:
    """Who pays: the scopes that a request is counted in, each with its limits.

    Scope names are unique within a tenant ("tenant", "model:NAME", "key:NAME"); the same name is the
    same bucket. Build one per (tenant, key, model) at configuration and keep it.
    """

    tenant: str
    key: str
    model: str
    scopes: tuple[tuple[str, ScopeLimits], ...]
    #: The scopes' names in the books, which are the tenant's and the scope's.
    names: tuple[tuple[str, str], ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple((self.tenant, name) for name, _ in self.scopes))


@dataclass(frozen=True, slots=True)
class RateFigures:
    """The tightest scope's figures for `x-ratelimit-*`; limits are None where there is none.

    `remaining` is what may be used now, `reset_s` the seconds until nothing of it is used.
    """

    limit_requests: int | None = None
    remaining_requests: int = 0
    reset_requests_s: float = 0.0
    limit_tokens: int | None = None
    remaining_tokens: int = 0
    reset_tokens_s: float = 0.0

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The response headers, as names and values."""
        found: tuple[tuple[str, str], ...] = ()
        if self.limit_requests is not None:
            found += (
                ("x-ratelimit-limit-requests", str(self.limit_requests)),
                ("x-ratelimit-remaining-requests", str(self.remaining_requests)),
                ("x-ratelimit-reset-requests", f"{self.reset_requests_s:.3f}s"),
            )
        if self.limit_tokens is not None:
            found += (
                ("x-ratelimit-limit-tokens", str(self.limit_tokens)),
                ("x-ratelimit-remaining-tokens", str(self.remaining_tokens)),
                ("x-ratelimit-reset-tokens", f"{self.reset_tokens_s:.3f}s"),
            )
        return found


@dataclass(frozen=True, slots=True)
class Refused:
    """Not now: the scope and limit that is longest in the way, and when the same would be granted.

    `retry_after_s` is exact where nobody else comes; for concurrent requests it is a second, because
    nobody knows when one ends.
    """

    scope: str
    limit: str
    retry_after_s: float
    figures: RateFigures


class Granted(msgspec.Struct, frozen=True):
    """Reserved in every scope; `borrowed` when idle capacity had to be lent for it."""

    figures: RateFigures
    borrowed: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """The local lease does not suffice: await `ask`."""


ASK = Ask()


@dataclass(frozen=True, slots=True)
class LimitUsage:
    """One limit of one scope as it stands, in the file's units; counts are since the books began."""

    scope: str
    limit: str
    allowed: float
    used: float
    borrowed: int
    throttled: int
