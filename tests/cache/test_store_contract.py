"""What every store of answers promises, in memory and in Redis, with and without encryption."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import pytest
from redis_harness import Redis as RedisServer

from extproc.cache.memory import MemoryAnswers
from extproc.cache.purging import PurgeOrder
from extproc.cache.store import Absent, AnswerStore, KeptAnswer
from tests.stand.redis_answers import MIB, answer, find, prefixes, standing, told

Check = Callable[[AnswerStore], Awaitable[None]]
#: Names that begin, end or look like one another, like groups, keys of Redis, patterns, tags and paths.
SCOPES = (
    *("tenant:a", "group:a", "tenant:", "tenant:a:b", "tenant:*", "tenant:{a}", "tenant:a}", "tenant:a\n"),
    *("tenant:a\x00b", "tenant:A", "tenant:а", "tenant:../a", "tenant:a\r\nDEL x", "tenant:" + "x" * 5_000),
)


def key_of(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


K = key_of(0)


@pytest.fixture(params=["memory", "redis", "encrypted"])
def play(request: pytest.FixtureRequest) -> Callable[[Check], None]:
    """Plays a check on a store that is empty."""

    def run(check: Check, *, bytes_max: int = 64 * MIB) -> None:
        async def stand() -> None:
            if request.param == "memory":
                await check(MemoryAnswers(bytes_max, clock=time.monotonic_ns))
                return
            server: RedisServer = request.getfixturevalue("redis_server")
            keys = [b"k" * 32] if request.param == "encrypted" else []
            async with standing(server.url, prefix=next(prefixes), keys=keys, bytes_max=bytes_max) as store:
                await check(store)

        asyncio.run(stand())

    return run


async def put(
    store: AnswerStore, scope: str, key: bytes, body: bytes = b"hello", *, most: int = MIB, **more: Any
) -> str:
    now_ns = time.monotonic_ns()
    store.expects(scope)
    kept = answer(body, now_ns=now_ns, **more)
    became = store.put(scope, key, kept, scope_bytes_max=most, begun_ns=now_ns, now_ns=now_ns)
    await told(store)
    return became


async def body_at(store: AnswerStore, scope: str, key: bytes) -> bytes | None:
    found = await find(store, scope, key)
    return found.body() if isinstance(found, KeptAnswer) else None


def test_an_answer_comes_back_as_it_was(play: Callable[[Check], None]) -> None:
    """Its body, whose it is, its usage, its age, and what it took; the one that replaces it as well."""

    async def check(store: AnswerStore) -> None:
        assert await find(store, "tenant:a", K) is Absent.MISS
        assert await put(store, "tenant:a", K, bytes(range(256)) * 50, tenant="é", model="m/1") == "kept"
        store.took("tenant:a", K, 12.5)
        store.took("tenant:a", K, 99.0)
        await told(store)
        found = await find(store, "tenant:a", K)
        assert isinstance(found, KeptAnswer)
        assert found.body() == bytes(range(256)) * 50
        assert (found.tenant, found.model, found.pool, found.stream) == ("é", "m/1", "p", False)
        assert (found.usage.input_tokens, found.usage.output_tokens, found.gpu_ms) == (1, 2, 12.5)
        now_ns = time.monotonic_ns()
        assert now_ns - 60_000_000_000 < found.made_ns <= now_ns + 2_000_000
        assert now_ns < found.expires_ns < now_ns + 3_700_000_000_000
        assert await put(store, "tenant:a", K, b"new", stream=True) == "kept"
        again = await store.peek("tenant:a", K)
        assert isinstance(again, KeptAnswer)
        assert (again.body(), again.stream) == (b"new", True)

    play(check)


def test_it_is_found_under_its_own_scope_and_key(play: Callable[[Check], None]) -> None:
    """And nowhere else, whatever the names look like."""

    async def check(store: AnswerStore) -> None:
        for number, scope in enumerate(SCOPES):
            await put(store, scope, K, b"of %d" % number)
        for number, scope in enumerate(SCOPES):
            assert await body_at(store, scope, K) == b"of %d" % number
            assert await find(store, scope, key_of(1)) is Absent.MISS

    play(check)


def test_it_is_gone_at_its_time(play: Callable[[Check], None]) -> None:
    """And not before; its bytes go with it."""

    async def check(store: AnswerStore) -> None:
        await put(store, "s", K, ttl_s=0.2)
        await put(store, "s", key_of(1), ttl_s=1_000)
        await asyncio.sleep(0.25)
        assert await find(store, "s", K) is Absent.MISS
        store.expire(now_ns=time.monotonic_ns(), most=100)
        await put(store, "s", key_of(2), ttl_s=1_000)
        assert await body_at(store, "s", key_of(1)) == b"hello"
        await figured(store, answers=2)

    play(check)


async def figured(store: AnswerStore, *, answers: int) -> int:
    """The bytes, once the figures tell so many answers."""
    begun = time.monotonic()
    while store.figures().answers != answers:
        assert time.monotonic() - begun < 30, store.figures()
        await asyncio.sleep(0.01)
    return store.figures().size


def test_the_least_recently_used_of_a_scope_goes_first(play: Callable[[Check], None]) -> None:
    """Within the scope's own bound; a look counts as use, a glance does not."""

    async def check(store: AnswerStore) -> None:
        await put(store, "s", K)
        size = await figured(store, answers=1)
        most = 2 * size
        await put(store, "s", key_of(1), most=most)
        assert await body_at(store, "s", K) == b"hello"
        assert isinstance(await store.peek("s", key_of(1)), KeptAnswer)
        assert await put(store, "s", key_of(2), most=most) == "kept"
        there = [number for number in range(3) if await body_at(store, "s", key_of(number))]
        assert there == [0, 2]
        assert await figured(store, answers=2) <= most
        assert store.figures().evicted == 1

    play(check)


