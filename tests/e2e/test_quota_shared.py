"""Quotas over three services and a real Redis, hammered, with kills in the middle."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from gateway import Gateway, wait_for
from redis_harness import Redis
from replicas import Replicas, specs

from extproc.core.tenant import hash_key

pytestmark = [pytest.mark.envoy, pytest.mark.slow]

TENANTS = 10
SERVICES = 3
#: Longer with `make soak`.
SECONDS = float(os.environ.get("STEERSMAN_HAMMER_S", "12"))
RATE_PER_S = 2.0
BURST = 6
#: Each service may hold a lease of a bucket: at most the larger of a tenth of the burst and a quarter of a
#: second's worth, and one request at least; a killed one loses its own, a restarted one takes another.
LEASE = 1
BOUND = LEASE * (SERVICES + 1)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own."""
    with Redis(tmp_path) as redis:
        yield redis


def key(i: int) -> str:
    return f"sk-test-{i}"


async def hammer(gateway: Gateway, seconds: float) -> tuple[Counter[str], Counter[int]]:
    """Every tenant at twice its rate: successes by tenant, and all statuses."""
    served: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    body = {"inputs": "[[sim:out=2]]", "parameters": {"max_new_tokens": 2}}

    async def one(session: aiohttp.ClientSession, i: int) -> None:
        headers = {"authorization": f"Bearer {key(i)}"}
        try:
            async with session.post(f"{gateway.url}/generate", json=body, headers=headers) as answer:
                await answer.read()
                statuses[answer.status] += 1
                served[f"t{i}"] += answer.status == 200
        except aiohttp.ClientError:
            statuses[0] += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        tasks = []
        began = time.monotonic()
        for turn in range(int(seconds * 2 * RATE_PER_S)):
            await asyncio.sleep(max(0.0, began + turn / (2 * RATE_PER_S) - time.monotonic()))
            tasks += [asyncio.create_task(one(session, i)) for i in range(TENANTS)]
        await asyncio.gather(*tasks)
    return served, statuses


@pytest.mark.soak
def test_quotas_hold_over_three_services_through_kills(redis: Redis) -> None:
    """Ten tenants at twice their quota, a service and Redis killed: admitted stays within the bound."""
    tenants = [
        {
            "name": f"t{i}",
            "keys": [{"sha256": hash_key(key(i))}],
            "quota": {"requests_per_minute": int(60 * RATE_PER_S), "burst": BURST / (60 * RATE_PER_S)},
        }
        for i in range(TENANTS)
    ]
    with (
        Replicas(specs(2, time_scale=100.0)) as replicas,
        Gateway(
            {"chat": {"models": ["tiny-chat"], "addresses": replicas.addresses}},
            services=SERVICES,
            tenants=tenants,
            sharing={"redis": redis.url},
        ) as gateway,
    ):
        for i in range(SERVICES):
            wait_for("Redis", lambda i=i: gateway.status(i)["quotas"]["connected"])
        began = time.monotonic()

        async def run() -> tuple[Counter[str], Counter[int]]:
            hammering = asyncio.create_task(hammer(gateway, SECONDS))
            await asyncio.sleep(SECONDS / 4)
            await asyncio.to_thread(gateway.services[1].kill)
            await asyncio.to_thread(gateway.services[1].start)
            await asyncio.sleep(SECONDS / 4)
            await asyncio.to_thread(redis.kill)
            await asyncio.sleep(SECONDS / 8)
            await asyncio.to_thread(redis.start)
            return await hammering

        served, statuses = asyncio.run(run())
        took_s = time.monotonic() - began
        most = RATE_PER_S * took_s + BURST + BOUND
        assert max(served.values()) <= most, (served, most)
        # And nobody is starved by it: what may be used can be used, but for the time of the kills.
        assert min(served.values()) >= 0.6 * RATE_PER_S * SECONDS, served
        assert set(statuses) <= {200, 429, 503}, statuses
        for i in range(SERVICES):
            wait_for("quiet", lambda i=i: gateway.status(i)["in_flight"] == 0, timeout_s=20)
            wait_for("reconciled books", lambda i=i: gateway.status(i)["quotas"]["reconciled"], timeout_s=20)
