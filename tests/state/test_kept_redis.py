"""What `adjust` has learnt, where services share through Redis."""

from __future__ import annotations

import asyncio

from redis_harness import Redis as RedisServer

from extproc.config.load import loads
from extproc.service.app import App
from extproc.service.journal import AGAIN_NS
from tests.service.test_journal import TEXT, Time


def test_with_redis_what_adjust_has_learnt_is_there(redis_server: RedisServer) -> None:
    """The next service begins with it; while Redis is away nothing ends, and it is written later."""
    clock = Time()
    text = f"{TEXT}\nsharing: {{redis: '{redis_server.url}'}}"

    async def learnt() -> None:
        app = App(loads(text), clock=clock)
        await app.keeping.start()
        app.adjusting.restore({"t": [0.1, 0.0, 0.8, 0.1, 5.0]})
        assert await app.keeping.flush()
        redis_server.kill()
        app.adjusting.restore({"t": [0.1, 0.0, 0.7, 0.1, 6.0]})
        assert not await app.keeping.flush()
        assert "redis" in app.keeping.why
        redis_server.start()
        clock.now_ns += AGAIN_NS
        assert await app.keeping.flush()
        await app.keeping.stop()

    async def next_one() -> dict[str, float]:
        app = App(loads(text), clock=clock)
        await app.keeping.start()
        await app.keeping.stop()
        return app.adjusting.factors

    asyncio.run(learnt())
    assert asyncio.run(next_one()) == {"t": 0.7}
