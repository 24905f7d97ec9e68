"""Two services behind one Envoy keep answers in one Redis: hits of each other's, one purge, and no Redis."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from cache_gateway import MESSAGES, tenant
from gateway import KEYS, Gateway, chat_pool, wait_for
from redis_harness import Redis
from replicas import Replicas, specs

pytestmark = pytest.mark.envoy

BODY = {"model": "tiny-chat", "messages": MESSAGES, "temperature": 0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Redis]]:
    """Two services, encrypted answers."""
    folder = tmp_path_factory.mktemp("redis")
    keys = folder / "keys"
    keys.write_text(f"{secrets.token_hex(32)}\n", encoding="utf-8")
    with (
        Redis(folder) as redis,
        Replicas(specs(1)) as replicas,
        Gateway(
            chat_pool(replicas.addresses),
            tenants=[tenant("acme"), tenant("globex")],
            cache={"store": "redis", "store_budget_ms": 1_000, "keys_file": str(keys)},
            sharing={"redis": redis.url},
            services=2,
        ) as gateway,
    ):
        wait_for("the stores", lambda: figure(gateway, "away") is False)
        yield gateway, redis


def figure(gateway: Gateway, name: str) -> object:
    """A figure that both services agree on, else None."""
    found = [gateway.status(i)["cache"][name] for i in range(2)]
    return found[0] if found[0] == found[1] else None


def total(gateway: Gateway, outcome: str, name: str = "acme") -> int:
    return sum(gateway.status(i)["cache"]["requests"].get(name, {}).get(outcome, 0) for i in range(2))


def routed(gateway: Gateway) -> int:
    """Requests that either service has sent to a replica."""
    return sum(gateway.status(i)["counts"].get("routed", 0) for i in range(2))


def ask(gateway: Gateway, text: str, name: str = "acme", **more: object) -> tuple[str, object]:
    """The header that tells of the cache, and the answer."""
    body = {**BODY, "messages": [{"role": "user", "content": f"{text} [[sim:out=5]]"}], **more}
    status, told, answer = gateway.call("/v1/chat/completions", body, key=KEYS[name])
    assert status == 200, answer
    return told.get("x-steersman-cache", ""), answer


def test_what_one_service_keeps_the_other_gives(running: tuple[Gateway, Redis]) -> None:
    """Whichever Envoy asks; nobody else's, and no word of it can be read in Redis."""
    gateway, redis = running
    for name in ("acme", "globex"):
        gateway.order("PurgeCache", tenant=name)  # what the other tests have left
    wait_for("nothing is there", lambda: figure(gateway, "answers") == 0)
    # What is asked for in a purge's own moment may count as asked before it: then nothing is kept of it.
    wait_for("it is kept", lambda: ask(gateway, "harbour")[0] != "")
    first = ask(gateway, "harbour")[1]
    wait_for("both know", lambda: figure(gateway, "answers") == 1)
    # Envoy takes turns: both are asked.
    for _ in range(12):
        told, again = ask(gateway, "harbour")
        assert told.startswith("hit; age=")
        assert again == first
    assert all(gateway.status(i)["cache"]["requests"]["acme"].get("hit") for i in range(2))
    assert ask(gateway, "harbour", "globex")[0] == ""
    wait_for("its own is kept", lambda: ask(gateway, "harbour", "globex")[0] != "")
    wait_for("both know", lambda: figure(gateway, "answers") == 2)
    kinds = {name: redis.command("TYPE", name) for name in redis.command("KEYS", "{steersman:cache*")}
    values = [redis.command("GET", name) for name, kind in kinds.items() if kind == b"string"]
    assert len(values) == 2
    assert not [value for value in values if b"assistant" in value or value[:4] != b"SA1e"]


def test_a_purge_at_one_service_holds_for_both(running: tuple[Gateway, Redis]) -> None:
    """The other asks a replica again, too."""
    gateway, _ = running
    ask(gateway, "purged")
    wait_for("it is kept", lambda: ask(gateway, "purged")[0] != "")
    before = routed(gateway)
    assert gateway.order("PurgeCache", tenant="acme")["purged"] >= 1
    assert ask(gateway, "purged")[0] == ""
    assert routed(gateway) == before + 1
    wait_for("it is kept again", lambda: ask(gateway, "purged")[0] != "")


def test_without_redis_every_look_is_a_miss(running: tuple[Gateway, Redis]) -> None:
    """Requests are served as without a cache; when Redis is back, so are hits."""
    gateway, redis = running
    redis.kill()
    wait_for("it is seen", lambda: figure(gateway, "away") is True)
    for _ in range(4):
        assert ask(gateway, "away")[0] == ""
        # Who comes while it is under way waits for its answer: that is no look.
        wait_for("its answer", lambda: figure(gateway, "joined") == 0)
    assert total(gateway, "away") >= 4
    redis.start()
    wait_for("it is back", lambda: figure(gateway, "away") is False)
    wait_for("it is kept", lambda: ask(gateway, "away")[0] != "")
