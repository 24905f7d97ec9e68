"""Several services before one full replica, through the real Envoy and Redis: tenants are served as by one.

Run this file to see the figures, of one service and of two that share nothing as well.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from gateway import Gateway, wait_for
from redis_harness import Redis
from replicas import Replicas, specs
from test_tenants_fairness import SLOTS, Run, run

from extproc.core.tenant import hash_key

#: In real time, with clients that have to keep up. Waits are counted in turns, not in seconds;
#: tests/core/test_fairness_services.py has virtual time.
pytestmark = [pytest.mark.envoy, pytest.mark.soak]

#: Both want more than half; one sends six times as much.
CLIENTS = {"noisy": 24, "ada": 4}
SECONDS = 12.0


def measured(services: int, redis: Redis | None, *, seconds: float) -> Run:
    """What came of a while of that load."""
    tenants = [{"name": name, "keys": [{"sha256": hash_key(f"sk-{name}")}]} for name in CLIENTS]
    sharing: dict[str, Any] = {} if redis is None else {"sharing": {"redis": redis.url}}
    with Replicas(specs(1, time_scale=2.0)) as replicas:
        address = {"address": replicas.addresses[0], "max_concurrent": SLOTS}
        with Gateway(
            {"chat": {"models": ["tiny-chat"], "addresses": [address], "strategy": "least_work"}},
            tenants=tenants,
            classes=[{"name": "standard", "hold_ms": 60_000, "ttft_ms": 600_000}],
            services=services,
            **sharing,
        ) as gateway:
            every = range(services)
            if redis is not None:
                wait_for(
                    "sharing",
                    lambda: all(gateway.status(i)["sharing"]["deciders"] == services for i in every),
                )
            found = asyncio.run(run(gateway, CLIENTS, seconds=seconds))
            held = [gateway.status(i)["counts"].get("held", 0) for i in every]
            assert min(held) > 0, "one of them never held anybody"
            return found


def jain(found: Run) -> float:
    values = [found.tokens[tenant] for tenant in CLIENTS]
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.fixture(scope="module")
def alone() -> Run:
    """One service."""
    return measured(1, None, seconds=SECONDS)


@pytest.mark.parametrize("services", [2, 4])
def test_several_services_serve_tenants_as_one_does(alone: Run, services: int, tmp_path: Path) -> None:
    """Who sends six times as much has no more of the replica than the other; at its p99 the calm one
    waits for no more than 1.5 times the turns that it waits for at one service."""
    with Redis(tmp_path) as redis:
        found = measured(services, redis, seconds=SECONDS)
    assert jain(found) >= 0.95, dict(found.tokens)
    assert found.turns_p99("ada") <= 1.5 * alone.turns_p99("ada"), sorted(found.turns["ada"])[-9:]


if __name__ == "__main__":
    for services, shared in ((1, False), (2, False), (2, True), (4, True)):
        with tempfile.TemporaryDirectory() as folder, Redis(Path(folder)) as redis:
            found = measured(services, redis if shared else None, seconds=20.0)
        print(
            f"{services} services, shared {shared}: {dict(found.tokens)}, Jain {jain(found):.3f}, "
            f"p99 of the calm one {found.p99('ada'):.2f} s, {found.turns_p99('ada')} turns"
        )
