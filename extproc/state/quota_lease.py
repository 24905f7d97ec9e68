"""What a service holds of shared quotas: leases to spend without asking, and its own view of the rest.

Owns the arithmetic of leases and the words that go to the scripts (lua/quota_*.lua). No I/O and no clock:
the shell (quota_redis.py) brings bytes and `now_ns`.

**The bound.** A lease is taken from the shared bucket before it is spent, so it is charged already. What
may come on top of rate · t + burst in any span t is what was leased before it and is spent in it: at most
`LEASE_PART` of a bucket's burst (and of the places in flight) for each service, never older than
`LEASE_NS`. Alone, a service decides on 1/N of each limit, N being the services last seen (or one request
or place, where that is less): all of them together admit no more than the limit again, so that the most
that comes on top of it is one burst and the leases, and what was admitted is charged when Redis is back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from extproc.core.quota import share
from extproc.core.quota.share import Scope, Taken
from extproc.core.quota.values import KINDS, Account, Refused

#: One part in so many of a burst, and of the requests in flight, may be leased by a service.
LEASE_PART = 10
#: A lease that was not spent goes back.
LEASE_NS = 2_000_000_000
#: A first lease is for so many requests like the one that asked.
LEASE_REQUESTS = 4

Units = tuple[int, int, int, int, int]


class QuotaLease(Scope):
    """A scope as one service sees it.

    `tats` is the shared debt as last heard, less our own unspent lease: what it would be if we gave all
    back. `credit` is that lease in nanoseconds of bucket by kind, `slots` places in flight to give away.
    """

    __slots__ = (
        "credit",
        "ends_ns",
        "flying",
        "leased",
        "lending",
        "owed",
        "slots",
        "unheard",
        "unsure",
        "used",
    )

    def __init__(self) -> None:
        super().__init__()
        self.credit = [0] * len(KINDS)
        #: The size of the last lease, and what was used since it came.
        self.leased = [0] * len(KINDS)
        self.used = [0] * len(KINDS)
        #: Left of leases that we spend no more of: charged there, so it goes back with the next words.
        self.owed = [0] * len(KINDS)
        self.slots = 0
        #: Reservations taken from the lease that Redis has not been told of: still part of the lease there.
        self.unheard = 0
        self.ends_ns = 0
        #: The answer to a loan was lost: Redis may believe us to have more than we do.
        self.unsure = False
        #: Requests in flight of all services, as last heard.
        self.flying = 0
        #: A loan is under way: no second one, or they would overwrite each other.
        self.lending = False

    def idle(self, now_ns: int) -> bool:
        """Nothing is lost with it."""
        if self.lending or self.ends_ns or self.unheard or any(self.owed):
            return False
        return super().idle(now_ns)

    def empty(self) -> None:
        """Spend no more of the lease: Redis gets it back when it is next spoken to."""
        if self.ends_ns:
            self.owed = [owed + credit for owed, credit in zip(self.owed, self.credit, strict=True)]
            self.credit = [0] * len(KINDS)
            self.unsure = self.unsure or self.slots > 0
            self.slots = self.ends_ns = 0

    def void(self) -> None:
        """Redis has forgotten the lease: nobody paid for it."""
        self.credit, self.owed = [0] * len(KINDS), [0] * len(KINDS)
        self.slots = self.ends_ns = 0


@dataclass(slots=True)
class LeasedReservation:
    """A reservation of this service; `paid` when Redis was charged before we granted it."""

    taken: Taken
    units: Units
    attempt: str
    paid: bool
    epoch: str
    heard_ns: int
    #: Counted in its wallets' `unheard`.
    unheard: bool = False
    #: What it cost when it was taken, where a running request has grown since.
    began: list[int] | None = None

    @property
    def costs(self) -> list[int]:
        """What it cost when it was taken: what a lease, or Redis, was charged for it."""
        return self.taken.costs if self.began is None else self.began


def told(entry: LeasedReservation) -> None:
    """Redis knows of the reservation now, or never will."""
    if entry.unheard:
        entry.unheard = False
        for (_, limits), wallet in zip(entry.taken.account.scopes, entry.taken.scopes, strict=True):
            if limits.concurrent is not None and isinstance(wallet, QuotaLease):
                wallet.unheard -= 1


def from_lease(
    account: Account, wallets: tuple[QuotaLease, ...], units: Units, *, now_ns: int
) -> tuple[Taken | None, bool]:
    """Take from the leases of all scopes or of none; and whether one of them wants filling up."""
    costs = []
    for (_, limits), wallet in zip(account.scopes, wallets, strict=True):
        if limits and wallet.ends_ns <= now_ns:
            return None, False
        credit = wallet.credit
        for bucket in limits.buckets:
            cost = -(-units[bucket.unit] * bucket.window_ns // bucket.limit)
            if cost > credit[bucket.kind]:
                return None, False
            costs.append(cost)
        if limits.concurrent is not None and wallet.slots < 1:
            return None, False
    low = False
    at = 0
    for (_, limits), wallet in zip(account.scopes, wallets, strict=True):
        wallet.in_flight += 1
        for bucket in limits.buckets:
            kind, cost = bucket.kind, costs[at]
            at += 1
            wallet.credit[kind] -= cost
            wallet.used[kind] += cost
            wallet.tats[kind] = max(wallet.tats[kind], now_ns) + cost
            low = low or 2 * wallet.credit[kind] < wallet.leased[kind]
        if limits.concurrent is not None:
            wallet.slots -= 1
            wallet.unheard += 1
            low = low or 4 * wallet.slots < limits.concurrent // LEASE_PART
    return Taken(account, wallets, costs, 0), low


def begin_loan(wallets: tuple[QuotaLease, ...]) -> bool:
    """Whether a loan for these scopes may begin; begins it."""
    if any(wallet.lending for wallet in wallets):
        return False
    for wallet in wallets:
        wallet.lending = True
    return True


def words(
    how: str,
    account: Account,
    wallets: tuple[QuotaLease, ...],
    *,
    units: Units = (0, 0, 0, 0, 0),
    lend: bool = False,
    give_back: bool = False,
    idle_capacity: bool = False,
    costs: list[int] | None = None,
) -> dict[str, Any]:
    """The buckets and scopes of an operation for quota_reserve.lua; what is given back is gone here.

    `give_back` returns all that is left of the lease, `lend` alone asks for more beside it. With `ask` the
    loan is made only if the reservation is granted: what a refusal leaves in the bucket is for the next one
    to ask, whichever service that is.
    """
    buckets: list[list[Any]] = []
    scopes: list[list[Any]] = []
    at = 0
    for (name, limits), wallet in zip(account.scopes, wallets, strict=True):
        for bucket in limits.buckets:
            kind = bucket.kind
            cost = bucket.cost_ns(units[bucket.unit]) if costs is None else costs[at]
            at += 1
            back, want = 0, 0
            if give_back:
                back, wallet.credit[kind] = wallet.credit[kind], 0
            if lend or give_back:
                back, wallet.owed[kind] = back + wallet.owed[kind], 0
            if lend:
                most = bucket.burst_ns // LEASE_PART
                wallet.used[kind] += cost
                want = max(LEASE_REQUESTS * cost, 2 * wallet.used[kind], wallet.leased[kind] // 2)
                want = max(0, min(want, most) - wallet.credit[kind]) if cost <= most else 0
                wallet.used[kind] = 0
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
            back, wallet.slots = wallet.slots, 0
        if wallet.unsure and (lend or give_back):
            held, wallet.unsure = wallet.slots + wallet.unheard, False
        if limits.concurrent is not None:
            lent = limits.concurrent_lent if idle_capacity else limits.concurrent
            most_flying = limits.concurrent if lent is None else lent
            if lend:
                want = max(0, limits.concurrent // LEASE_PART - wallet.slots)
        scopes.append([name, most_flying, want, back, held])
    return {"how": how, "lend": lend or give_back, "b": buckets, "c": scopes}


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """What quota_reserve.lua says."""

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


def hear(
    answer: ReserveReply,
    account: Account,
    wallets: tuple[QuotaLease, ...],
    *,
    lent: bool,
    asked_ns: int,
    now_ns: int,
) -> None:
    """Take loans and debts from an answer. A lease is as old as the question."""
    at = 0
    for number, ((_, limits), wallet) in enumerate(zip(account.scopes, wallets, strict=True)):
        for bucket in limits.buckets:
            kind, lease = bucket.kind, answer.leases[at]
            if lent:
                wallet.credit[kind] += lease
                wallet.leased[kind] = max(wallet.credit[kind], 0)
            wallet.tats[kind] = now_ns + answer.debts[at] - wallet.credit[kind] - wallet.owed[kind]
            at += 1
        wallet.flying = answer.flying[number]
        if lent:
            wallet.slots += answer.slots[number]
            wallet.lending = False
            wallet.ends_ns = asked_ns + LEASE_NS


def not_given_back(account: Account, wallets: tuple[QuotaLease, ...], words: dict[str, Any]) -> None:
    """Redis refused these words unread: what they gave back is still owed."""
    at = 0
    for (_, limits), wallet in zip(account.scopes, wallets, strict=True):
        for bucket in limits.buckets:
            wallet.owed[bucket.kind] += words["b"][at][5]
            at += 1


def alone(
    account: Account, wallets: tuple[QuotaLease, ...], units: Units, *, now_ns: int, services: int
) -> Taken | Refused:
    """Decide on this service's share of the limits; what is left of the leases goes back."""
    for wallet in wallets:
        wallet.empty()
    return share.take(account, wallets, units, now_ns=now_ns, idle_capacity=False, share=max(services, 1))
