"""Answers in a cluster of three: kept, found, bounded and purged, though no two scopes are in one slot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis_several import Cluster

from extproc.cache.purging import PurgeOrder
from extproc.cache.store import Absent, KeptAnswer
from tests.cache.test_store_contract import K, body_at, key_of, put
from tests.stand.redis_answers import find, standing, until

pytestmark = pytest.mark.soak


def test_a_cluster_of_three(tmp_path: Path) -> None:
    """Each of them holds some scopes; a purge reaches all, and the common bound counts all."""

    async def check(cluster: Cluster) -> None:
        async with standing(cluster.url, prefix="several", bytes_max=40_000) as store:
            scopes = [f"tenant:t{number}" for number in range(24)]
            for number, scope in enumerate(scopes):
                assert await put(store, scope, K, b"of %d" % number, tenant=scope[7:]) == "kept"
            used = [cluster.on(number, "DBSIZE") for number in range(3)]
            assert min(used) > 0, used
            for number, scope in enumerate(scopes):
                assert await body_at(store, scope, K) == b"of %d" % number
            for number in range(60):
                await put(store, "tenant:large", key_of(number), tenant="large")
            await until(lambda: store.counts["evicted"] > 0)
            assert isinstance(await find(store, scopes[0], K), KeptAnswer)
            assert await store.purge([PurgeOrder(tenant="t3")]) == 1
            assert await find(store, "tenant:t3", K) is Absent.MISS
            await store.purge([PurgeOrder()])
            for scope in (*scopes, "tenant:large"):
                assert await find(store, scope, K) is Absent.MISS

    with Cluster(tmp_path) as cluster:
        asyncio.run(check(cluster))
