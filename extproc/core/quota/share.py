"""Exact arithmetic of buckets (GCRA), on the state of a request's scopes together.

Owns what a scope's state is, and the one rule of admission. A bucket is one integer: the theoretical
arrival time (TAT) up to which it is used. A cost moves it on from max(TAT, now), a refund moves it back;
what lies before now is an empty bucket, so no refund makes a bucket more than full.

A cost is taken when TAT − now + cost ≤ burst. One that is larger than the whole burst is taken when the
bucket is empty, and holds it for as long as it costs: the rate is kept, and Retry-After has an answer.

Borrowing is a second TAT beside the first, for (borrow − 1) times the rate and the burst. What does not
fit into a tenant's own is taken from it, whole, while capacity is idle. Under contention it is not looked
at: from that moment the tenant has exactly its own quota, neither diminished nor excused by what it
borrowed, and the second TAT goes on running down by itself (its debt is kept, not forgiven).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from extproc.core.quota.values import (
    CONCURRENT,
    INPUT,
    KINDS,
    OUTPUT,
    REQUESTS,
    Account,
    LimitUsage,
    RateFigures,
    Refused,
)

#: What a client is told to wait when it has too many requests in flight.
CONCURRENT_RETRY_S = 1.0


class Scope:
    """One scope's state: TATs by kind, requests in flight, and what it was refused and lent by kind."""

    __slots__ = ("borrowed", "extra", "in_flight", "tats", "throttled")

    def __init__(self) -> None:
        self.tats = [0] * len(KINDS)
        self.extra: list[int] | None = None
        self.in_flight = 0
        self.borrowed: dict[int, int] | None = None
        self.throttled: dict[int, int] | None = None

    def idle(self, now_ns: int) -> bool:
        """Whether forgetting it would change no decision."""
        if self.in_flight or max(self.tats) > now_ns:
            return False
        return self.extra is None or max(self.extra) <= now_ns


@dataclass(slots=True)
class Taken:
    """What a reservation took: costs in time by scope and bucket, in order, and which were borrowed.

    `share` is into how many parts the limits were divided when it was taken.
    """

    account: Account
    scopes: tuple[Scope, ...]
    costs: list[int]
    borrowed: int
    share: int = 1
    #: False once it has left the requests in flight.
    flies: bool = True
    #: When its request was last heard of.
    heard_ns: int = 0


