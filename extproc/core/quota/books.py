"""The books: reservations by id over the scopes' states; exact, of one process, and bounded.

Owns the life of a reservation: reserved → settled, cancelled, or expired and then perhaps settled late.
Each id is charged once, whoever decided it; the sums in `totals` show that nothing is lost.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Protocol

from extproc.core.quota import share
from extproc.core.quota.scopes import Scopes
from extproc.core.quota.share import Scope, Taken
from extproc.core.quota.values import Account, Amounts, Ask, Granted, LimitUsage, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaLimits:
    """The books' named bounds."""

    #: A reservation that is not heard of for this long is charged as reserved.
    reservation_ttl_ns: int = 60 * 1_000_000_000
    #: Scopes (tenants, their models and keys) whose use is known; idle ones are forgotten first.
    scopes_max: int = 100_000
    #: Ended ids kept, so that a record that comes twice counts once.
    ended_remembered_max: int = 65_536


class QuotaBooks(Protocol):
    """The port: memory and Redis keep the same contract (tests/state/test_quota_contract.py)."""

    counts: Counter[str]

    def reserve(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        now_ns: int,
        idle_capacity: bool = False,
    ) -> Granted | Refused | Ask:
        """Reserve without waiting; the same id again is granted again, free of charge."""
        ...

    async def ask(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        budget_s: float = 0.005,
        idle_capacity: bool = False,
    ) -> Granted | Refused:
        """After `Ask`: the answer of all services together, or after `budget_s` the local share's."""
        ...

    def settle(
        self, reservation_id: str, actual: Amounts, *, now_ns: int, account: Account | None = None
    ) -> bool:
        """Charge or refund the difference; true for the first time that the id is said to have ended.

        `account` (the record's tenant, key and model) is who pays for an id that is not known here.
        """
        ...

    def renew(self, reservation_id: str, *, now_ns: int, so_far: Amounts | None = None) -> bool:
        """The request still runs; false when it is not known here.

        `so_far` is what it has used: what that is more than was reserved is charged now, and stays so if its
        end is never heard of.
        """
        ...

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """Full refund: the decision never reached Envoy. The id may be reserved again."""
        ...

    def expire(self, *, now_ns: int) -> list[str]:
        """End what was not heard of: its reserved amounts stay charged, its place in flight is free."""
        ...

    def credit(self, account: Account, amounts: Amounts, *, credit_id: str, now_ns: int) -> None:
        """Forgive what was used, at most all of it, once for an id: an operator's word."""
        ...

    def usage(self, account: Account, *, now_ns: int) -> tuple[LimitUsage, ...]:
        """Every limit of the account as it stands."""
        ...


@dataclass(slots=True)
class Held:
    """A reservation that has not ended."""

    taken: Taken
    heard_ns: int


