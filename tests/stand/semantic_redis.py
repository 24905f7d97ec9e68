"""A semantic cache in a test over a real Redis: one service of several."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any

from extproc.cache.purging import AnswerOrigin
from extproc.cache.redis.questions import RedisQuestions
from extproc.cache.sealed import AnswerSeal
from extproc.core.cachekeys import CachedAnswer, CacheRule, WantedAnswer
from tests.stand.redis_answers import PATIENT_S, until
from tests.stand.semantic import Wording


class SharedWording(Wording):
    """Its clock is the machine's. `ask_it` is what a gateway does, and tells Redis of it."""

    store_of: RedisQuestions

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns()

    @now_ns.setter
    def now_ns(self, value: int) -> None:
        """It goes by itself."""

    async def ask_it(self, tenant: str, body: bytes, answer: bytes) -> tuple[bytes, str]:
        """The answer and how it came: semantic, or engine. The exact cache is empty each time."""
        self.forget_exact()
        found = self.look(tenant, body)
        assert isinstance(found, WantedAnswer)
        told: list[CachedAnswer | None] = []
        self.cache.join(found, tenant, until_ns=self.now_ns, size=len(body), tell=told.append)
        self.port.deliver()
        if self.store_of.connected:
            await until(lambda: bool(told))
        if told and told[0] is not None:
            return told[0].body, "semantic"
        self.filled(tenant, found, answer)
        await self.heard()
        return answer, "engine"

    async def heard(self) -> None:
        """What this one was to tell is told, and what others told before is heard."""
        session = self.store_of.session
        if not session.connected:
            return
        begun = session.turns

        def done() -> bool:
            session.work.set()
            return session.turns >= begun + 2

        await until(done)


@contextlib.asynccontextmanager
async def wording_there(
    url: str,
    rules: dict[str, CacheRule],
    *,
    prefix: str,
    name: str = "one",
    keys: Sequence[bytes] = (),
    model_id: str = "",
    keep_s: float = 86_400.0,
    unwanted: Callable[[str, AnswerOrigin], bool] = lambda *_: False,
    **bounds: Any,
) -> AsyncIterator[SharedWording]:
    """A service whose questions are in Redis, connected."""
    wording = SharedWording(rules, **bounds)
    store = wording.store_of = RedisQuestions(
        url,
        prefix=prefix,
        name=name,
        seal=AnswerSeal(keys),
        model_id=model_id,
        books=wording.semantic,
        keep_s=keep_s,
        budget_s=PATIENT_S,
        clock=time.monotonic_ns,
    )
    # Two services never have the same chance.
    wording.semantic._chance = Random(name)
    wording.semantic.store = store
    store.start(unwanted)
    try:
        await until(lambda: store.connected)
        yield wording
    finally:
        await store.close()
        assert not store.counts["script_failed"]
