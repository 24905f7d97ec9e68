"""Questions in Redis: services share what is kept and what was learned, and forget it together."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis_harness import Redis as RedisServer
from redis_several import Cluster

from extproc.cache.purging import PurgeOrder
from extproc.cache.semantic.entries import ENTRY_BYTES
from tests.stand.cached import answer_of, body_of
from tests.stand.redis_answers import prefixes, until
from tests.stand.semantic import worded
from tests.stand.semantic_redis import SharedWording, wording_there

pytest.importorskip("numpy")

ONE = "How do I reset my password?"
WAYS = ("How can I reset my password?", "How do I reset my password please", "how to reset my password")
SURE = {"wrong_max": 0.05, "confidence": 0.6, "check_share": 0.01}
RULES = {name: worded(f"tenant:{name}", **SURE) for name in ("acme", "globex")}
SAID = answer_of("Click on it.")
KEY, OTHER = b"1" * 32, b"2" * 32
TRIES_MAX = 60


async def teach(wording: SharedWording, tenant: str = "acme") -> None:
    """Ask in other words until one is answered from the cache."""
    for number in range(TRIES_MAX):
        if (await wording.ask_it(tenant, body_of(WAYS[number % 3]), SAID))[1] == "semantic":
            return
    raise AssertionError(wording.semantic.looked)


async def how(wording: SharedWording, text: str = ONE, tenant: str = "acme", **more: Any) -> str:
    """How a question is answered; what an engine would say differs, so that nothing is learned for it."""
    return (await wording.ask_it(tenant, body_of(text, **more), answer_of("something else")))[1]


@pytest.fixture(params=[(), (KEY,)], ids=["plain", "encrypted"])
def keys(request: pytest.FixtureRequest) -> tuple[bytes, ...]:
    found: tuple[bytes, ...] = request.param
    return found


def test_what_one_service_learned_another_knows(redis_server: RedisServer, keys: tuple[bytes, ...]) -> None:
    """One that was there, one that begins later, and one after all had ended; no other tenant gets it."""

    async def check() -> None:
        prefix = next(prefixes)
        at: dict[str, Any] = {"prefix": prefix, "keys": keys}
        async with (
            wording_there(redis_server.url, RULES, name="one", **at) as one,
            wording_there(redis_server.url, RULES, name="two", **at) as two,
        ):
            await teach(one)
            await two.heard()
            assert known(two) == known(one)
            assert await how(two, WAYS[0]) == "semantic"
            assert await how(two, WAYS[0], "globex") == "engine"
            assert two.semantic.checks == {}
            async with wording_there(redis_server.url, RULES, name="three", **at) as three:
                await one.heard()
                assert known(three) == known(one)
                assert await how(three, WAYS[0]) == "semantic"
        async with wording_there(redis_server.url, RULES, name="four", **at) as four:
            body, came = await four.ask_it("acme", body_of(WAYS[1]), b"")
            assert (json.loads(body), came) == (json.loads(SAID), "semantic")
            assert not four.store_of.refused

    asyncio.run(check())


def known(wording: SharedWording) -> dict[str, Any]:
    """What a service knows: questions with their versions and checks, and what its process has of them."""
    found: dict[str, Any] = {}
    for name, scope in wording.semantic.scopes.items():
        index = wording.port.index.scopes[name]
        assert set(index.where) == set(scope.entries)
        for number, entry in scope.entries.items():
            kept = index.frames[entry.frame][number].checks
            seen = 0 if kept is None else kept.same + kept.differing
            assert seen == len(entry.checks)
            found[entry.key.hex()] = (entry.version, entry.text, sorted(entry.checks))
        assert index.learner.sampled == (scope.sampled, scope.wrong)
        found[name] = (scope.sampled, scope.wrong)
    return found


def test_checks_of_two_services_add_up(redis_server: RedisServer) -> None:
    """Each makes half of them; both know all, and a check counts once however often it is heard."""

    async def check() -> None:
        prefix = next(prefixes)
        rules = {"acme": worded("tenant:acme", **{**SURE, "check_share": 1.0})}
        async with (
            wording_there(redis_server.url, rules, prefix=prefix, name="one") as one,
            wording_there(redis_server.url, rules, prefix=prefix, name="two") as two,
        ):
            for number in range(24):
                await (one, two)[number % 2].ask_it("acme", body_of(WAYS[number % 3]), SAID)
                await one.heard()
                await two.heard()
            assert one.semantic.checks["same"] > 5
            assert two.semantic.checks["same"] > 5
            assert known(one) == known(two)
            assert known(one)["tenant:acme"][0] > 0
            await one.store_of.session._read_all(one.store_of.session.asker)
            assert known(one) == known(two)

    asyncio.run(check())


@pytest.mark.parametrize("order", [{}, {"tenant": "acme"}, {"model": "m"}, {"pool": "p"}], ids=str)
def test_a_purge_by_one_service_is_one_for_all(redis_server: RedisServer, order: dict[str, Any]) -> None:
    """When it is done nobody is given the answer, heard of it or not; an answer of before is not kept."""

    async def check() -> None:
        prefix = next(prefixes)
        async with (
            wording_there(redis_server.url, RULES, prefix=prefix, name="one") as one,
            wording_there(redis_server.url, RULES, prefix=prefix, name="two") as two,
        ):
            await teach(one)
            await two.heard()
            assert await how(two, WAYS[0]) == "semantic"
            late = two.look("acme", body_of("How do I close my account?"))
            two.cache.flagged("late", "acme", late)  # type: ignore[arg-type]
            purged = one.semantic.purge([PurgeOrder(**order)])
            assert purged is not None
            assert await purged > 0
            # Whatever `two` has heard by now.
            found = two.look("acme", body_of(WAYS[0]))
            told: list[Any] = []
            assert two.cache.join(found, "acme", until_ns=0, size=1, tell=told.append)  # type: ignore[arg-type]
            two.port.deliver()
            await until(lambda: bool(told))
            assert told == [None]
            two.cache.fill("late", answer_of("You cannot."))
            await two.heard()
            await one.heard()
            assert two.store_of.counts["put.purged"] == 1
            assert not one.semantic.scopes
            assert not two.semantic.scopes
            assert redis_server.command("KEYS", f"{{{prefix}:cache:words}}:[meuwk]:*") == []
            assert await how(two, WAYS[0]) == "engine"
            assert len(two.semantic.scopes) == 1

    asyncio.run(check())


def test_a_purge_of_another_tenant_leaves_it(redis_server: RedisServer) -> None:
    """By tenant, by a group's share, and by age."""

    async def check() -> None:
        async with wording_there(redis_server.url, RULES, prefix=next(prefixes)) as one:
            await teach(one)
            for order in (
                PurgeOrder(tenant="globex"),
                PurgeOrder(shared=True),
                PurgeOrder(tenant="acme", older_ns=3_600_000_000_000),
            ):
                purged = one.semantic.purge([order])
                assert purged is not None
                assert await purged == 0
            assert await how(one, WAYS[0]) == "semantic"

    asyncio.run(check())


