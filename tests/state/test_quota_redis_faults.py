"""Quotas in Redis where Redis or a service fails."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extproc.core.quota import Granted
from extproc.state.quota.books import RedisQuota
from tests.state.conftest import LATE_S, Lag, RedisServer, until
from tests.state.redis_books import (
    ONE,
    TIGHT,
    WHO,
    decide,
    in_flight,
    quotas,
    reconciled,
)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("extproc.state")]


def test_down_at_start(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Decisions come at once from the share; what was admitted is charged when Redis is there."""
    caplog.set_level(logging.INFO)
    redis_server.kill()

    async def scenario() -> None:
        one = RedisQuota(redis_server.url, service_id="one", services=3)
        await one.start()
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        answers = [one.reserve(TIGHT, f"a{n}", ONE, now_ns=time.monotonic_ns()) for n in range(60)]
        granted = sum(isinstance(answer, Granted) for answer in answers)
        try:
            # 1,200 a minute, a tenth at once, shared by three.
            assert 40 <= granted <= 41 + (time.monotonic() - begun) * 20 / 3
            redis_server.start()
            await until(lambda: one.connected)
            await until(lambda: in_flight(redis_server) == granted)
        finally:
            await one.close()

    asyncio.run(scenario())
    assert sum(" lost (" in line for line in lines(caplog)) == 1
    assert sum("is back" in line for line in lines(caplog)) == 1


