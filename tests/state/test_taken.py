"""Tokens of other sites that several services take: once among them, and once each while Redis is away."""

from __future__ import annotations

import asyncio
import itertools
import time

from redis_harness import Redis as RedisServer

from extproc.state.taken import PAUSE_NS, SharedTaken
from tests.service.test_journal import Time
from tests.stand.redis_answers import PATIENT_S
from tests.stand.waits import PATIENCE_S


def shared(url: str, *, clock: Time | None = None, budget_s: float = PATIENT_S) -> SharedTaken:
    return SharedTaken(url, prefix="t", clock=clock or Time(), budget_s=budget_s)


def test_what_one_service_took_no_other_takes(redis_server: RedisServer) -> None:
    """By its name at its site, for as long as it may hold."""

    async def play() -> None:
        one, other = shared(redis_server.url), shared(redis_server.url)
        assert await one.first("shop", "n1", life_s=60.0)
        assert not await other.first("shop", "n1", life_s=60.0)
        assert await other.first("kiosk", "n1", life_s=60.0)
        assert await one.first("shop", "short", life_s=0.001)
        deadline_s = time.monotonic() + PATIENCE_S
        while not await other.first("shop", "short", life_s=60.0):
            assert time.monotonic() < deadline_s, "what holds no more is still known"
        assert other.counts["used"] >= 1
        await one.close()
        await other.close()

    asyncio.run(play())


def test_while_redis_is_away_each_goes_by_its_own(redis_server: RedisServer) -> None:
    """A failure lets the token in, and nobody asks for a moment; then they share again."""
    names = (f"n{i}" for i in itertools.count())

    async def play() -> None:
        clock = Time()
        one, other = shared(redis_server.url, clock=clock), shared(redis_server.url)
        assert await one.first("shop", "before", life_s=60.0)
        redis_server.kill()
        assert await one.first("shop", "away", life_s=60.0)
        assert await one.first("shop", next(names), life_s=60.0)
        assert (one.counts["lost"], one.counts["unasked"]) == (1, 1)
        redis_server.start()
        clock.now_ns += PAUSE_NS
        assert await one.first("shop", "after", life_s=60.0)
        assert not await other.first("shop", "after", life_s=60.0)
        assert one.counts["back"] == 1
        await one.close()
        await other.close()

    asyncio.run(play())


def test_redis_that_is_slow_costs_the_budget_and_no_more(redis_server: RedisServer) -> None:
    """Who waits goes on; what was asked late is kept all the same."""

    async def play() -> None:
        late, other = shared(redis_server.url, budget_s=0.0), shared(redis_server.url)
        assert await late.first("shop", "n", life_s=60.0)
        assert late.counts["late"] == 1
        deadline_s = time.monotonic() + PATIENCE_S
        while late.under_way:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.001)
        assert not await other.first("shop", "n", life_s=60.0)
        await late.close()
        await other.close()

    asyncio.run(play())
