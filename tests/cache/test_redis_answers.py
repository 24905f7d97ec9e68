"""Answers in Redis: what is late, away, poisoned or purged is not given, and the loop never waits."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from redis_harness import Redis as RedisServer

from extproc.cache.purging import PurgeOrder
from extproc.cache.redis.answers import RedisAnswers
from extproc.cache.redis.errands import ERRANDS_BYTES_MAX, ERRANDS_MAX, PURGES_MAX
from extproc.cache.sealed import AnswerSeal, PoisonedError
from extproc.cache.store import Absent, KeptAnswer
from tests.cache.test_store_contract import K, body_at, key_of, put
from tests.stand.redis_answers import MIB, answer, find, found_again, prefixes, standing, told, until
from tests.state.conftest import Lag

ONE, TWO = b"1" * 32, b"2" * 32


def raw_keys(server: RedisServer, prefix: str, part: str) -> list[bytes]:
    """The keys of one kind, of all scopes."""
    found: list[bytes] = server.command("KEYS", f"{{{prefix}:cache:*:{part}*")
    return sorted(found)


def test_a_slow_redis_is_a_miss_within_the_budget(redis_server: RedisServer) -> None:
    """Then nobody asks for a moment; the loop goes on meanwhile, and it is asked again after."""

    async def check() -> None:
        async with standing(redis_server.url, prefix=next(prefixes), budget_s=0.05) as store, Lag() as lag:
            await put(store, "s", K)
            await found_again(store, "s", K)
            redis_server.signal(signal.SIGSTOP)
            try:
                assert await find(store, "s", K) is Absent.LATE
                assert await find(store, "s", K) is Absent.AWAY
            finally:
                redis_server.signal(signal.SIGCONT)
            await found_again(store, "s", K)
        assert not lag.blocked

    asyncio.run(check())


def test_a_redis_that_is_away_costs_the_answers_alone(tmp_path: Path) -> None:
    """Every look is a miss at once, what came meanwhile is dropped, and a purge waits until it is back."""

    async def check(server: RedisServer) -> None:
        async with standing(server.url, prefix="away") as store, Lag() as lag:
            await put(store, "tenant:a", K)
            server.kill()
            await until(lambda: not store.session.connected)
            assert await find(store, "tenant:a", K) is Absent.AWAY
            assert await put_now(store, key_of(1)) == "away"
            gone = asyncio.ensure_future(store.purge([PurgeOrder(tenant="a")]))
            await asyncio.sleep(0.05)
            assert not gone.done()
            assert store.figures().away
            server.start()
            assert await gone == 0
            await until(lambda: store.session.connected)
            # What is asked for in a purge's own moment may count as of before; and a look may be late.
            begun = time.monotonic()
            while await body_at(store, "tenant:a", K) != b"new":
                assert time.monotonic() - begun < 30.0
                assert await put(store, "tenant:a", K, b"new") == "kept"
        assert not lag.blocked

    with RedisServer(tmp_path) as server:
        asyncio.run(check(server))


async def put_now(store: RedisAnswers, key: bytes, *, begun_ns: int | None = None) -> str:
    now_ns = time.monotonic_ns()
    kept = answer(now_ns=now_ns)
    begun_ns = now_ns if begun_ns is None else begun_ns
    return store.put("tenant:a", key, kept, scope_bytes_max=MIB, begun_ns=begun_ns, now_ns=now_ns)


def test_a_server_that_may_only_be_read_is_none_of_ours(tmp_path: Path) -> None:
    """A master that was demoted is left, though it would still answer; it counts again when it is one."""

    async def check(server: RedisServer) -> None:
        async with standing(server.url, prefix="demoted") as store:
            await put(store, "tenant:a", K)
            server.command("REPLICAOF", "127.0.0.1", "1")
            await until(lambda: not store.session.connected)
            assert await find(store, "tenant:a", K) is Absent.AWAY
            server.command("REPLICAOF", "NO", "ONE")
            await until(lambda: store.session.connected)
            assert isinstance(await find(store, "tenant:a", K), KeptAnswer)

    with RedisServer(tmp_path) as server:
        asyncio.run(check(server))


def test_a_full_server_still_answers(redis_server: RedisServer) -> None:
    """What it cannot keep is dropped and counted; nothing else ends."""

    async def check() -> None:
        async with standing(redis_server.url, prefix=next(prefixes)) as store:
            await put(store, "tenant:a", K)
            redis_server.command("CONFIG", "SET", "maxmemory", "1")
            try:
                assert isinstance(await find(store, "tenant:a", K), KeptAnswer)
                await put_now(store, key_of(1))
                await until(lambda: store.counts["out_of_memory"] > 0)
                assert isinstance(await find(store, "tenant:a", K), KeptAnswer)
                assert store.session.connected
            finally:
                redis_server.command("CONFIG", "SET", "maxmemory", "0")
            assert await put(store, "tenant:a", key_of(2)) == "kept"
            assert await body_at(store, "tenant:a", key_of(2)) == b"hello"

    asyncio.run(check())


def test_it_goes_on_after_its_scripts_and_data_are_forgotten(redis_server: RedisServer) -> None:
    """SCRIPT FLUSH and FLUSHALL cost answers, no errors."""

    async def check() -> None:
        async with standing(redis_server.url, prefix=next(prefixes)) as store:
            await put(store, "tenant:a", K)
            redis_server.command("SCRIPT", "FLUSH")
            assert await body_at(store, "tenant:a", K) == b"hello"
            await put(store, "tenant:a", key_of(1))
            redis_server.command("FLUSHALL")
            assert await find(store, "tenant:a", K) is Absent.MISS
            assert await put(store, "tenant:a", key_of(1)) == "kept"
            assert await body_at(store, "tenant:a", key_of(1)) == b"hello"

    asyncio.run(check())


def test_looks_at_one_time_are_one_round_trip_and_each_gets_its_own(redis_server: RedisServer) -> None:
    """What stands in one's place there is refused for that one alone; and all of them take one connection."""

    async def check() -> None:
        prefix = next(prefixes)
        async with standing(redis_server.url, prefix=prefix) as store:
            for number in range(40):
                await put(store, "tenant:a", key_of(number), b"of %d" % number)
            [spoilt] = [each for each in raw_keys(redis_server, prefix, "a:") if each.endswith(key_of(7))]
            redis_server.command("DEL", spoilt)
            redis_server.command("RPUSH", spoilt, "none of ours")
            await find(store, "tenant:a", K)
            clients = redis_server.command("CLIENT", "LIST").count(b"\n")
            keys = [key_of(number) for number in range(50)]
            found = await asyncio.gather(*(find(store, "tenant:a", key) for key in keys))
            assert redis_server.command("CLIENT", "LIST").count(b"\n") == clients
            for number, each in enumerate(found):
                if number == 7:
                    assert each is Absent.POISONED
                elif number < 40:
                    assert isinstance(each, KeptAnswer)
                    assert each.body() == b"of %d" % number
                else:
                    assert each is Absent.MISS
            assert store.refused == {"unreadable": 1}

    asyncio.run(check())


