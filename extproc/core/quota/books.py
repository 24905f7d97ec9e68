"""The books: reservations by id over the scopes' states; exact, of one process, and bounded.

Owns the life of a reservation: reserved → settled, cancelled, or expired and then perhaps settled late.
Each id is charged once, whoever decided it; the sums in `totals` show that nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from extproc.core.quota import share
from extproc.core.quota.kept import (
    EXPIRED,
    RUNS,
    WAITS,
    JournalBatch,
    JournalState,
    KeptHeld,
    KeptScope,
    Touched,
    account_of,
    account_words,
    tats_of,
    tats_words,
)
from extproc.core.quota.scopes import Scopes
from extproc.core.quota.share import Scope, Taken
from extproc.core.quota.values import NO_UNITS, Account, Amounts, Ask, Granted, LimitUsage, Refused
from extproc.core.reservations import Reservations


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

    def bound(self, limits: QuotaLimits) -> None:
        """Other bounds from now on, of what runs already too (but `scopes_max`)."""
        ...


class Waiting(Protocol):
    """Whose requests no replica has been given yet."""

    def __contains__(self, id: str, /) -> bool:  # noqa: A002 (a reservation's own word)
        ...


NOBODY: frozenset[str] = frozenset()


class ExactBooks:
    """Exact quotas of one process. Not thread-safe (one event loop owns it)."""

    def __init__(self, limits: QuotaLimits | None = None) -> None:
        self.limits = limits or QuotaLimits()
        self.counts: Counter[str] = Counter()
        #: In nanoseconds of bucket: reserved + added = settled + refunded + expired + outstanding.
        self.totals: Counter[str] = Counter()
        self._scopes = Scopes(Scope, most=self.limits.scopes_max, counts=self.counts)
        #: What has expired may still be settled once.
        self._table: Reservations[Taken] = Reservations(
            ttl_ns=self.limits.reservation_ttl_ns, remembered_max=self.limits.ended_remembered_max
        )
        #: What has changed since it was last asked for; None while nobody keeps it.
        self._touched: Touched | None = None
        #: Ids that were told as waiting: when they no longer do, that is a change.
        self._waited: set[str] = set()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def scopes(self) -> int:
        """How many scopes' use is known."""
        return len(self._scopes)

    def outstanding_ns(self) -> int:
        """What is reserved and has not ended, in nanoseconds of bucket."""
        return sum(sum(taken.costs) for taken in self._table.entries())

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
        if self._table.known(reservation_id):
            self.counts["reserved.again"] += 1
            return Granted(share.figures(account, scopes, now_ns=now_ns), borrowed=False)
        taken = share.take(account, scopes, amounts.units(), now_ns=now_ns, idle_capacity=idle_capacity)
        if isinstance(taken, Refused):
            self.counts["refused"] += 1
            return taken
        self._table.put(reservation_id, taken)
        if self._touched is not None:
            self._touched.add(reservation_id, account)
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
        ending, taken = self._table.end(reservation_id)
        if ending == "again":
            self.counts["settled.duplicate"] += 1
            return False
        if taken is not None:
            account = taken.account
        if self._touched is not None and account is not None:
            self._touched.add(reservation_id, account)
        if taken is not None:
            if ending == "late":
                self.totals["expired"] -= sum(taken.costs)
            self._difference(taken, actual, now_ns)
            self.counts["settled.late" if ending == "late" else "settled"] += 1
            return True
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
        taken = self._table.get(reservation_id)
        if taken is not None and so_far is not None:
            grown = share.grow(taken, so_far.units(), now_ns=now_ns)
            self.totals["reserved"] += grown
            if grown and self._touched is not None:
                self._touched.add(reservation_id, taken.account)
        return self._table.renew(reservation_id, now_ns=now_ns)

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """Give everything back."""
        taken = self._table.drop(reservation_id)
        if taken is not None:
            share.settle(taken, NO_UNITS, now_ns=now_ns)
            self.totals["refunded"] += sum(taken.costs)
            self.counts["cancelled"] += 1
            if self._touched is not None:
                self._touched.add(reservation_id, taken.account)

    def expire(self, *, now_ns: int) -> list[str]:
        """The ids that have now expired, oldest first."""
        expired = []
        for reservation_id, taken in self._table.lapse(now_ns=now_ns):
            share.land(taken)
            self.totals["expired"] += sum(taken.costs)
            self.counts["expired"] += 1
            self._end(reservation_id, taken.account, late=taken)
            expired.append(reservation_id)
        return expired

    def credit(self, account: Account, amounts: Amounts, *, credit_id: str, now_ns: int) -> None:
        """Give back what was used."""
        if self._table.ended(credit_id):
            return
        self._end(credit_id, account)
        share.credit(account, self._scopes.of(account, now_ns=now_ns), amounts.units(), now_ns=now_ns)
        self.counts["credited"] += 1

    def usage(self, account: Account, *, now_ns: int) -> tuple[LimitUsage, ...]:
        """Every limit of the account as it stands; changes nothing."""
        return share.usage(account, self._scopes.known(account), now_ns=now_ns)

    def bound(self, limits: QuotaLimits) -> None:
        """Other bounds from now on."""
        self.limits = limits
        self._table.ttl_ns = limits.reservation_ttl_ns
        self._table.remembered_max = limits.ended_remembered_max

    # -- what outlives the process -----------------------------------------------------------------------

    def keep(self) -> None:
        """From now on `changes` tells what has changed."""
        self._touched = Touched()

    def changes(self, *, waiting: Waiting = NOBODY) -> tuple[JournalBatch, Touched]:
        """What has changed since this was last asked; `put_back` the second where it could not be written.

        `waiting` are reservations whose requests no replica has been given yet: a process that ends takes
        them with it, so that they cost nothing.
        """
        touched = self._touched
        assert touched is not None, "nobody keeps these books"
        self._touched = Touched(given_up=touched.given_up)
        for placed in [each for each in self._waited if each not in waiting]:
            self._waited.discard(placed)
            touched.ids[placed] = None
        batch = JournalBatch([], [], [], [], [], {})
        numbers: dict[int, int] = {}
        for reservation_id in touched.ids:
            taken, doing = self._table.get(reservation_id), RUNS
            if taken is not None and reservation_id in waiting:
                doing = WAITS
                self._waited.add(reservation_id)
            if taken is None:
                taken, doing = self._table.lapsed(reservation_id), EXPIRED
            if taken is None:
                ended = self._table.ended(reservation_id)
                (batch.ended if ended else batch.gone).append(reservation_id)
                continue
            account = taken.account
            number = numbers.get(id(account))
            if number is None:
                number = numbers[id(account)] = len(batch.accounts)
                batch.accounts.append(account_words(account))
            # A copy: what runs may cost more by the time that this is written.
            batch.held.append(KeptHeld(reservation_id, number, list(taken.costs), taken.borrowed, doing))
        for name in touched.scopes:
            scope = self._scopes.named(name)
            tats, extra = (scope.tats, scope.extra) if scope is not None else (None, None)
            batch.scopes.append(KeptScope(*name, tats_words(tats), tats_words(extra)))
        return batch, touched

    def put_back(self, touched: Touched) -> None:
        """They were not written: they are told again."""
        if self._touched is not None:
            self._touched.again(list(touched.ids), list(touched.scopes))

    @property
    def given_up(self) -> int:
        """Ids whose change was never written, because too many waited for it."""
        return self._touched.given_up if self._touched is not None else 0

    def restore(self, state: JournalState, *, now_ns: int) -> None:
        """Begin with what another process left, its times by this one's clock.

        What was held lives a whole time to live again: its record may still come, with what it cost. What
        waited for a place died with the process, and is given back.
        """
        for scope in state.scopes.values():
            made = self._scopes.make((scope.tenant, scope.name), now_ns=now_ns)
            made.tats = tats_of(scope.tats)
            made.extra = tats_of(scope.extra) if scope.extra else None
        for ended in state.ended:
            self._table.remember(ended)
        accounts: dict[int, Account] = {}
        for payload, kept in state.held.values():
            account = accounts.get(id(payload))
            if account is None:
                try:
                    account = accounts[id(payload)] = account_of(payload)
                except ValueError:
                    self.counts["restore.unknown"] += 1
                    continue
            self._restore_held(account, kept, now_ns)
        self.counts["restored"] += len(state.held)

    def _restore_held(self, account: Account, kept: KeptHeld, now_ns: int) -> None:
        scopes = self._scopes.of(account, now_ns=now_ns)
        taken = Taken(
            account, scopes, list(kept.costs), kept.borrowed, flies=kept.doing != EXPIRED, heard_ns=now_ns
        )
        self.totals["reserved"] += sum(taken.costs)
        if kept.doing == EXPIRED:
            self.totals["expired"] += sum(taken.costs)
            self._table.remember(kept.id, taken)
            return
        for scope in scopes:
            scope.in_flight += 1
        self._table.put(kept.id, taken)
        if kept.doing == WAITS:
            self.cancel(kept.id, now_ns=now_ns)

    def _difference(self, taken: Taken, actual: Amounts, now_ns: int) -> None:
        real = share.settle(taken, actual.units(), now_ns=now_ns)
        for before, after in zip(taken.costs, real, strict=True):
            self.totals["settled"] += after
            self.totals["refunded" if after < before else "added"] += abs(after - before)

    def _end(self, reservation_id: str, account: Account, *, late: Taken | None = None) -> None:
        self._table.remember(reservation_id, late)
        if self._touched is not None:
            self._touched.add(reservation_id, account)
