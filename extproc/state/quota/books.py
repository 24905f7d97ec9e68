"""The quota books of several services: the port's decisions, over leases and a session with Redis.

Owns the reservations of this service. A decision spends a lease that was taken beforehand and waits for
nothing; where that does not suffice, one question goes to Redis and waits for no longer than its budget.
Without Redis a service decides on its own share; what it admitted is charged when Redis is back, before
anything is shared again. Over-admission: see lease.py.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable

from extproc.core.quota import (
    ASK,
    Account,
    Amounts,
    Ask,
    Granted,
    LimitUsage,
    QuotaLimits,
    RateFigures,
    Refused,
    share,
)
from extproc.core.quota.values import NO_UNITS, Units
from extproc.core.reservations import Reservations
from extproc.state.quota import lease, payload
from extproc.state.quota.journal import Journal, Op
from extproc.state.quota.lease import LeasedReservation
from extproc.state.quota.loans import Leases, Loans
from extproc.state.quota.questions import Question, Questions
from extproc.state.quota.reconcile import Reconciler
from extproc.state.quota.scripts import QuotaScripts
from extproc.state.quota.session import QuotaSession


class RedisQuota:
    """The quota port over Redis."""

    def __init__(
        self,
        url: str,
        *,
        service_id: str,
        prefix: str = "steersman",
        services: int = 1,
        limits: QuotaLimits | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises ValueError for a URL that names no Redis.

        `services` is how many are expected: the share while Redis is away is never of fewer. `clock` is the
        clock of every `now_ns`.
        """
        self.id = f"{service_id}-{secrets.token_hex(4)}"
        self.counts: Counter[str] = Counter()
        self.journal = Journal(self.counts)
        self._clock = clock
        limits = limits or QuotaLimits()
        self._table: Reservations[LeasedReservation] = Reservations(
            ttl_ns=limits.reservation_ttl_ns, remembered_max=limits.ended_remembered_max
        )
        self._scripts = QuotaScripts(service=self.id, prefix=prefix, limits=limits, counts=self.counts)
        self._loans = Loans(
            self._scripts,
            counts=self.counts,
            clock=clock,
            scopes_max=limits.scopes_max,
            forgotten=self._enter_again,
        )
        self._reconciler = Reconciler(self.journal, self._scripts, self._loans, self.counts)
        self.session = QuotaSession(
            url,
            name=self.id,
            services=services,
            scripts=self._scripts,
            loans=self._loans,
            reconciler=self._reconciler,
            counts=self.counts,
            clock=clock,
        )
        self._questions = Questions(self.session, self._scripts, self._loans, self.counts, clock)
        self._attempt = 0

    @property
    def connected(self) -> bool:
        """Whether quotas are shared at the moment."""
        return self.session.connected

    @property
    def services(self) -> int:
        """How many services share them, as last seen."""
        return self.session.services

    @property
    def reconciled(self) -> bool:
        """Whether Redis has heard everything."""
        return self._reconciler.done

    # -- the port ---------------------------------------------------------------------------------------

    def reserve(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        now_ns: int,
        idle_capacity: bool = False,  # noqa: ARG002 - a lease is of the tenant's own; `ask` may borrow
    ) -> Granted | Refused | Ask:
        """Decide from the leases, or from the local share while Redis is away; else `Ask`."""
        leases = self._loans.leases.of(account, now_ns=now_ns)
        if self._table.known(reservation_id):
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, leases, now_ns), borrowed=False)
        units = amounts.units()
        if not self.session.shares(now_ns):
            return self._alone(account, leases, reservation_id, units, self._next(), now_ns)
        taken, low = lease.from_lease(account, leases, units, now_ns=now_ns)
        if taken is None:
            return ASK
        if low and self._loans.wanted(account):
            self.session.work.set()
        epoch = self._loans.epoch(account.tenant)
        entry = LeasedReservation(
            taken, units, self._next(), paid=True, epoch=epoch, heard_ns=now_ns, unheard=True
        )
        self._enter(account, reservation_id, entry)
        self.counts["reserved.leased"] += 1
        return Granted(_figures(account, leases, now_ns), borrowed=False)

    async def ask(
        self,
        account: Account,
        reservation_id: str,
        amounts: Amounts,
        *,
        budget_s: float = 0.005,
        idle_capacity: bool = False,
    ) -> Granted | Refused:
        """One round trip, or the local share when it takes longer than the budget."""
        asked_ns = self._clock()
        leases = self._loans.leases.of(account, now_ns=asked_ns)
        if self._table.known(reservation_id):
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, leases, asked_ns), borrowed=False)
        units, attempt = amounts.units(), self._next()
        if not self.session.shares(asked_ns) or self._questions.full:
            return self._alone(account, leases, reservation_id, units, attempt, asked_ns)
        lend = lease.begin_loan(leases)
        said = payload.reserving(
            "ask", account, leases, units=units, lend=lend, give_back=lend, idle_capacity=idle_capacity
        )
        asked = Question(account, leases, said, reservation_id, attempt, lend, asked_ns)
        answer = await self._questions.ask(asked, budget_s=budget_s)
        now_ns = self._clock()
        if reservation_id in self._table:
            self.counts["reserved.again"] += 1
            return Granted(_figures(account, leases, now_ns), borrowed=False)
        if answer is None:
            decision = self._alone(account, leases, reservation_id, units, attempt, now_ns)
            if isinstance(decision, Refused):
                # Redis may have granted what we did not.
                nothing = share.Taken(account, leases, [0] * len(said["b"]), 0, flies=False)
                unknown = LeasedReservation(nothing, units, attempt, paid=False, epoch="", heard_ns=now_ns)
                self._tell(Op("cancel", reservation_id, account, unknown))
            return decision
        if not answer.ok:
            self.counts["refused"] += 1
            return payload.refusal(answer, account, leases, now_ns=now_ns)
        costs = [word[3] if answer.borrowed >> at & 1 else word[1] for at, word in enumerate(said["b"])]
        payload.count_borrowed(answer, account, leases)
        for one in leases:
            one.in_flight += 1
        taken = share.Taken(account, leases, costs, answer.borrowed)
        entry = LeasedReservation(taken, units, attempt, paid=True, epoch=answer.epoch, heard_ns=now_ns)
        self._table.put(reservation_id, entry)
        self.counts["reserved.asked"] += 1
        return Granted(_figures(account, leases, now_ns), borrowed=answer.borrowed != 0)

    def settle(
        self, reservation_id: str, actual: Amounts, *, now_ns: int, account: Account | None = None
    ) -> bool:
        """True for the first time here; Redis charges it once, whoever says it."""
        ending, entry = self._table.end(reservation_id)
        if ending == "again":
            self.counts["settled.duplicate"] += 1
            return False
        how = ".late" if ending == "late" else ""
        if entry is None:
            how = ".unknown" if account else ".nobody"
        self.counts[f"settled{how}"] += 1
        units = actual.units()
        if entry is not None:
            share.settle(entry.taken, units, now_ns=now_ns)
            account = entry.taken.account
        if account is not None:
            self._tell(Op("settle", reservation_id, account, entry, units))
        return True

    def renew(self, reservation_id: str, *, now_ns: int, so_far: Amounts | None = None) -> bool:
        """Begin the time to live anew, here and in Redis; charge what was used beyond the reservation."""
        entry = self._table.get(reservation_id)
        if entry is None:
            return False
        op = Op("renew", reservation_id, entry.taken.account, entry)
        # Of what Redis has not heard yet it is told first; the next time that it runs is soon enough.
        if so_far is not None and not self.journal.waits(op):
            op.units = so_far.units()
            before = list(entry.taken.costs)
            if share.grow(entry.taken, op.units, now_ns=now_ns) and entry.began is None:
                entry.began = before
        self._tell(op)
        return self._table.renew(reservation_id, now_ns=now_ns)

    def cancel(self, reservation_id: str, *, now_ns: int) -> None:
        """Give everything back, to Redis."""
        entry = self._table.drop(reservation_id)
        if entry is not None:
            share.settle(entry.taken, NO_UNITS, now_ns=now_ns)
            self.counts["cancelled"] += 1
            self._tell(Op("cancel", reservation_id, entry.taken.account, entry))

    def expire(self, *, now_ns: int) -> list[str]:
        """The ids that were not heard of; Redis ends them by its own clock."""
        expired = []
        for reservation_id, entry in self._table.lapse(now_ns=now_ns):
            share.land(entry.taken)
            self.counts["expired"] += 1
            self._table.remember(reservation_id, entry)
            expired.append(reservation_id)
        return expired

    def credit(self, account: Account, amounts: Amounts, *, credit_id: str, now_ns: int) -> None:
        """Give back what was used: here at once, in Redis as the end of a request of less than none."""
        if self._table.ended(credit_id):
            return
        self._table.remember(credit_id)
        units = amounts.units()
        share.credit(account, self._loans.leases.of(account, now_ns=now_ns), units, now_ns=now_ns)
        less = (-units[0], -units[1], -units[2], -units[3], -units[4])
        self._tell(Op("settle", credit_id, account, None, less))
        self.counts["credited"] += 1

    def usage(self, account: Account, *, now_ns: int) -> tuple[LimitUsage, ...]:
        """Every limit as last heard, with what this service has added since."""
        return share.usage(account, self._loans.leases.known(account), now_ns=now_ns)

    def bound(self, limits: QuotaLimits) -> None:
        """Other bounds from now on, in Redis too as reservations are next spoken of."""
        self._scripts.limits = limits
        self._table.ttl_ns = limits.reservation_ttl_ns
        self._table.remembered_max = limits.ended_remembered_max

    # -- decisions ---------------------------------------------------------------------------------------

    def _next(self) -> str:
        self._attempt += 1
        return f"{self.id}-{self._attempt}"

    def _alone(
        self,
        account: Account,
        leases: Leases,
        reservation_id: str,
        units: Units,
        attempt: str,
        now_ns: int,
    ) -> Granted | Refused:
        taken = lease.alone(account, leases, units, now_ns=now_ns, services=self.session.services)
        if isinstance(taken, Refused):
            self.counts["refused.alone"] += 1
            return taken
        entry = LeasedReservation(taken, units, attempt, paid=False, epoch="", heard_ns=now_ns)
        self._enter(account, reservation_id, entry)
        self.counts["reserved.alone"] += 1
        return Granted(_figures(account, leases, now_ns), borrowed=False)

    def _enter(self, account: Account, reservation_id: str, entry: LeasedReservation) -> None:
        self._table.put(reservation_id, entry)
        self._tell(Op("enter", reservation_id, account, entry))

    def _tell(self, op: Op) -> None:
        self.journal.put(op)
        self.session.work.set()

    def _enter_again(self, tenant: str, epoch: str) -> None:
        """Redis has forgotten a tenant: what is in flight is entered again."""
        for reservation_id, entry in self._table.items():
            if entry.taken.account.tenant == tenant and entry.epoch != epoch:
                self._tell(Op("enter", reservation_id, entry.taken.account, entry))

    async def start(self) -> None:
        """Begin in the background; returns at once, with or without Redis."""
        self.session.start()

    async def close(self) -> None:
        """Tell what there is to tell if Redis is there; ends within two seconds if it is not."""
        await self.session.close(self._questions.under_way)


def _figures(account: Account, leases: Leases, now_ns: int) -> RateFigures:
    return share.figures(account, leases, now_ns=now_ns)