@pytest.mark.parametrize("keys", [(), (ONE,)], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    "harm",
    ["cut", "longer", "bit", "empty", "garbage", "other key's", "other scope's", "no index", "index", "kind"],
)
def test_a_poisoned_entry_is_refused_and_gone(
    redis_server: RedisServer, harm: str, keys: Sequence[bytes]
) -> None:
    """Whatever was done to it or to its place; the answers beside it stay, and a new one takes its place."""
    prefix = next(prefixes)

    def poison() -> None:
        names = raw_keys(server, prefix, "a:")
        entries = {name: server.command("GET", name) for name in names}
        mine = next(name for name in names if name.endswith(K) and of_a in name)
        entry = entries[mine]
        match harm:
            case "cut":
                server.command("SET", mine, entry[:-3])
            case "longer":
                server.command("SET", mine, entry + b"x")
            case "bit":
                server.command("SETRANGE", mine, len(entry) // 2, bytes([entry[len(entry) // 2] ^ 1]))
            case "empty":
                server.command("SET", mine, b"")
            case "garbage":
                server.command("SET", mine, b"SA1p" + b"\x91" * 40)
            case "other key's":
                other = next(name for name in entries if name.endswith(key_of(1)) and of_a in name)
                server.command("SET", mine, entries[other])
            case "other scope's":
                other = next(name for name in entries if of_a not in name)
                server.command("SET", mine, entries[other])
            case "no index":
                server.command("HSET", mine.replace(b":a:" + K, b":m"), K, b"\xc1")
            case "index":
                server.command("HSET", mine.replace(b":a:" + K, b":m"), K, b"\x80")
            case _:
                server.command("DEL", mine)
                server.command("LPUSH", mine, "x")

    async def check() -> None:
        nonlocal of_a
        async with standing(server.url, prefix=prefix, keys=keys) as store:
            await put(store, "tenant:a", K)
            of_a = raw_keys(server, prefix, "a:")[0].partition(b"}")[0]
            await put(store, "tenant:a", key_of(1), b"one")
            await put(store, "tenant:b", K, b"of b", tenant="b")
            poison()
            assert await find(store, "tenant:a", K) is Absent.POISONED
            assert sum(store.refused.values()) == 1
            await told(store)
            assert await find(store, "tenant:a", K) is Absent.MISS
            assert await body_at(store, "tenant:a", key_of(1)) == b"one"
            assert await body_at(store, "tenant:b", K) == b"of b"
            assert await put(store, "tenant:a", K, b"new") == "kept"
            assert await body_at(store, "tenant:a", K) == b"new"

    server, of_a = redis_server, b""
    asyncio.run(check())


def test_an_index_that_is_something_else_is_made_anew(redis_server: RedisServer) -> None:
    """Its answers are lost, and no script fails for ever."""

    async def check() -> None:
        prefix = next(prefixes)
        async with standing(redis_server.url, prefix=prefix) as store:
            await put(store, "tenant:a", K)
            for part in "muxp":
                name = raw_keys(redis_server, prefix, "a:")[0].partition(b"}")[0] + b"}:" + part.encode()
                redis_server.command("DEL", name)
                redis_server.command("SET", name, "x")
            assert await find(store, "tenant:a", K) is Absent.POISONED
            await told(store)
            assert await put(store, "tenant:a", K, b"new") == "kept"
            assert await body_at(store, "tenant:a", K) == b"new"

    asyncio.run(check())


def test_keys_rotate_and_a_wrong_one_opens_nothing(redis_server: RedisServer) -> None:
    """The first encrypts, each decrypts; nothing can be read in Redis; who has no key refuses."""
    prefix, secret = next(prefixes), b"a secret of the patient"

    async def found(keys: Sequence[bytes]) -> tuple[bytes | None, dict[str, int]]:
        async with standing(redis_server.url, prefix=prefix, keys=keys) as store:
            return await body_at(store, "tenant:a", K), dict(store.refused)

    async def check() -> None:
        async with standing(redis_server.url, prefix=prefix, keys=[ONE]) as store:
            await put(store, "tenant:a", K, secret)
        for name in raw_keys(redis_server, prefix, "a:"):
            entry: bytes = redis_server.command("GET", name)
            assert b"patient" not in entry
            assert zlib_of(secret) not in entry
        assert await found([TWO, ONE]) == (secret, {})
        assert await found([TWO]) == (None, {"key": 1})
        async with standing(redis_server.url, prefix=prefix, keys=[TWO, ONE]) as store:
            await put(store, "tenant:a", K, secret)
        assert await found([TWO]) == (secret, {})
        assert await found([]) == (None, {"encrypted": 1})
        async with standing(redis_server.url, prefix=prefix) as store:
            await put(store, "tenant:a", K, secret)
        assert await found([ONE]) == (None, {"unencrypted": 1})

    asyncio.run(check())


def zlib_of(body: bytes) -> bytes:
    return answer(body, now_ns=0).packed


def test_a_sealed_answer_opens_for_its_own_scope_and_key_alone() -> None:
    """Encrypted or not, and whatever byte of it is changed."""
    for keys in ((), (ONE,)):
        seal = AnswerSeal(keys)
        entry = seal.write("tenant:a", K, answer(now_ns=0))
        assert seal.read("tenant:a", K, entry).body() == b"hello"
        for scope, key in (("tenant:b", K), ("tenant:a", key_of(1)), ("group:a", K)):
            with pytest.raises(PoisonedError):
                seal.read(scope, key, entry)
        for at in range(len(entry)):
            with pytest.raises(PoisonedError):
                seal.read("tenant:a", K, entry[:at] + bytes([entry[at] ^ 0x40]) + entry[at + 1 :])


def test_a_purge_by_one_service_reaches_the_others(redis_server: RedisServer) -> None:
    """What is kept is gone for all; an answer that was asked for before is kept nowhere, whenever it comes,
    and nobody waits for it any more; one that was asked for after is kept."""

    async def check() -> None:
        prefix, heard = next(prefixes), list[PurgeOrder]()
        async with (
            standing(redis_server.url, prefix=prefix, name="one") as one,
            standing(redis_server.url, prefix=prefix, name="two", on_purged=heard.extend) as two,
        ):
            await put(one, "tenant:a", K)
            assert isinstance(await find(two, "tenant:a", K), KeptAnswer)
            two.expects("tenant:a")
            begun_ns = time.monotonic_ns()
            await told(two)
            order = PurgeOrder(tenant="a", model="m")
            assert await one.purge([order]) == 1
            assert await find(two, "tenant:a", K) is Absent.MISS
            await put_now(two, K, begun_ns=begun_ns)
            await told(two)
            assert two.counts["put.purged"] == 1
            assert await find(one, "tenant:a", K) is Absent.MISS
            await until(lambda: heard == [order])
            await asyncio.sleep(0.01)
            assert await put(two, "tenant:a", K) == "kept"
            assert isinstance(await find(one, "tenant:a", K), KeptAnswer)

    asyncio.run(check())


def test_the_first_answer_of_a_tenant_is_refused_too_where_it_was_purged_on_its_way(
    redis_server: RedisServer,
) -> None:
    """Nothing was kept of it yet: that it was expected is enough."""

    async def check() -> None:
        prefix = next(prefixes)
        async with (
            standing(redis_server.url, prefix=prefix, name="one") as one,
            standing(redis_server.url, prefix=prefix, name="two") as two,
        ):
            two.expects("tenant:a")
            begun_ns = time.monotonic_ns()
            await told(two)
            assert await one.purge([PurgeOrder(pool="p")]) == 0
            await put_now(two, K, begun_ns=begun_ns)
            await told(two)
            assert await find(one, "tenant:a", K) is Absent.MISS

    asyncio.run(check())


def test_many_purges_become_one_of_everything(redis_server: RedisServer) -> None:
    """An old answer is still refused after more purges than are remembered; a new one is kept."""

    async def check() -> None:
        async with standing(redis_server.url, prefix=next(prefixes)) as store:
            store.expects("tenant:a")
            begun_ns = time.monotonic_ns()
            await told(store)
            await store.purge([PurgeOrder(tenant="a")])
            for _ in range(2):
                await store.purge([PurgeOrder(model=f"m{i}") for i in range(40)])
            await put_now(store, K, begun_ns=begun_ns)
            await told(store)
            assert store.counts["put.purged"] == 1
            assert await put(store, "tenant:a", K) == "kept"
            assert isinstance(await find(store, "tenant:a", K), KeptAnswer)

    asyncio.run(check())


def test_what_the_file_says_no_more_is_gone_at_the_next_start(redis_server: RedisServer) -> None:
    """Answers of tenants and pools that left while no service ran."""

    async def check() -> None:
        prefix = next(prefixes)
        async with standing(redis_server.url, prefix=prefix) as store:
            await put(store, "tenant:a", K)
            await put(store, "tenant:b", K, tenant="b")
        async with standing(
            redis_server.url, prefix=prefix, unwanted=lambda _, whose: whose.tenant == "a"
        ) as store:
            await told(store)
            assert await find(store, "tenant:a", K) is Absent.MISS
            assert isinstance(await find(store, "tenant:b", K), KeptAnswer)

    asyncio.run(check())


def test_what_waits_is_bounded() -> None:
    """Answers by number and bytes: what comes above is dropped. Purges become one of everything."""

    async def check() -> None:
        async with standing("redis://127.0.0.1:1/0", prefix="none", connects=False) as store:
            store.session.connected = True
            kinds = [await put_now(store, key_of(number)) for number in range(ERRANDS_MAX + 1)]
            assert kinds.count("away") == 1
            assert store.session.errands.forget() == ERRANDS_MAX
            big = answer(bytes_of(900_000), now_ns=time.monotonic_ns())
            put_of: Any = {"scope_bytes_max": 1 << 40, "begun_ns": 0, "now_ns": time.monotonic_ns()}
            count = sum(store.put("s", key_of(i), big, **put_of) == "kept" for i in range(100))
            assert 10 < count <= ERRANDS_BYTES_MAX // len(big.packed)
            store.session.errands.forget()
            waits = [store.purge([PurgeOrder(tenant="a")]) for _ in range(PURGES_MAX + 1)]
            assert len(store.session.errands.purges) == 1
            assert store.session.errands.purges[0].orders == (PurgeOrder(),)
            assert len(waits) == PURGES_MAX + 1
            store.session.connected = False

    asyncio.run(check())


def bytes_of(size: int) -> bytes:
    """So many that cannot be packed."""
    return b"".join(key_of(number) for number in range(size // 32))
