"""A look into a store that has to be asked: the decision waits, others go on, and a fault is a miss."""

from __future__ import annotations

import asyncio
from typing import Any

import envoy_messages as envoy
import pytest
from serving import Running, running

from extproc.cache.exact import ResponseCache
from extproc.cache.memory import MemoryAnswers
from extproc.cache.store import Absent, KeptAnswer
from extproc.core.cachekeys import CacheRule
from extproc.core.scheduler import ClassSpec
from extproc.wire.server import TransportName
from tests.stand.cached import CHAT, answer_of, body_of
from tests.stand.holding import S, policy
from tests.stand.schedulers import make_pool, make_scheduler
from tests.stand.waits import until


class Remote(MemoryAnswers):
    """A store that answers when a test lets it."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.may_answer = asyncio.Event()
        self.asked = self.gave_up = 0
        self.fault: Exception | None = None

    def get(self, scope: str, key: bytes, *, now_ns: int) -> KeptAnswer | Absent:
        return Absent.ASK

    async def ask(self, scope: str, key: bytes) -> KeptAnswer | Absent:
        self.asked += 1
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.gave_up += 1
            raise
        if self.fault is not None:
            raise self.fault
        return super().get(scope, key, now_ns=0)


@pytest.fixture(params=["http2", "grpcio"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each behaviour holds on both."""
    name: TransportName = request.param
    return name


def caching(it: Running) -> tuple[Remote, ResponseCache]:
    store = Remote()
    cache = ResponseCache(
        store,
        lambda tenant, _: CacheRule(scope=f"tenant:{tenant}"),
        answer_bytes_max=4_096,
        request_bytes_max=4_096,
        clock=lambda: 0,
    )
    it.processor.cache, it.processor.event_cluster = cache, "events"
    return store, cache


def served() -> Any:
    return make_scheduler(
        make_pool("10.0.0.1:80", permits=64), policy=policy(ClassSpec(hold_ns=20 * S), quota=False)
    )


async def asking(it: Running, body: bytes) -> Any:
    call = it.exchange()
    await call.write(envoy.headers("POST", CHAT))
    await call.read()
    await call.write(envoy.body(body))
    return call


def test_a_hit_of_a_store_that_is_asked(transport: TransportName) -> None:
    """It waits for the store and is answered; a request that is not looked up overtakes it."""

    async def play() -> None:
        async with running(transport=transport, scheduler=served()) as it:
            store, cache = caching(it)
            call = await asking(it, body_of())
            await until(lambda: store.asked == 1)
            other = await asking(it, body_of(temperature=1))
            assert envoy.response(await other.read()).HasField("request_body")
            store.may_answer.set()
            assert envoy.response(await call.read()).HasField("request_body")
            reservation = next(iter(cache._awaited))
            assert cache.fill(reservation, answer_of())
            again = await asking(it, body_of())
            hit = envoy.response(await again.read()).immediate_response
            assert hit.body == answer_of()
            assert cache.looked["anonymous", "hit"] == 1
            await until(lambda: it.processor.open_exchanges == 0)

    asyncio.run(play())


def test_equal_ones_that_asked_at_once_wait_for_one(transport: TransportName) -> None:
    """All missed; the first goes to a replica, and the others get its answer."""

    async def play() -> None:
        async with running(transport=transport, scheduler=served()) as it:
            store, cache = caching(it)
            calls = [await asking(it, body_of()) for _ in range(5)]
            await until(lambda: store.asked == 5)
            store.may_answer.set()
            await until(lambda: it.processor.joined == 4)
            assert cache.fill(next(iter(cache._awaited)), answer_of())
            bodies = []
            for call in calls:
                told = envoy.response(await call.read())
                if told.HasField("override_message_timeout"):
                    told = envoy.response(await call.read())
                bodies.append(told.immediate_response.body)
            assert sorted(bodies) == [b"", *[answer_of()] * 4]

    asyncio.run(play())


def test_a_store_that_fails_or_is_left_costs_nobody_a_decision(transport: TransportName) -> None:
    """An exception is a miss; a client that leaves meanwhile leaves nothing behind."""

    async def play() -> None:
        async with running(transport=transport, scheduler=served()) as it:
            store, _ = caching(it)
            left = await asking(it, body_of("left"))
            await until(lambda: store.asked == 1)
            left.cancel()
            await until(lambda: store.gave_up == 1)
            store.fault = RuntimeError("broken")
            call = await asking(it, body_of())
            store.may_answer.set()
            assert envoy.response(await call.read()).HasField("request_body")
            assert it.processor.scheduler.counts["exception.asking the store of answers"] == 1
            await until(lambda: it.processor.open_exchanges == 0)
            assert len(it.processor.scheduler.ledger) == 1

    asyncio.run(play())
