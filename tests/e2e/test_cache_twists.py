"""Requests and answers with a twist, through the real Envoy: what is the same is a hit, what may be another
thing is asked again."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cache_engine import CacheEngine
from cache_gateway import figures, kept, looked, over_an_engine
from gateway import KEYS, Gateway, wait_for
from test_cache_answers import whole

pytestmark = pytest.mark.envoy

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def stand() -> Iterator[tuple[Gateway, CacheEngine]]:
    with over_an_engine() as running:
        yield running


def body(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny-chat",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **more,
    }


def again(
    stand: tuple[Gateway, CacheEngine],
    one: bytes,
    other: bytes,
    *,
    path: str = CHAT,
    answer: bytes | None = None,
    said: str = "",
) -> bool:
    """Whether the second request is answered without the engine, from an empty cache; both are 200."""
    gateway, engine = stand
    gateway.order("PurgeCache", all=True)
    engine.tell(whole() if answer is None else answer)
    assert gateway.call(path, one)[0] == 200
    wait_for("the first's end", gateway.quiet)
    wait_for("its answer", lambda: figures(gateway)["awaited"] == 0)
    before = engine.requests
    status, told, _ = gateway.call(path, other, headers={"x-steersman-cache": said} if said else {})
    assert status == 200
    hit = told.get("x-steersman-cache", "").startswith("hit; age=")
    assert hit == (engine.requests == before)
    wait_for("the second's end", gateway.quiet)
    return hit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (json.dumps(body()), json.dumps(dict(reversed(body().items())), indent=3)),
        (json.dumps(body()), json.dumps(body()).replace("user", "\\u0075ser")),
        (json.dumps(body("naïve 😀")), json.dumps(body("naïve 😀"), ensure_ascii=False)),
        (json.dumps(body(tools=[])), json.dumps(body(tools=[]))),
    ],
    ids=["order and blanks", "escapes", "UTF-8", "no tools"],
)
def test_the_same_said_otherwise_is_a_hit(stand: tuple[Gateway, CacheEngine], one: str, other: str) -> None:
    """Order, blanks and escapes change nothing that an engine reads."""
    assert again(stand, one.encode(), other.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (body("caf\u00e9"), body("cafe\u0301")),
        (body(zz=1), body(zz=2)),
        (body(zz=None), body()),
        (body(), body(stream=True)),
        (body(logprobs=True), body(logprobs=True, top_logprobs=2)),
        (body(temperature=1, seed=1), body(temperature=1, seed=2)),
        (body(temperature=None), body(temperature=None)),
        (body(temperature="0"), body(temperature="0")),
        (body(n=2), body(n=2)),
        (body(id_slot=0), body(id_slot=0)),
        (body(kv_transfer_params={"do_remote_prefill": True}),) * 2,
        (body(plugins=[{"id": "web"}]),) * 2,
        (body("see ![](http://127.0.0.1/a.png)"),) * 2,
    ],
    ids=lambda each: json.dumps(each)[60:110] if isinstance(each, dict) else "",
)
def test_what_may_have_another_answer_is_asked_again(
    stand: tuple[Gateway, CacheEngine], one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Other letters, fields, seeds; what is sampled, several, of an engine's memory, or elsewhere."""
    assert not again(stand, json.dumps(one).encode(), json.dumps(other).encode())


def test_a_name_twice_in_one_object_is_never_cached(stand: tuple[Gateway, CacheEngine]) -> None:
    """However it is spelled: engines may read the one or the other."""
    twice = json.dumps(body())[:-1] + ',"t\\u0065mperature":1}'
    assert not again(stand, twice.encode(), twice.encode())


@pytest.mark.parametrize(
    ("said", "hit"), [("off, use", False), (" OFF ", False), ("banana", True), ("refresh,use", False)]
)
def test_the_strictest_of_what_a_client_says_holds(
    stand: tuple[Gateway, CacheEngine], said: str, hit: bool
) -> None:
    """And what nobody knows says nothing."""
    same = json.dumps(body()).encode()
    assert again(stand, same, same, said=said) is hit


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/rerank"])
def test_other_routes_are_not_cached(stand: tuple[Gateway, CacheEngine], path: str) -> None:
    """As docs/caching.md says."""
    same = json.dumps(body(input="hi", query="a", documents=["b"], max_tokens=5)).encode()
    assert not again(stand, same, same, path=path)


def test_an_answer_that_is_compressed_is_not_kept(stand: tuple[Gateway, CacheEngine]) -> None:
    """Nobody knows what it says; its client gets it as it is."""
    same = json.dumps(body()).encode()
    assert not again(stand, same, same, answer=gzip.compress(whole()))


def test_a_purge_in_mid_fill_holds_for_those_that_wait(stand: tuple[Gateway, CacheEngine]) -> None:
    """The first's answer is its own alone; the next is asked for anew, and that one is kept."""
    gateway, engine = stand
    gateway.order("PurgeCache", all=True)
    engine.tell(whole("old"), b" ", holds_at=1)
    same = json.dumps(body("purged in mid-fill")).encode()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(gateway.call, CHAT, same)
        wait_for("the first to be there", engine.holding.is_set)
        others = [threads.submit(gateway.call, CHAT, same) for _ in range(2)]
        wait_for("two to wait", lambda: figures(gateway)["joined"] == 2)
        release = engine.goes_on
        engine.told = type(engine.told)()
        engine.told.pieces = (whole("new"),)
        gateway.order("PurgeCache", tenant="acme")
        said = [each.result(60)[2]["choices"][0]["message"]["content"] for each in others]
        release.set()
        assert first.result(60)[2]["choices"][0]["message"]["content"] == "old"
    assert said == ["new", "new"]
    wait_for("quiet", gateway.quiet)
    hits = looked(gateway, "hit")
    _, told, answer = gateway.call(CHAT, same)
    assert told["x-steersman-cache"].startswith("hit")
    assert answer == json.loads(whole("new"))
    assert looked(gateway, "hit") == hits + 1


def test_a_tenant_that_comes_back_finds_nothing(stand: tuple[Gateway, CacheEngine]) -> None:
    """Under its own name, with its own key: what it had is gone since it left the file."""
    gateway, engine = stand
    gateway.order("PurgeCache", all=True)
    engine.tell(whole())
    same, tenants = body("before it left"), gateway.config["tenants"]
    gateway.call(CHAT, same, key=KEYS["globex"])
    kept(gateway, 1)
    for listed, status in ((tenants[:1], 401), (tenants, 200)):
        gateway.config["tenants"] = listed
        gateway.write_config()
        gateway.service.signal(signal.SIGHUP)
        before = engine.requests

        def answered(status: int = status) -> bool:
            return gateway.call(CHAT, same, key=KEYS["globex"])[0] == status

        wait_for(f"a {status}", answered)
    assert engine.requests == before + 1