def test_hung(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped for two seconds: each decision keeps its budget, and the books are reconciled afterwards."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with quotas(redis_server, 2) as (one, two):
            await decide(one, TIGHT, "warm")
            async with Lag() as lag:
                redis_server.signal(signal.SIGSTOP)
                begun, names, slow, tried = time.monotonic(), [], 0, 0
                while time.monotonic() - begun < 2:
                    asked = time.monotonic()
                    name = f"h{len(names)}"
                    tried += 1
                    if isinstance(await decide(one, TIGHT, name, budget_s=0.005), Granted):
                        names.append(name)
                    slow += time.monotonic() - asked > LATE_S
                    await asyncio.sleep(0.005)
                took_s = time.monotonic() - begun
                redis_server.signal(signal.SIGCONT)
            assert slow <= 1
            assert not lag.blocked, lag.worst_s
            # Half of the burst and of the rate for this one of two, and what was leased.
            assert min(60, tried) <= len(names) <= 60 + took_s * 10 + 12 + 1
            await until(lambda: one.connected and two.connected)
            for name in [*names, "warm"]:
                assert one.settle(name, ONE, now_ns=time.monotonic_ns())
            found = await reconciled(redis_server, one, two)
            assert found["settled"] == len(names) + 1
            assert one.counts["lost"] == one.counts["back"] == 1
            assert len(one._questions.under_way) == 0

    asyncio.run(scenario())
    assert sum(" lost (" in line for line in lines(caplog)) == 2
    assert sum("is back" in line for line in lines(caplog)) == 2


def test_read_only(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A server that has become a replica is no server: the share decides until it is a master again."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with quotas(redis_server, 1) as (one,):
            await decide(one, TIGHT, "a")
            redis_server.command("REPLICAOF", "127.0.0.1", "1")
            await until(lambda: not one.connected)
            assert isinstance(one.reserve(TIGHT, "b", ONE, now_ns=time.monotonic_ns()), Granted)
            redis_server.command("REPLICAOF", "NO", "ONE")
            await until(lambda: one.connected)
            for name in "ab":
                one.settle(name, ONE, now_ns=time.monotonic_ns())
            assert (await reconciled(redis_server, one))["settled"] == 2

    asyncio.run(scenario())
    assert sum(" lost (" in line for line in lines(caplog)) == 1


@pytest.mark.parametrize("how", ["FLUSHALL", "kill -9"])
def test_everything_forgotten(redis_server: RedisServer, how: str) -> None:
    """Leases of before are void, what is in flight is entered again, and ends as it should."""

    async def scenario() -> None:
        async with quotas(redis_server, 2) as (one, two):
            for number in range(20):
                assert isinstance(await decide(one, WHO, f"a{number}"), Granted)
                assert isinstance(await decide(two, WHO, f"b{number}"), Granted)
            await until(lambda: in_flight(redis_server) == 40)
            if how == "FLUSHALL":
                redis_server.command("FLUSHALL")
            else:
                redis_server.kill()
                await until(lambda: not one.connected and not two.connected)
                for number in range(20, 30):
                    assert isinstance(await decide(one, WHO, f"a{number}"), Granted)
                redis_server.start()
                await until(lambda: one.connected and two.connected)
            await decide(one, WHO, "a-after")
            await decide(two, WHO, "b-after")
            count = 42 if how == "FLUSHALL" else 52
            await until(lambda: in_flight(redis_server) == count)
            for name in [*one._table._running]:
                assert one.settle(name, ONE, now_ns=time.monotonic_ns())
            for name in [*two._table._running]:
                # Their records come to the other service.
                assert one.settle(name, ONE, now_ns=time.monotonic_ns(), account=WHO)
            assert (await reconciled(redis_server, one, two))["settled"] == count

    asyncio.run(scenario())


def test_scripts_forgotten(redis_server: RedisServer) -> None:
    """SCRIPT FLUSH in the middle: questions and the journal load them again, nothing is lost."""

    async def scenario() -> None:
        async with quotas(redis_server, 1) as (one,):
            for number in range(10):
                redis_server.command("SCRIPT", "FLUSH")
                assert isinstance(await decide(one, WHO, f"a{number}"), Granted)
                redis_server.command("SCRIPT", "FLUSH")
                one.settle(f"a{number}", ONE, now_ns=time.monotonic_ns())
                await asyncio.sleep(0.02)
            assert (await reconciled(redis_server, one))["settled"] == 10
            assert one.counts["script_reloaded"] > 0
            assert one.counts["lost"] == 0

    asyncio.run(scenario())


CLIENT = """
import asyncio, sys, time
from extproc.core.quota import *
from extproc.state.quota.books import RedisQuota
async def main():
    quota = limits(requests_per_minute=600_000, concurrent_requests=10_000)
    who = Account("t", "k", "m", (("tenant", quota),))
    one = RedisQuota(sys.argv[1], service_id="victim", limits=QuotaLimits(reservation_ttl_ns=10**9))
    await one.start()
    n = 0
    while True:
        n += 1
        answer = one.reserve(who, f"v{n}", Amounts(1, 10, 10, 1.0, 0.0), now_ns=time.monotonic_ns())
        if isinstance(answer, Ask):
            await one.ask(who, f"v{n}", Amounts(1, 10, 10, 1.0, 0.0))
        if n % 2:
            one.settle(f"v{n}", Amounts(1, 5, 5, 1.0, 0.0), now_ns=time.monotonic_ns())
        if n == 100:
            print("going", flush=True)
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


def test_a_service_killed_in_the_middle(redis_server: RedisServer) -> None:
    """What it had reserved expires by itself: reserved = settled + expired, and nothing is in flight."""
    root = str(Path(__file__).resolve().parents[2])
    victim = subprocess.Popen(
        [sys.executable, "-c", CLIENT, redis_server.url],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
    )
    assert victim.stdout is not None
    try:
        with victim.stdout:
            assert victim.stdout.readline() == b"going\n"
    finally:
        victim.kill()
        victim.wait(30)

    async def scenario() -> None:
        async with quotas(redis_server, 1, ttl_ns=1_000_000_000) as (one,):
            assert in_flight(redis_server) > 0
            await asyncio.sleep(2.1)
            for number in range(40):
                await decide(one, TIGHT, f"a{number}")
                one.settle(f"a{number}", ONE, now_ns=time.monotonic_ns())
                await asyncio.sleep(0.01)
            found = await reconciled(redis_server, one)
            assert found["expired"] > 10
            assert found["settled"] > 40

    asyncio.run(scenario())
