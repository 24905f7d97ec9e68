"""What a service holds of shared quotas: leases to spend without asking, and its own view of the rest.

Owns the arithmetic of leases. No I/O and no clock: books.py and loans.py bring `now_ns`, and what Redis said.

**The bound.** A lease is taken from the shared bucket before it is spent, so it is charged already. What
may come on top of rate · t + burst in any span t is what was leased before it and is spent in it: at most
`LEASE_PART` of a bucket's burst (and of the places in flight) for each service, never older than
`LEASE_NS`. Alone, a service decides on 1/N of each limit, N being the services last seen (or one request
or place, where that is less): all of them together admit no more than the limit again, so that the most
that comes on top of it is one burst and the leases, and what was admitted is charged when Redis is back.
"""

from __future__ import annotations

from dataclasses import dataclass

from extproc.core.quota import share
from extproc.core.quota.share import Scope, Taken
from extproc.core.quota.values import KINDS, Account, Refused, Units

#: One part in so many of a burst, and of the requests in flight, may be leased by a service.
LEASE_PART = 10
#: A lease that was not spent goes back.
LEASE_NS = 2_000_000_000
#: A first lease is for so many requests like the one that asked.
LEASE_REQUESTS = 4


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
    #: Counted in its leases' `unheard`.
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
        for (_, limits), lease in zip(entry.taken.account.scopes, entry.taken.scopes, strict=True):
            if limits.concurrent is not None and isinstance(lease, QuotaLease):
                lease.unheard -= 1


def from_lease(
    account: Account, leases: tuple[QuotaLease, ...], units: Units, *, now_ns: int
) -> tuple[Taken | None, bool]:
    """Take from the leases of all scopes or of none; and whether one of them wants filling up."""
    costs = []
    for (_, limits), lease in zip(account.scopes, leases, strict=True):
        if limits and lease.ends_ns <= now_ns:
            return None, False
        credit = lease.credit
        for bucket in limits.buckets:
            cost = -(-units[bucket.unit] * bucket.window_ns // bucket.limit)
            if cost > credit[bucket.kind]:
                return None, False
            costs.append(cost)
        if limits.concurrent is not None and lease.slots < 1:
            return None, False
    low = False
    at = 0
    for (_, limits), lease in zip(account.scopes, leases, strict=True):
        lease.in_flight += 1
        for bucket in limits.buckets:
            kind, cost = bucket.kind, costs[at]
            at += 1
            lease.credit[kind] -= cost
            lease.used[kind] += cost
            lease.tats[kind] = max(lease.tats[kind], now_ns) + cost
            low = low or 2 * lease.credit[kind] < lease.leased[kind]
        if limits.concurrent is not None:
            lease.slots -= 1
            lease.unheard += 1
            low = low or 4 * lease.slots < limits.concurrent // LEASE_PART
    return Taken(account, leases, costs, 0), low


def begin_loan(leases: tuple[QuotaLease, ...]) -> bool:
    """Whether a loan for these scopes may begin; begins it."""
    if any(lease.lending for lease in leases):
        return False
    for lease in leases:
        lease.lending = True
    return True


def end_loan(leases: tuple[QuotaLease, ...]) -> None:
    """The loan came to nothing that we know of."""
    for lease in leases:
        lease.lending = False
        lease.unsure = True


def alone(
    account: Account, leases: tuple[QuotaLease, ...], units: Units, *, now_ns: int, services: int
) -> Taken | Refused:
    """Decide on this service's share of the limits; what is left of the leases goes back."""
    for lease in leases:
        lease.empty()
    return share.take(account, leases, units, now_ns=now_ns, idle_capacity=False, share=max(services, 1))