class Books:
    """Exact quotas of one process. Not thread-safe (one event loop owns it)."""

    def __init__(self, limits: QuotaLimits | None = None) -> None:
        self.limits = limits or QuotaLimits()
        self.counts: Counter[str] = Counter()
        #: In nanoseconds of bucket: reserved + added = settled + refunded + expired + outstanding.
        self.totals: Counter[str] = Counter()
        self._scopes = Scopes(Scope, most=self.limits.scopes_max, counts=self.counts)
        self._held: OrderedDict[str, Held] = OrderedDict()
        #: Ended ids; what had expired may still be settled once.
        self._ended: OrderedDict[str, Taken | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def scopes(self) -> int:
        """How many scopes' use is known."""
        return len(self._scopes)

    def outstanding_ns(self) -> int:
        """What is reserved and has not ended, in nanoseconds of bucket."""
        return sum(sum(held.taken.costs) for held in self._held.values())

    def reserve(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        now_ns: int,
        idle_capacity: bool = False,
    ) -> Granted | Refused:
        """Reserve in every scope or in none; never asks."""
        scopes = self._scopes.of(account, now_ns=now_ns)
        if reservation_id in self._held or reservation_id in self._ended:
            self.counts["reserved.again"] += 1
            return Granted(share.figures(account, scopes, now_ns=now_ns), borrowed=False)
        taken = share.take(account, scopes, amounts.units(), now_ns=now_ns, idle_capacity=idle_capacity)
        if isinstance(taken, Refused):
            self.counts["refused"] += 1
            return taken
        self._held[reservation_id] = Held(taken, now_ns)
        self.counts["borrowed" if taken.borrowed else "reserved"] += 1
        self.totals["reserved"] += sum(taken.costs)
        return Granted(share.figures(account, scopes, now_ns=now_ns), borrowed=taken.borrowed != 0)

    async def ask(
        self,
        account: Account,  # noqa: ARG002 - the port's
        reservation_id: str,  # noqa: ARG002
        amounts: Amounts,  # noqa: ARG002
        *,
        budget_s: float = 0.005,  # noqa: ARG002
        idle_capacity: bool = False,  # noqa: ARG002
    ) -> Granted | Refused:
        """Nothing to ask: `reserve` has always decided."""
        raise AssertionError("these books never say Ask")

    def settle(
        self, reservation_id: str, actual: Amounts, *, now_ns: int, account: Account | None = None
    ) -> bool:
        """Take the real counts, once for an id."""
        held = self._held.pop(reservation_id, None)
        if held is not None:
            self._end(reservation_id, None)
            self._difference(held.taken, actual, now_ns)
            self.counts["settled"] += 1
            return True
        if reservation_id in self._ended:
            late = self._ended[reservation_id]
            if late is None:
                self.counts["settled.duplicate"] += 1
                return False
            self._ended[reservation_id] = None
            self.totals["expired"] -= sum(late.costs)
            self._difference(late, actual, now_ns)
            self.counts["settled.late"] += 1
            return True
        self._end(reservation_id, None)
        if account is None:
            self.counts["settled.nobody"] += 1
            return True
        costs = share.force(account, self._scopes.of(account, now_ns=now_ns), actual.units(), now_ns=now_ns)
        self.totals["added"] += sum(costs)
        self.totals["settled"] += sum(costs)
        self.counts["settled.unknown"] += 1
        return True

    def renew(self, reservation_id: str, *, now_ns: int, so_far: Amounts | None = None) -> bool:
        """Begin the time to live anew, and charge what was used beyond the reservation."""
        held = self._held.get(reservation_id)
        if held is None:
            return False
        if so_far is not None:
            self.totals["reserved"] += share.grow(held.taken, so_far.units(), now_ns=now_ns)
        held.heard_ns = now_ns
        self._held.move_to_end(reservation_id)
        return True

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """Give everything back."""
        held = self._held.pop(reservation_id, None)
        if held is not None:
            share.settle(held.taken, (0, 0, 0, 0, 0), now_ns=now_ns)
            self.totals["refunded"] += sum(held.taken.costs)
            self.counts["cancelled"] += 1

    def expire(self, *, now_ns: int) -> list[str]:
        """The ids that have now expired, oldest first."""
        expired = []
        while self._held:
            reservation_id, held = next(iter(self._held.items()))
            if now_ns - held.heard_ns < self.limits.reservation_ttl_ns:
                break
            del self._held[reservation_id]
            share.land(held.taken)
            self.totals["expired"] += sum(held.taken.costs)
            self.counts["expired"] += 1
            self._end(reservation_id, held.taken)
            expired.append(reservation_id)
        return expired

    def credit(self, account: Account, amounts: Amounts, *, credit_id: str, now_ns: int) -> None:
        """Give back what was used."""
        if credit_id in self._ended:
            return
        self._end(credit_id, None)
        share.credit(account, self._scopes.of(account, now_ns=now_ns), amounts.units(), now_ns=now_ns)
        self.counts["credited"] += 1

    def usage(self, account: Account, *, now_ns: int) -> tuple[LimitUsage, ...]:
        """Every limit of the account as it stands; changes nothing."""
        return share.usage(account, self._scopes.known(account), now_ns=now_ns)

    def _difference(self, taken: Taken, actual: Amounts, now_ns: int) -> None:
        real = share.settle(taken, actual.units(), now_ns=now_ns)
        for before, after in zip(taken.costs, real, strict=True):
            self.totals["settled"] += after
            self.totals["refunded" if after < before else "added"] += abs(after - before)

    def _end(self, reservation_id: str, taken: Taken | None) -> None:
        self._ended[reservation_id] = taken
        while len(self._ended) > self.limits.ended_remembered_max:
            self._ended.popitem(last=False)
