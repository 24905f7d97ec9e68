"""The connections to Redis: begun again whenever they end, and what is done in them, in order.

Owns the tasks, the number of services that are there, and one log line per transition.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from extproc.state import redis_client
from extproc.state.quota.loans import Loans
from extproc.state.quota.reconcile import Reconciler
from extproc.state.quota.scripts import QuotaScripts

log = logging.getLogger(__name__)

#: The least time between two round trips.
FLUSH_SPACING_S = 0.01
#: Without anything to say we look this often for leases that go back, and ask this often who is there.
LOOK_EVERY_S, HELLO_EVERY_NS = 0.1, 500_000_000
#: A service that has not said that it is there for this long is not.
SERVICE_SILENT_S = 3
#: A session that lasted this long was a good one.
GOOD_SESSION_NS = 5_000_000_000


class QuotaSession:
    """`connected` says whether quotas are shared at the moment, `services` by how many.

    `work` is set where there is something to say; until `pause_until_ns` nobody asks.
    """

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
        self.connected = False
        self.services = self._expected = max(services, 1)
        self.pause_until_ns = 0
        self.work = asyncio.Event()
        #: For questions; one that is refused ends the session: who answers is no server for us (any more), as
        #: a master that was demoted keeps its connections.
        self.asker = redis_client.connect(url)
        self.refused: Exception | None = None
        self._url, self._name, self._clock = url, name, clock
        self._scripts, self._loans, self._reconciler = scripts, loans, reconciler
        self._transitions = redis_client.Transitions(url, counts, log)
        self._hello_ns = 0
        self._closing = False
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def shares(self, now_ns: int) -> bool:
        """Whether Redis may be asked."""
        return self.connected and now_ns >= self.pause_until_ns

    def start(self) -> None:
        """Begin in the background."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._run(), name="redis-quota")

    async def close(self, asks: Iterable[asyncio.Task[Any]]) -> None:
        """Tell what there is to tell if Redis is there; ends within two seconds if it is not.

        `asks` are the questions under way.
        """
        self._closing = True
        self.work.set()
        self._closed.set()
        tasks = {*asks, *([self._task] if self._task else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * redis_client.OPERATION_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None
        self.connected = False
        with suppress(RedisError, OSError, TimeoutError):
            await self.asker.aclose()

    async def _run(self) -> None:
        backoff = redis_client.Backoff(Random(secrets.randbits(64)))
        while not self._closing:
            begun_ns = self._clock()
            client = redis_client.connect(self._url)
            try:
                await self._renew_asker()
                await self._session(client)
            except Exception as error:  # noqa: BLE001 - whatever ends a session must not end the books
                self._lost(redis_client.reason(error))
            finally:
                with suppress(RedisError, OSError, TimeoutError):
                    async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                        await client.aclose()
            if self._clock() - begun_ns > GOOD_SESSION_NS:
                backoff.reset()
            if not self._closing:
                await _pause(self._closed, backoff.next_s())

    async def _renew_asker(self) -> None:
        """New connections for questions too: an address may have come to mean another server."""
        before, self.asker = self.asker, redis_client.connect(self._url)
        self.refused = None
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
                await before.aclose()

    async def _session(self, client: Redis) -> None:
        """Reconcile the books, then share, until something breaks or we close."""
        journal, flush = self._reconciler.journal, self._reconciler.flush
        await self._hello(client)
        async with asyncio.timeout(redis_client.OPERATION_TIMEOUT_S):
            # So that the first question finds its connection and its script.
            await self._scripts.load(self.asker)
        while len(journal) and not self._closing:
            await flush(client)
        self._back()
        while not self._closing:
            await _pause(self.work, LOOK_EVERY_S)
            self.work.clear()
            if self.refused is not None:
                raise self.refused
            if self._clock() - self._hello_ns >= HELLO_EVERY_NS:
                await self._hello(client)
            while len(journal):
                await flush(client)
            await self._loans.lend(client)
            await self._loans.give_back(client, all_of_it=False)
            await _pause(self._closed, FLUSH_SPACING_S)
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

    def _lost(self, why: str) -> None:
        self.connected = False
        self._transitions.lost(why, "quotas are this service's share alone", closing=self._closing)

    def _back(self) -> None:
        self.connected = True
        self.pause_until_ns = 0
        again = "quotas are shared again and the books reconciled"
        self._transitions.back(again, sharing="quotas", name=self._name)


async def _pause(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
