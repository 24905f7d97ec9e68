"""Answers in a real Redis, for tests: stores that stand, and what they are asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from extproc.cache.purging import AnswerOrigin, PurgeOrder
from extproc.cache.redis.answers import RedisAnswers
from extproc.cache.sealed import AnswerSeal
from extproc.cache.store import Absent, AnswerStore, KeptAnswer, packed
from extproc.core.cachekeys import Usage

MIB = 1024 * 1024
SECOND = 1_000_000_000
#: Far more than any test waits: what is late is no affair of a test's that is not about it.
PATIENT_S = 30.0
prefixes = (f"t{number}" for number in itertools.count())


def answer(
    body: bytes = b"hello", *, now_ns: int, ttl_s: float = 3_600.0, tenant: str = "a", **more: Any
) -> KeptAnswer:
    """One that is made now."""
    return KeptAnswer(
        packed=packed(body),
        length=len(body),
        stream=more.get("stream", False),
        tenant=tenant,
        model=more.get("model", "m"),
        pool=more.get("pool", "p"),
        usage=Usage(1, 2),
        made_ns=now_ns,
        expires_ns=now_ns + int(ttl_s * SECOND),
        gpu_ms=more.get("gpu_ms", 0.0),
    )


@contextlib.asynccontextmanager
async def standing(
    url: str,
    *,
    prefix: str,
    keys: Sequence[bytes] = (),
    bytes_max: int = 64 * MIB,
    name: str = "one",
    budget_s: float = PATIENT_S,
    on_purged: Callable[[Sequence[PurgeOrder]], None] = lambda _: None,
    unwanted: Callable[[str, AnswerOrigin], bool] = lambda *_: False,
    connects: bool = True,
) -> AsyncIterator[RedisAnswers]:
    """A store of a service, connected."""
    store = RedisAnswers(
        url,
        prefix=prefix,
        name=name,
        seal=AnswerSeal(keys),
        bytes_max=bytes_max,
        clock=time.monotonic_ns,
        on_purged=on_purged,
        budget_s=budget_s,
    )
    store.start(unwanted)
    try:
        if connects:
            await until(lambda: store.session.connected)
        yield store
    finally:
        await store.close()
        assert not store.counts["script_failed"]


async def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    """Wait for a condition."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, "it did not happen in time"
        await asyncio.sleep(0.005)


async def told(store: AnswerStore) -> None:
    """Redis has heard all that the store was told."""
    if isinstance(store, RedisAnswers):
        session = store.session
        begun = session.turns

        def done() -> bool:
            session.work.set()
            return session.turns >= begun + 2

        await until(done)


async def found_again(store: AnswerStore, scope: str, key: bytes) -> KeptAnswer:
    """It is there, and was late or not asked for at first."""
    found: list[KeptAnswer] = []
    begun = time.monotonic()
    while not found:
        assert time.monotonic() - begun < 30.0, "it was never found"
        one = await find(store, scope, key)
        found += [one] if isinstance(one, KeptAnswer) else []
        await asyncio.sleep(0.02)
    return found[0]


async def find(store: AnswerStore, scope: str, key: bytes) -> KeptAnswer | Absent:
    """As a decision looks."""
    found = store.get(scope, key, now_ns=time.monotonic_ns())
    return await store.ask(scope, key) if found is Absent.ASK else found
