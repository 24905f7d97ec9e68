"""What is done of quotas while Redis is there, in order.

Owns the number of services that are there. The connections are redis_session.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from redis.asyncio import Redis

from extproc.state import redis_client
from extproc.state.quota.loans import Loans
from extproc.state.quota.reconcile import Reconciler
from extproc.state.quota.scripts import QuotaScripts
from extproc.state.redis_session import RedisSession, SessionWords

log = logging.getLogger(__name__)

#: The least time between two round trips.
FLUSH_SPACING_S = 0.01
#: Without anything to say we look this often for leases that go back, and ask this often who is there.
LOOK_EVERY_S, HELLO_EVERY_NS = 0.1, 500_000_000
#: A service that has not said that it is there for this long is not.
SERVICE_SILENT_S = 3
WORDS = SessionWords(
    "quotas",
    "quotas are this service's share alone",
    "quotas are shared again and the books reconciled",
)


class QuotaSession(RedisSession):
    """`connected` says whether quotas are shared at the moment, `services` by how many."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        services: int,
        scripts: QuotaScripts,
        loans: Loans,
        reconciler: Reconciler,
        counts: Counter[str],
        clock: Callable[[], int],
    ) -> None:
        super().__init__(url, name=name, words=WORDS, counts=counts, clock=clock, log=log)
        self.services = self._expected = max(services, 1)
        self._scripts, self._loans, self._reconciler = scripts, loans, reconciler
        self._hello_ns = 0

    async def session(self, client: Redis) -> None:
        """Reconcile the books, then share, until something breaks or we close."""
        journal, flush = self._reconciler.journal, self._reconciler.flush
        await self._hello(client)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            # So that the first question finds its connection and its script.
            await self._scripts.load(self.asker)
        while len(journal) and not self._closing:
            await flush(client)
        self.back()
        while not self._closing:
            await self.worked_within(LOOK_EVERY_S)
            if self._clock() - self._hello_ns >= HELLO_EVERY_NS:
                await self._hello(client)
            while len(journal):
                await flush(client)
            await self._loans.lend(client)
            await self._loans.give_back(client, all_of_it=False)
            await self.closed_within(FLUSH_SPACING_S)
        while len(journal):
            await flush(client)
        await self._loans.give_back(client, all_of_it=True)
        await client.zrem(self._scripts.services_key, self._name)

    async def _hello(self, client: Redis) -> None:
        """Say that we are there, and count who else is. Writes: a read-only server fails here."""
        key = self._scripts.services_key
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            seconds = await redis_client.server_time_s(client, key)
            pipeline = client.pipeline(transaction=False)
            pipeline.zadd(key, {self._name: seconds})
            pipeline.zremrangebyscore(key, "-inf", seconds - SERVICE_SILENT_S)
            pipeline.zcard(key)
            pipeline.expire(key, 60)
            self.services = max(self._expected, (await pipeline.execute())[2])
        self._hello_ns = self._clock()