def test_who_has_most_gives_way_at_the_common_bound(play: Callable[..., None]) -> None:
    """A tenant that fills the cache costs the others nothing."""

    async def check(store: AnswerStore) -> None:
        await put(store, "small", K)
        for number in range(40):
            await put(store, "large", key_of(number), b"%05d" % number)
        assert await body_at(store, "small", K) == b"hello"
        there = [number for number in range(40) if await body_at(store, "large", key_of(number))]
        assert there == list(range(40 - len(there), 40))
        assert 4 <= len(there) <= 12
        assert await figured(store, answers=len(there) + 1) <= 8_000

    play(check, bytes_max=8_000)


def test_what_is_larger_than_all_is_not_kept(play: Callable[[Check], None]) -> None:
    """Nothing goes for it."""

    async def check(store: AnswerStore) -> None:
        await put(store, "s", K)
        big = b"".join(key_of(number) for number in range(400))
        assert await put(store, "s", key_of(1), big, most=10_000) == "large"
        assert await body_at(store, "s", K) == b"hello"
        assert await find(store, "s", key_of(1)) is Absent.MISS

    play(check)


def test_one_is_dropped(play: Callable[[Check], None]) -> None:
    """And the others stay."""

    async def check(store: AnswerStore) -> None:
        await put(store, "s", K)
        await put(store, "s", key_of(1))
        store.drop("s", K)
        store.drop("s", key_of(7))
        await told(store)
        assert await find(store, "s", K) is Absent.MISS
        assert await body_at(store, "s", key_of(1)) == b"hello"
        await figured(store, answers=1)

    play(check)


@pytest.mark.parametrize(
    ("order", "left"),
    [
        (PurgeOrder(), set()),
        (PurgeOrder(tenant="a"), {2, 3}),
        (PurgeOrder(tenant="a", model="n"), {0, 1, 2, 3}),
        (PurgeOrder(tenant="a", model="m", pool="p"), {2, 3}),
        (PurgeOrder(tenant="a", shared=True), {0, 2, 3}),
        (PurgeOrder(key=key_of(2)), {0, 1, 3}),
        (PurgeOrder(older_ns=3_600_000_000_000), {0, 1, 2, 3}),
        (PurgeOrder(pool="p", older_ns=1), set()),
        (PurgeOrder(tenant="a*"), {0, 1, 2, 3}),
    ],
)
def test_a_purge_takes_what_is_meant(
    play: Callable[[Check], None], order: PurgeOrder, left: set[int]
) -> None:
    """By tenant (in its groups too), model, pool, key, age; and tells how many."""

    async def check(store: AnswerStore) -> None:
        for number, (scope, tenant) in enumerate(
            (("tenant:a", "a"), ("group:g", "a"), ("group:g", "b"), ("tenant:b", "b"))
        ):
            await put(store, scope, key_of(number), tenant=tenant)
        await asyncio.sleep(0.01)
        gone = store.purge([order])
        assert (gone if isinstance(gone, int) else await gone) == 4 - len(left)
        there = [
            number
            for number, scope in enumerate(("tenant:a", "group:g", "group:g", "tenant:b"))
            if await body_at(store, scope, key_of(number))
        ]
        assert set(there) == left
        await figured(store, answers=len(left))

    play(check)
