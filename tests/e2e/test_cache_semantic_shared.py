"""Two services behind one Envoy share what they learned of questions in other words, over a kill -9."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from cache_engine import CacheEngine
from cache_gateway import tenant
from gateway import KEYS, Gateway, chat_pool, wait_for
from redis_harness import Redis
from test_cache_semantic import ANSWER, SOON

from extproc.extras import missing

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.skipif(missing("semantic"), reason="the extra `semantic` is not installed"),
    pytest.mark.skipif(missing("encryption"), reason="the extra `encryption` is not installed"),
    pytest.mark.timeout(240),
]

TRIES_MAX = 200
GAPS = itertools.count(1)
TURNS = itertools.count()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, CacheEngine, Redis]]:
    folder = tmp_path_factory.mktemp("redis")
    keys = folder / "keys"
    keys.write_text(f"{secrets.token_hex(32)}\n", encoding="utf-8")
    cache = {"mode": "on", "semantic": SOON}
    with (
        Redis(folder) as redis,
        CacheEngine() as engine,
        Gateway(
            chat_pool([engine.address], ask_usage=False),
            tenants=[tenant("acme", cache), tenant("globex", cache)],
            cache={
                "store": "redis",
                "store_budget_ms": 1_000,
                "keys_file": str(keys),
                "semantic": {"embed_budget_ms": 2_000},
            },
            sharing={"redis": redis.url},
            services=2,
        ) as gateway,
    ):
        engine.tell(json.dumps(ANSWER).encode())
        for index in range(2):
            ready(gateway, index)
        yield gateway, engine, redis


def words(gateway: Gateway, index: int) -> dict[str, Any]:
    """A service's figures of the semantic cache."""
    found: dict[str, Any] = gateway.status(index)["cache"]["semantic"]
    return found


def ready(gateway: Gateway, index: int) -> None:
    """Its process is there, and it knows what is in Redis."""
    wait_for(
        "it is ready",
        lambda: words(gateway, index)["up"] and words(gateway, index)["away"] is False,
        timeout_s=120.0,
    )


def ask(gateway: Gateway, text: str, name: str = "acme") -> str:
    """A question that the exact cache does not know; how it was answered."""
    text = text.replace(" ", " " * next(GAPS), 1)
    body = {"model": "tiny-chat", "temperature": 0, "messages": [{"role": "user", "content": text}]}
    status, headers, answer = gateway.call("/v1/chat/completions", body, key=KEYS[name])
    assert status == 200, answer
    assert answer == ANSWER
    return headers.get("x-steersman-cache", "")


def wording() -> str:
    return f"How {('do', 'can')[next(TURNS) % 2]} I reset my password?"


def taught(gateway: Gateway) -> None:
    """Ask until both services have answered in other words: Envoy takes turns."""
    for _ in range(TRIES_MAX):
        ask(gateway, wording())
        if all(hits(gateway, index) for index in range(2)):
            return
    raise AssertionError([words(gateway, index) for index in range(2)])


def hits(gateway: Gateway, index: int) -> int:
    count: int = words(gateway, index)["requests"].get("acme", {}).get("hit", 0)
    return count


def test_both_give_what_either_learned_and_a_killed_one_knows_it_again(
    stand: tuple[Gateway, CacheEngine, Redis],
) -> None:
    """Nothing of it can be read in Redis; the one that begins anew is not taught again."""
    gateway, _, redis = stand
    taught(gateway)
    for name in redis.command("KEYS", "{steersman:cache:words*:e:*"):
        for value in redis.command("HVALS", name):
            assert value[:4] == b"SA1e"
            assert b"password" not in value
    gateway.services[1].kill()
    gateway.start_service(1)
    ready(gateway, 1)
    assert words(gateway, 1)["questions"] > 0
    wait_for("it answers", lambda: ask(gateway, wording()) and hits(gateway, 1), timeout_s=120.0)
    assert all(ask(gateway, text, "globex") == "" for text in ("How do I reset my password?",) * 2)


def test_a_purge_at_one_holds_for_both(stand: tuple[Gateway, CacheEngine, Redis]) -> None:
    """From the moment that it is done; neither knows a question then."""
    gateway, engine, _ = stand
    taught(gateway)
    gateway.order("PurgeCache", tenant="acme")
    before = engine.requests
    assert [ask(gateway, wording()) for _ in range(2)] == ["", ""]
    assert engine.requests == before + 2
