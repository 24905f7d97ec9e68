"""Those that wait for an answer do not get it where another service has purged it meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis_harness import Redis as RedisServer

from extproc.cache.purging import PurgeOrder
from extproc.core.cachekeys import AskAnswer, CachedAnswer, CacheRule, WantedAnswer
from tests.stand.cached import Asking, answer_of, body_of
from tests.stand.redis_answers import prefixes, standing, told, until

BODY = body_of("the same")


@pytest.mark.parametrize("tenant", ["a", "b"])
def test_a_purge_that_is_not_heard_yet_counts_for_those_that_wait(
    redis_server: RedisServer, tenant: str
) -> None:
    """The service that has the answer has not heard of it: of its own tenant's purge it hears when it asks.

    Another tenant's purge costs nobody an answer.
    """

    async def check() -> None:
        prefix = next(prefixes)
        async with (
            standing(redis_server.url, prefix=prefix, name="one") as one,
            standing(redis_server.url, prefix=prefix, name="deaf") as store,
        ):
            asking = Asking({"a": CacheRule(scope="tenant:a")})
            asking.now_ns = time.monotonic_ns()
            cache = asking.cache
            cache.store, cache._clock = store, time.monotonic_ns
            heard: list[CachedAnswer | None] = []
            wanted = await looked(asking)
            cache.flagged("first", "a", wanted)
            await told(store)
            second = await looked(asking)
            until_ns = time.monotonic_ns() + 10**12
            assert cache.join(second, "a", until_ns=until_ns, size=1, tell=heard.append)
            await one.purge([PurgeOrder(tenant=tenant)])
            assert cache.fill("first", answer_of())
            cache.settled("first", gpu_ms=1.0)
            await until(lambda: bool(heard))
            assert [each is None for each in heard] == [tenant == "a"]
            assert len(cache.flights) == 0
            assert not store.counts["unconfirmed"]

    asyncio.run(check())


async def looked(asking: Asking) -> WantedAnswer:
    """A look that finds nothing."""
    request, tenant = asking.asked("a", BODY)
    found = asking.cache.look(request, BODY, tenant, model="m", pool="p", directive=None)
    assert isinstance(found, AskAnswer)
    assert await asking.cache.ask(found) is None
    return found.wanted
