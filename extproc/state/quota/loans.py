"""Leases: taken from Redis before they are needed, given back when they were not, void when Redis forgets.

Owns every scope's lease and each tenant's epoch in Redis.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from extproc.core.quota import Account
from extproc.core.quota.scopes import Scopes
from extproc.state import redis_client
from extproc.state.quota import payload
from extproc.state.quota.lease import LEASE_NS, QuotaLease, begin_loan, end_loan
from extproc.state.quota.payload import ReserveReply
from extproc.state.quota.scripts import QuotaScripts
from extproc.state.redis_session import refused

#: Operations in one round trip.
BATCH_MAX = 256
#: Accounts whose leases want filling up at once.
HUNGRY_MAX = 10_000

Leases = tuple[QuotaLease, ...]


class Loans:
    """What is lent to this service; `forgotten` is told of a tenant that Redis has forgotten."""

    def __init__(
        self,
        scripts: QuotaScripts,
        *,
        counts: Counter[str],
        clock: Callable[[], int],
        scopes_max: int,
        forgotten: Callable[[str, str], None],
    ) -> None:
        self.leases = Scopes(QuotaLease, most=scopes_max, counts=counts)
        #: Accounts that have something to give back.
        self.lent: dict[tuple[str, str, str], Account] = {}
        self._scripts, self._counts, self._clock, self._forgotten = scripts, counts, clock, forgotten
        self._epochs: dict[str, str] = {}
        self._hungry: dict[tuple[str, str, str], Account] = {}

    def epoch(self, tenant: str) -> str:
        """In what Redis's books of a tenant are, as last heard."""
        return self._epochs.get(tenant, "")

    def wanted(self, account: Account) -> bool:
        """Its leases run low; false where too many do."""
        if len(self._hungry) >= HUNGRY_MAX:
            return False
        self._hungry[_name(account)] = account
        return True

    def hear(
        self, answer: ReserveReply, account: Account, leases: Leases, *, lent: bool, asked_ns: int
    ) -> None:
        """Take loans and debts from an answer. A lease is as old as the question."""
        self.heard_epoch(account.tenant, answer.epoch)
        now_ns = self._clock()
        at = 0
        for number, ((_, limits), lease) in enumerate(zip(account.scopes, leases, strict=True)):
            for bucket in limits.buckets:
                kind = bucket.kind
                if lent:
                    lease.credit[kind] += answer.leases[at]
                    lease.leased[kind] = max(lease.credit[kind], 0)
                lease.tats[kind] = now_ns + answer.debts[at] - lease.credit[kind] - lease.owed[kind]
                at += 1
            lease.flying = answer.flying[number]
            if lent:
                lease.slots += answer.slots[number]
                lease.lending = False
                lease.ends_ns = asked_ns + LEASE_NS
        if lent and any(lease.slots or any(lease.credit) for lease in leases):
            self.lent[_name(account)] = account

    def unread(self, account: Account, leases: Leases, said: dict[str, Any], error: BaseException) -> None:
        """The loan came to nothing that we know of; what an error shows to be unread is still owed."""
        end_loan(leases)
        if not refused(error):
            return
        buckets = iter(said["b"])
        for (_, limits), lease in zip(account.scopes, leases, strict=True):
            for bucket in limits.buckets:
                lease.owed[bucket.kind] += next(buckets)[5]
        self.lent[_name(account)] = account

    def heard_epoch(self, tenant: str, epoch: str) -> None:
        """Another one than before: Redis has forgotten this tenant, and its leases are void."""
        known = self._epochs.get(tenant)
        if known == epoch:
            return
        self._epochs[tenant] = epoch
        if known is None:
            return
        self._counts["forgotten_by_redis"] += 1
        for account in [found for found in self.lent.values() if found.tenant == tenant]:
            for lease in self.leases.of(account, now_ns=self._clock()):
                lease.void()
        self._forgotten(tenant, epoch)

    async def lend(self, client: Redis) -> None:
        """Fill up the leases that run low, before they are needed."""
        hungry, self._hungry = list(self._hungry.values()), {}
        for start in range(0, len(hungry), BATCH_MAX):
            await self._talk(client, hungry[start : start + BATCH_MAX], give_back=False)

    async def give_back(self, client: Redis, *, all_of_it: bool) -> None:
        """Return leases that have come to their end (or all); never twice, so a lost answer loses them."""
        now_ns = self._clock()
        over = [
            account
            for account in self.lent.values()
            if all_of_it
            or all(lease is None or lease.ends_ns <= now_ns for lease in self.leases.known(account))
        ]
        for start in range(0, len(over), BATCH_MAX):
            await self._talk(client, over[start : start + BATCH_MAX], give_back=True)

    async def _talk(self, client: Redis, accounts: list[Account], *, give_back: bool) -> None:
        asked_ns = self._clock()
        pipeline = client.pipeline(transaction=False)
        sent: list[tuple[Account, Leases, dict[str, Any]]] = []
        for account in accounts:
            leases = self.leases.of(account, now_ns=asked_ns)
            if not begin_loan(leases):
                continue
            said = payload.reserving("lend", account, leases, lend=not give_back, give_back=give_back)
            pipeline.execute_command(
                *self._scripts.reserve(account.tenant, said, epoch=self.epoch(account.tenant))
            )
            sent.append((account, leases, said))
            if give_back:
                self.lent.pop(_name(account), None)
        if not sent:
            return
        try:
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                results = await pipeline.execute(raise_on_error=False)
        except BaseException:
            for _, leases, _ in sent:
                end_loan(leases)
            raise
        for (account, leases, said), result in zip(sent, results, strict=True):
            if isinstance(result, bytes):
                self.hear(payload.reply(result), account, leases, lent=True, asked_ns=asked_ns)
                if give_back:
                    for lease in leases:
                        lease.ends_ns = 0
            else:
                self.unread(account, leases, said, result)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, NoScriptError):
                raise result


def _name(account: Account) -> tuple[str, str, str]:
    return (account.tenant, account.key, account.model)