def take(
    account: Account,
    scopes: tuple[Scope, ...],
    units: Sequence[int],
    *,
    now_ns: int,
    idle_capacity: bool,
    share: int = 1,
) -> Taken | Refused:
    """Take from every bucket of every scope, or from none.

    `share` divides every limit by that many services (each cost counts as often).
    """
    costs: list[int] = []
    borrowed = 0
    bit = 1
    worst_ns = 0
    worst: tuple[int, int, str] | None = None
    for at, ((name, limits), scope) in enumerate(zip(account.scopes, scopes, strict=True)):
        tats = scope.tats
        for bucket in limits.buckets:
            cost = -(-units[bucket.unit] * bucket.window_ns * share // bucket.limit)
            debt = tats[bucket.kind] - now_ns
            if debt > 0 and cost:
                burst = bucket.burst_ns
                wait = debt + cost - burst if cost <= burst else debt
                if wait > 0:
                    if idle_capacity and bucket.extra:
                        cost_extra = bucket.extra_cost_ns(units[bucket.unit] * share)
                        debt = scope.extra[bucket.kind] - now_ns if scope.extra is not None else 0
                        wait_extra = debt + cost_extra - burst if cost_extra <= burst else debt
                        if debt <= 0 or wait_extra <= 0:
                            wait = 0
                            cost = cost_extra
                            borrowed |= bit
                        else:
                            wait = min(wait, wait_extra)
                    if wait > worst_ns:
                        worst_ns = wait
                        worst = (at, bucket.kind, bucket.name)
            costs.append(cost)
            bit <<= 1
        if limits.concurrent is not None:
            most = limits.concurrent_lent if idle_capacity else limits.concurrent
            assert most is not None, name
            if scope.in_flight >= max(1, most // share):
                wait = round(CONCURRENT_RETRY_S * 1e9)
                if wait > worst_ns:
                    worst_ns = wait
                    worst = (at, -1, CONCURRENT)
    if worst is not None:
        number, kind, limit = worst
        throttled(scopes[number], kind)
        return Refused(
            account.scopes[number][0], limit, worst_ns / 1e9, figures(account, scopes, now_ns=now_ns)
        )
    _commit(account, scopes, costs, borrowed, now_ns)
    return Taken(account, scopes, costs, borrowed, share, True, now_ns)


def _commit(
    account: Account, scopes: tuple[Scope, ...], costs: list[int], borrowed: int, now_ns: int
) -> None:
    at = 0
    for (_, limits), scope in zip(account.scopes, scopes, strict=True):
        scope.in_flight += 1
        tats = scope.tats
        for bucket in limits.buckets:
            if borrowed and borrowed >> at & 1:
                charge(extras(scope), bucket.kind, costs[at], now_ns)
                lent(scope, bucket.kind)
            else:
                tat = tats[bucket.kind]
                tats[bucket.kind] = max(tat, now_ns) + costs[at]
            at += 1
        if limits.concurrent is not None and scope.in_flight > limits.concurrent:
            lent(scope, -1)


def force(account: Account, scopes: tuple[Scope, ...], units: Sequence[int], *, now_ns: int) -> list[int]:
    """Charge what has been used already, whatever the limits say; returns the costs."""
    costs = []
    for (_, limits), scope in zip(account.scopes, scopes, strict=True):
        for bucket in limits.buckets:
            cost = bucket.cost_ns(units[bucket.unit])
            charge(scope.tats, bucket.kind, cost, now_ns)
            costs.append(cost)
    return costs


def credit(account: Account, scopes: tuple[Scope, ...], units: Sequence[int], *, now_ns: int) -> None:
    """Give back what was used, at most all of it."""
    for (_, limits), scope in zip(account.scopes, scopes, strict=True):
        for bucket in limits.buckets:
            charge(scope.tats, bucket.kind, -bucket.cost_ns(units[bucket.unit]), now_ns)


def settle(taken: Taken, units: Sequence[int], *, now_ns: int) -> list[int]:
    """Charge or refund the difference to the real counts; returns what it came to in the end."""
    real = []
    at = 0
    for (_, limits), scope in zip(taken.account.scopes, taken.scopes, strict=True):
        for bucket in limits.buckets:
            many = units[bucket.unit] * taken.share
            if taken.borrowed >> at & 1:
                cost = bucket.extra_cost_ns(many)
                charge(extras(scope), bucket.kind, cost - taken.costs[at], now_ns)
            else:
                cost = bucket.cost_ns(many)
                charge(scope.tats, bucket.kind, cost - taken.costs[at], now_ns)
            real.append(cost)
            at += 1
    land(taken)
    return real


def grow(taken: Taken, units: Sequence[int], *, now_ns: int) -> int:
    """Charge where a running request has used more than it took; returns by how much, over all buckets."""
    grown = at = 0
    for (_, limits), scope in zip(taken.account.scopes, taken.scopes, strict=True):
        for bucket in limits.buckets:
            many = units[bucket.unit] * taken.share
            borrowed = taken.borrowed >> at & 1
            cost = bucket.extra_cost_ns(many) if borrowed else bucket.cost_ns(many)
            if (more := cost - taken.costs[at]) > 0:
                charge(extras(scope) if borrowed else scope.tats, bucket.kind, more, now_ns)
                taken.costs[at] = cost
                grown += more
            at += 1
    return grown


def land(taken: Taken) -> None:
    """Leave the requests in flight, once."""
    if taken.flies:
        taken.flies = False
        for scope in taken.scopes:
            scope.in_flight -= 1
            assert scope.in_flight >= 0, taken.account


def charge(tats: list[int], kind: int, cost_ns: int, now_ns: int) -> None:
    """Move a TAT on, or back when the cost is negative: never to before an empty bucket."""
    tats[kind] = max(max(tats[kind], now_ns) + cost_ns, now_ns) if cost_ns else tats[kind]


def extras(scope: Scope) -> list[int]:
    """The TATs of what is borrowed, made when first needed."""
    if scope.extra is None:
        scope.extra = [0] * len(KINDS)
    return scope.extra


def lent(scope: Scope, kind: int) -> None:
    """Count a loan; kind −1 is a request in flight."""
    if scope.borrowed is None:
        scope.borrowed = {}
    scope.borrowed[kind] = scope.borrowed.get(kind, 0) + 1


def throttled(scope: Scope, kind: int) -> None:
    """Count a refusal; kind −1 is a request in flight."""
    if scope.throttled is None:
        scope.throttled = {}
    scope.throttled[kind] = scope.throttled.get(kind, 0) + 1


def figures(account: Account, scopes: tuple[Scope, ...], *, now_ns: int) -> RateFigures:
    """What `x-ratelimit-*` says: of all scopes the fewest requests and the fewest tokens left."""
    requests: tuple[int, int, int] | None = None
    tokens: tuple[int, int, int] | None = None
    for (_, limits), scope in zip(account.scopes, scopes, strict=True):
        tats = scope.tats
        for bucket in limits.buckets:
            unit = bucket.unit
            if unit > OUTPUT:
                continue
            debt = tats[bucket.kind] - now_ns
            if debt < 0:
                debt = 0
            left = bucket.burst_ns - debt
            remaining = left * bucket.limit // bucket.window_ns if left > 0 else 0
            if unit == REQUESTS:
                if requests is None or remaining < requests[0]:
                    requests = (remaining, bucket.limit, debt)
            elif tokens is None or remaining < tokens[0]:
                tokens = (remaining, bucket.limit, debt)
    if requests is None and tokens is None:
        return NO_FIGURES
    remaining_requests, limit_requests, reset_requests = requests or (0, None, 0)
    remaining_tokens, limit_tokens, reset_tokens = tokens or (0, None, 0)
    return RateFigures(
        limit_requests,
        remaining_requests,
        reset_requests / 1e9,
        limit_tokens,
        remaining_tokens,
        reset_tokens / 1e9,
    )


NO_FIGURES = RateFigures()
assert (REQUESTS, INPUT, OUTPUT) == (0, 1, 2)


def usage(account: Account, scopes: Sequence[Scope | None], *, now_ns: int) -> tuple[LimitUsage, ...]:
    """Every limit of an account as it stands; a scope that is not known has used nothing."""
    found = []
    for (name, limits), known in zip(account.scopes, scopes, strict=True):
        scope = known or Scope()
        borrowed, refused = scope.borrowed or {}, scope.throttled or {}
        for bucket in limits.buckets:
            kind = KINDS[bucket.kind]
            used_ns = max(scope.tats[bucket.kind] - now_ns, 0)
            found.append(
                LimitUsage(
                    name,
                    kind.name,
                    bucket.limit / kind.scale,
                    used_ns * bucket.limit / bucket.window_ns / kind.scale,
                    borrowed.get(bucket.kind, 0),
                    refused.get(bucket.kind, 0),
                )
            )
        if limits.concurrent is not None:
            found.append(
                LimitUsage(
                    name,
                    CONCURRENT,
                    limits.concurrent,
                    scope.in_flight,
                    borrowed.get(-1, 0),
                    refused.get(-1, 0),
                )
            )
    return tuple(found)
