"""What is said to the scripts in Redis, and what they answer: lua/reserve.lua and lua/settle.lua. Pure.

Owns the shape of both. What is given back of a lease is gone from it once it is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from extproc.core.quota import Refused, share
from extproc.core.quota.values import CONCURRENT, NO_UNITS, Account, Units
from extproc.state.quota.journal import Op
from extproc.state.quota.lease import LEASE_PART, LEASE_REQUESTS, QuotaLease


def reserving(
    how: str,
    account: Account,
    leases: tuple[QuotaLease, ...],
    *,
    units: Units = NO_UNITS,
    lend: bool = False,
    give_back: bool = False,
    idle_capacity: bool = False,
    costs: list[int] | None = None,
) -> dict[str, Any]:
    """The buckets and scopes of an operation for lua/reserve.lua; what is given back is gone here.

    `give_back` returns all that is left of the lease, `lend` alone asks for more beside it. With `ask` the
    loan is made only if the reservation is granted: what a refusal leaves in the bucket is for the next one
    to ask, whichever service that is.
    """
    buckets: list[list[Any]] = []
    scopes: list[list[Any]] = []
    at = 0
    for (name, limits), lease in zip(account.scopes, leases, strict=True):
        for bucket in limits.buckets:
            kind = bucket.kind
            cost = bucket.cost_ns(units[bucket.unit]) if costs is None else costs[at]
            at += 1
            back, want = 0, 0
            if give_back:
                back, lease.credit[kind] = lease.credit[kind], 0
            if lend or give_back:
                back, lease.owed[kind] = back + lease.owed[kind], 0
            if lend:
                most = bucket.burst_ns // LEASE_PART
                lease.used[kind] += cost
                want = max(LEASE_REQUESTS * cost, 2 * lease.used[kind], lease.leased[kind] // 2)
                want = max(0, min(want, most) - lease.credit[kind]) if cost <= most else 0
                lease.used[kind] = 0
            extra = bucket.extra_cost_ns(units[bucket.unit]) if idle_capacity and bucket.extra else 0
            buckets.append(
                [
                    f"{name}/{bucket.name}",
                    cost,
                    bucket.burst_ns,
                    extra,
                    want,
                    back,
                    bucket.unit,
                    bucket.window_ns / bucket.limit,
                    bucket.window_ns / bucket.extra if bucket.extra else 0.0,
                ]
            )
        most_flying, want, back, held = -1, 0, 0, -1
        if give_back:
            back, lease.slots = lease.slots, 0
        if lease.unsure and (lend or give_back):
            held, lease.unsure = lease.slots + lease.unheard, False
        if limits.concurrent is not None:
            lent = limits.concurrent_lent if idle_capacity else limits.concurrent
            most_flying = limits.concurrent if lent is None else lent
            if lend:
                want = max(0, limits.concurrent // LEASE_PART - lease.slots)
        scopes.append([name, most_flying, want, back, held])
    return {"how": how, "lend": lend or give_back, "b": buckets, "c": scopes}


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """What lua/reserve.lua says."""

    ok: bool
    epoch: str
    wait_ns: int
    worst: int
    borrowed: int
    debts: list[int]
    leases: list[int]
    slots: list[int]
    flying: list[int]


def reply(data: bytes) -> ReserveReply:
    """Decode; raises msgspec.MsgspecError or ValueError for what no script of ours says."""
    ok, epoch, wait, worst, loans, debts, leases, slots, flying = msgspec.msgpack.decode(data)
    return ReserveReply(
        bool(ok),
        str(epoch),
        int(wait),
        int(worst),
        sum(1 << at for at, lent in enumerate(loans) if lent),
        [int(debt) for debt in debts],
        [int(lease) for lease in leases],
        [int(slot) for slot in slots],
        [int(number) for number in flying],
    )


def refusal(
    answer: ReserveReply, account: Account, leases: tuple[QuotaLease, ...], *, now_ns: int
) -> Refused:
    """What was in the way, counted there."""
    scopes = list(zip(account.scopes, leases, strict=True))
    limits = [(name, each.name, each.kind, lease) for (name, its), lease in scopes for each in its.buckets]
    limits += [(name, CONCURRENT, -1, lease) for (name, _), lease in scopes]
    scope, limit, kind, lease = limits[answer.worst]
    share.throttled(lease, kind)
    figures = share.figures(account, leases, now_ns=now_ns)
    return Refused(scope, limit, answer.wait_ns / 1e9, figures)


def count_borrowed(answer: ReserveReply, account: Account, leases: tuple[QuotaLease, ...]) -> None:
    """Count what was lent of idle capacity where it was."""
    at = 0
    for (_, limits), lease in zip(account.scopes, leases, strict=True):
        for bucket in limits.buckets:
            if answer.borrowed >> at & 1:
                share.lent(lease, bucket.kind)
            at += 1


def ending(op: Op) -> dict[str, Any]:
    """The operation for lua/settle.lua."""
    entry = op.entry
    taken = entry.taken if entry else None
    buckets: list[list[Any]] = []
    at = 0
    for name, limits in op.account.scopes:
        for bucket in limits.buckets:
            field, unit_cost = f"{name}/{bucket.name}", bucket.window_ns / bucket.limit
            if taken is not None and taken.borrowed >> at & 1:
                field, unit_cost = field + "~", bucket.window_ns / bucket.extra
            paid = entry.costs[at] if entry is not None and entry.paid else 0
            buckets.append([field, paid, bucket.unit, unit_cost])
            at += 1
    return {
        "how": op.how,
        "id": op.id,
        "attempt": entry.attempt if entry else "",
        "epoch": entry.epoch if entry else "",
        "own": entry is not None,
        "c": [name for name, limits in op.account.scopes if limits.concurrent is not None]
        if entry is not None and entry.unheard
        else [],
        "a": list(op.units),
        "b": buckets,
    }
