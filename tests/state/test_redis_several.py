"""Sentinel and cluster with real servers: quotas, load and figures hold, and come back after a failure."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis_several import Cluster, Watched

from extproc.core.quota import Account, Amounts, Granted, QuotaLimits, Refused, ScopeLimits, limits
from extproc.observe.analytics.redis_store import RedisStore
from extproc.observe.analytics.spans import HOUR, Retention, Stretch
from extproc.observe.analytics.store import StoredRow, StoreError
from extproc.state.quota.books import RedisQuota
from tests.state.conftest import services, until

ONE = Amounts(1, 10, 10, 1.0, 0.0)
FEW = limits(budget_per_month=10.0)
UNIT = Amounts(1, 0, 0, 0.0, 1.0)
#: A failover takes the sentinels some seconds, and a loaded machine longer.
WITHIN_S = 120.0


def of(tenant: str, quota: ScopeLimits = FEW) -> Account:
    return Account(tenant, "k", "m", (("tenant", quota),))


async def spend(books: RedisQuota, who: Account, name: str) -> Granted | Refused:
    answer = await books.ask(who, name, UNIT, budget_s=10)
    if isinstance(answer, Granted):
        books.settle(name, UNIT, now_ns=time.monotonic_ns())
    return answer


async def both(url: str) -> tuple[RedisQuota, RedisQuota]:
    one, two = (RedisQuota(url, service_id=name, services=2, limits=QuotaLimits()) for name in ("one", "two"))
    for books in (one, two):
        await books.start()
    await until(lambda: one.connected and two.connected, within_s=WITHIN_S)
    return one, two


async def spent(one: RedisQuota, two: RedisQuota, tenant: str) -> int:
    """How much of a tenant's ten both services together still grant."""
    granted = 0
    for number in range(14):
        books = (one, two)[number % 2]
        granted += isinstance(await spend(books, of(tenant), f"{tenant}{time.monotonic_ns()}"), Granted)
        await until(lambda: one.reconciled and two.reconciled, within_s=WITHIN_S)
    return granted


def figures(url: str) -> None:
    """The analytics' rows are written and read."""
    store = RedisStore(url, prefix="t", where="here")
    entry = StoredRow(HOUR, 1_767_225_600, "w", b"k", b"v")
    for attempt in range(20):
        try:
            store.write([entry], Retention(hours_s=10**10))
            break
        except StoreError:
            # A machine under load may take longer than a connection may.
            assert attempt < 19
            time.sleep(0.5)
    assert list(store.read(Stretch(HOUR, 0, 10**10))) == [entry]
    assert store.claim(["a"]) == [True]
    store.close()


@pytest.mark.soak
def test_a_cluster_of_three(tmp_path: Path) -> None:
    """Tenants on every node hold one quota over two services; a killed node ends sharing until it is back."""
    with Cluster(tmp_path) as cluster:

        async def scenario() -> None:
            one, two = await both(cluster.url)
            try:
                for number in range(8):
                    assert await spent(one, two, f"t{number}") == 10
                used = [cluster.on(number, "DBSIZE") for number in range(3)]
                assert all(used), used
                assert one.counts["ask_failed"] == two.counts["ask_failed"] == 0
                async with services(cluster.url, "a", "b") as (a, b):
                    a.loads[("p", "10.0.0.1:80")] = (1, 2, 3)
                    await until(lambda: b.sees("p", "10.0.0.1:80") == (1, 2, 3))
                await asyncio.to_thread(figures, cluster.url)
                cluster.servers[2].kill()
                await until(lambda: not one.connected and not two.connected, within_s=WITHIN_S)
                assert isinstance(one.reserve(of("alone"), "a", UNIT, now_ns=time.monotonic_ns()), Granted)
                one.settle("a", UNIT, now_ns=time.monotonic_ns())
                cluster.start(2)
                await until(lambda: one.connected and two.connected, within_s=WITHIN_S)
                await until(lambda: one.reconciled and two.reconciled, within_s=WITHIN_S)
                assert await spent(one, two, "alone") == 9
                assert await spent(one, two, "t-after") == 10
            finally:
                await asyncio.gather(one.close(), two.close())
            assert one.counts["script_failed"] == two.counts["script_failed"] == 0

        asyncio.run(scenario())


@pytest.mark.soak
def test_sentinels_name_a_new_master(tmp_path: Path) -> None:
    """With users and passwords: after kill -9 of the master the books go on at the replica, not anew."""
    with Watched(tmp_path) as watched:

        async def scenario() -> None:
            one, two = await both(watched.url)
            try:
                for number in range(4):
                    assert isinstance(await spend(one, of("t"), f"a{number}"), Granted)
                await until(lambda: one.reconciled and two.reconciled)
                await until(lambda: not one._loans.lent)
                async with services(watched.url, "a", "b") as (a, b):
                    a.loads[("p", "10.0.0.1:80")] = (1, 2, 3)
                    await until(lambda: b.sees("p", "10.0.0.1:80") == (1, 2, 3))
                    watched.on(0, "WAIT", 1, 10_000)
                    watched.servers[0].kill()
                    await until(lambda: not one.connected and not two.connected, within_s=WITHIN_S)
                    new = watched.servers[1].port
                    await until(lambda: watched.master() == new, within_s=WITHIN_S)
                    await until(lambda: one.connected and two.connected, within_s=WITHIN_S)
                    a.loads[("p", "10.0.0.1:80")] = (4, 5, 6)
                    await until(lambda: b.sees("p", "10.0.0.1:80") == (4, 5, 6), within_s=WITHIN_S)
                # Four of the ten were spent before; what the old master knew is not granted again.
                assert await spent(one, two, "t") == 6
                await asyncio.to_thread(figures, watched.url)
            finally:
                await asyncio.gather(one.close(), two.close())
            assert one.counts["script_failed"] == two.counts["script_failed"] == 0

        asyncio.run(scenario())