def test_without_redis_nothing_is_given_and_all_is_known_again(tmp_path: Path) -> None:
    """What another service purged meanwhile is not known any more; nothing of it comes back."""

    async def check(server: RedisServer) -> None:
        async with wording_there(server.url, RULES, prefix="away") as one:
            await teach(one)
            server.kill()
            await until(lambda: not one.store_of.connected)
            assert await how(one, WAYS[0]) == "engine"
            assert one.semantic.looked["acme", "away"] == 1
            server.start()
            await until(lambda: one.store_of.connected)
            # It kept nothing over its end: so nothing is known here.
            assert not one.semantic.scopes
            await teach(one)

    with RedisServer(tmp_path) as server:
        asyncio.run(check(server))


def test_bounds_hold_for_all_services_together(redis_server: RedisServer) -> None:
    """So many questions a tenant, so many bytes in all: what is used least goes, everywhere."""

    async def check() -> None:
        prefix = next(prefixes)
        bounds: dict[str, Any] = {"entries_max": 5, "bytes_max": 9 * (ENTRY_BYTES + 400)}
        async with (
            wording_there(redis_server.url, RULES, prefix=prefix, name="one", **bounds) as one,
            wording_there(redis_server.url, RULES, prefix=prefix, name="two", **bounds) as two,
        ):
            for number in range(16):
                where, tenant = (one, two)[number % 2], ("acme", "globex")[number // 8]
                await where.ask_it(tenant, body_of(f"Tell me of thing{number} and of it{number}"), SAID)
                await one.heard()
                await two.heard()
                assert all(len(each.entries) <= 5 for each in one.semantic.scopes.values())
                assert known(one) == known(two)
            assert one.store_of.counts["evicted"] + two.store_of.counts["evicted"] >= 6
            size = int(redis_server.command("HGET", f"{{{prefix}:cache:words}}:bytes", ""))
            assert size == one.semantic.size <= bounds["bytes_max"]

    asyncio.run(check())


def test_who_falls_behind_reads_all_anew(redis_server: RedisServer) -> None:
    """The log has a bound: what was said beyond it is not lost."""

    async def check() -> None:
        prefix = next(prefixes)
        async with (
            wording_there(redis_server.url, RULES, prefix=prefix, name="one") as one,
            wording_there(redis_server.url, RULES, prefix=prefix, name="two") as two,
        ):
            await one.ask_it("acme", body_of(ONE), SAID)
            await two.heard()
            reads = two.store_of.counts["reads"]
            await one.ask_it("acme", body_of("What is a cat?"), SAID)
            redis_server.command("XTRIM", f"{{{prefix}:cache:words}}:log", "MAXLEN", "0")
            await one.ask_it("acme", body_of("What is a dog?"), SAID)
            await two.heard()
            await one.heard()
            assert two.store_of.counts["reads"] > reads or known(two) == known(one)
            assert known(two) == known(one)
            assert len(two.semantic.scopes["tenant:acme"].entries) == 3

    asyncio.run(check())


def test_what_nobody_may_be_given_is_not_taken(redis_server: RedisServer) -> None:
    """A tenant that left the file while no service ran leaves nothing."""

    async def check() -> None:
        prefix = next(prefixes)
        async with wording_there(redis_server.url, RULES, prefix=prefix) as one:
            for tenant in RULES:
                await one.ask_it(tenant, body_of(ONE), SAID)
        async with wording_there(
            redis_server.url, RULES, prefix=prefix, unwanted=lambda _, whose: whose.tenant == "acme"
        ) as two:
            assert set(two.semantic.scopes) == {"tenant:globex"}
        async with wording_there(redis_server.url, RULES, prefix=prefix) as three:
            assert set(three.semantic.scopes) == {"tenant:globex"}

    asyncio.run(check())


def spoilt(server: RedisServer, prefix: str) -> dict[str, list[tuple[bytes, bytes]]]:
    """What stands in Redis: by kind, (key, value) of each sealed thing."""
    root = f"{{{prefix}:cache:words}}"
    found: dict[str, list[tuple[bytes, bytes]]] = {"e": [], "k": []}
    for name in server.command("KEYS", f"{root}:e:*"):
        found["e"] += [(name, each) for each in server.command("HVALS", name)]
    for name in server.command("KEYS", f"{root}:k:*"):
        found["k"] += [(name, each) for each in server.command("LRANGE", name, "0", "-1")]
    return found


def test_nothing_can_be_read_there_with_keys(redis_server: RedisServer) -> None:
    """Neither questions nor answers; another key opens nothing, and what it does not open is gone."""

    async def check() -> None:
        prefix = next(prefixes)
        async with wording_there(redis_server.url, RULES, prefix=prefix, keys=[KEY]) as one:
            await one.ask_it("acme", body_of("What ails the patient?"), answer_of("A cold"))
        for _, value in spoilt(redis_server, prefix)["e"]:
            assert b"patient" not in value
            assert b"cold" not in value
        async with wording_there(redis_server.url, RULES, prefix=prefix, keys=[OTHER, KEY]) as two:
            assert len(two.semantic.scopes) == 1
        async with wording_there(redis_server.url, RULES, prefix=prefix, keys=[OTHER]) as three:
            assert not three.semantic.scopes
            assert three.store_of.refused == {"key": 1}
        async with wording_there(redis_server.url, RULES, prefix=prefix, keys=[KEY]) as four:
            assert not four.semantic.scopes

    asyncio.run(check())


def test_what_was_put_elsewhere_or_changed_there_is_refused(
    redis_server: RedisServer, keys: tuple[bytes, ...]
) -> None:
    """Another tenant's question, a check of another question, a check told twice, and bytes that are none."""

    async def check() -> None:
        prefix = next(prefixes)
        at: dict[str, Any] = {"prefix": prefix, "keys": keys}
        async with wording_there(redis_server.url, RULES, name="one", **at) as one:
            for tenant in RULES:
                for text in (ONE, WAYS[0], WAYS[1]):
                    await one.ask_it(tenant, body_of(text), SAID)
            before = known(one)
        found = spoilt(redis_server, prefix)
        (acme, _), (globex, theirs) = found["e"][0], found["e"][-1]
        assert acme != globex
        field = redis_server.command("HKEYS", acme)[0]
        redis_server.command("HSET", acme, field, theirs)
        # By lists: a scope's part of their names is that of its questions.
        checks, whose = dict(found["k"]), globex.rpartition(b":")[2]
        [mine] = [name for name in checks if b":k:" + whose in name]
        [others] = [name for name in checks if b":k:" + whose not in name]
        redis_server.command("RPUSH", mine, checks[others], "none", checks[mine])
        async with wording_there(redis_server.url, RULES, name="two", **at) as two:
            after = known(two)
            assert sum(two.store_of.refused.values()) == 3
            for key, seen in after.items():
                assert seen == before[key]
            assert len(two.semantic.scopes) == 1

    asyncio.run(check())


def test_another_model_takes_nothing(redis_server: RedisServer) -> None:
    """What one model found alike says nothing of another's cosines: it begins anew."""

    async def check() -> None:
        prefix = next(prefixes)
        async with wording_there(redis_server.url, RULES, prefix=prefix) as one:
            await one.ask_it("acme", body_of(ONE), SAID)
        async with wording_there(redis_server.url, RULES, prefix=prefix, model_id="another") as two:
            assert not two.semantic.scopes
            assert two.store_of.refused == {"model": 1}

    asyncio.run(check())


@pytest.mark.soak
def test_a_cluster_of_three(tmp_path: Path) -> None:
    """All of it is in one slot: what one service learned another knows, and a purge is one for both."""

    async def check(url: str) -> None:
        async with (
            wording_there(url, RULES, prefix="several", name="one") as one,
            wording_there(url, RULES, prefix="several", name="two") as two,
        ):
            await teach(one)
            await two.heard()
            assert known(two) == known(one)
            assert await how(two, WAYS[0]) == "semantic"
            purged = two.semantic.purge([PurgeOrder(tenant="acme")])
            assert purged is not None
            assert await purged > 0
            assert await how(one, WAYS[0]) == "engine"

    with Cluster(tmp_path) as cluster:
        asyncio.run(check(cluster.url))


#: Names that begin, end or look like one another, like groups, keys of Redis, patterns, tags and paths.
HOSTILE = (
    *("a", "a:b", "a*", "group:a", "tenant:a", "a\x00b", "A", "а", "{a}", "a}", "a\r\nDEL x"),
    "x" * 5_000,
)


def test_no_name_is_anothers(redis_server: RedisServer, keys: tuple[bytes, ...]) -> None:
    """Each tenant has its own answer to one question, also for a service that reads all of them."""

    async def check() -> None:
        prefix = next(prefixes)
        rules = {name: worded(f"tenant:{name}", **SURE) for name in HOSTILE}
        at: dict[str, Any] = {"prefix": prefix, "keys": keys}
        async with wording_there(redis_server.url, rules, name="one", **at) as one:
            for name in HOSTILE:
                await one.ask_it(name, body_of(ONE), answer_of(f"of {name[:20]}"))
        async with wording_there(redis_server.url, rules, name="two", **at) as two:
            assert len(two.semantic.scopes) == len(HOSTILE)
            for name in HOSTILE:
                [entry] = two.semantic.scopes[f"tenant:{name}"].entries.values()
                assert (entry.scope, entry.answer.tenant) == (f"tenant:{name}", name)
                assert entry.said == f"of {name[:20]}"
            purged = two.semantic.purge([PurgeOrder(tenant="a")])
            assert purged is not None
            assert await purged == 1
            assert set(two.semantic.scopes) == {f"tenant:{name}" for name in HOSTILE if name != "a"}
            assert not two.store_of.refused

    asyncio.run(check())
