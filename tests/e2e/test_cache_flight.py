"""Equal requests at one time, through the real Envoy: one is served, the others get its answer."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cache_engine import CacheEngine
from cache_gateway import figures, looked, over_an_engine, tenant
from gateway import KEYS, Gateway, chat_pool, wait_for
from test_cache_answers import DONE, EVENTS, ask, piece, whole

pytestmark = pytest.mark.envoy


@pytest.fixture
def stand() -> Iterator[tuple[Gateway, CacheEngine]]:
    classes = [{"name": "standard", "hold_ms": 60_000}]
    # A wait for an equal request is no wait for a decision.
    quick = {"retries": 0, "decision_timeout_ms": 2_000}
    with over_an_engine(classes=classes, gateway=quick) as running:
        yield running


def joined(gateway: Gateway) -> int:
    count: int = figures(gateway)["joined"]
    return count


@pytest.mark.parametrize("stream", [False, True])
def test_equal_requests_are_served_once(stand: tuple[Gateway, CacheEngine], stream: bool) -> None:
    """Ten at once are one for the engine; nine wait, longer than a decision may take, and get the same."""
    gateway, engine = stand
    pieces = [piece(), piece("", "stop"), DONE] if stream else [whole("one"), b" "]
    engine.tell(*pieces, kind=EVENTS if stream else "application/json", holds_at=1)
    with ThreadPoolExecutor(10) as threads:
        running = [threads.submit(ask, gateway, "equal", stream=stream) for _ in range(10)]
        wait_for("nine to wait", lambda: joined(gateway) == 9)
        assert gateway.status()["in_flight"] == 1
        # Longer than Envoy's patience without a word of ours.
        begun = time.monotonic()
        wait_for("it", lambda: time.monotonic() - begun > 2.5)
        engine.goes_on.set()
        answers = [each.result(60) for each in running]
    assert answers == [b"".join(pieces)] * 10
    assert engine.requests == 1
    assert looked(gateway, "joined") == 9
    wait_for("quiet", gateway.quiet)
    assert gateway.status()["counts"]["cache.hits"] == 9


def test_a_first_that_fails_lets_the_next_one_go(stand: tuple[Gateway, CacheEngine]) -> None:
    """Its own client gets the failure; one of the others is served, and the rest get that answer."""
    gateway, engine = stand
    engine.tell(whole(error={"message": "no"}), b" ", holds_at=1)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(ask, gateway, "fails")
        wait_for("the first to be there", engine.holding.is_set)
        others = [threads.submit(ask, gateway, "fails") for _ in range(3)]
        wait_for("three to wait", lambda: joined(gateway) == 3)
        release = engine.goes_on
        engine.told = type(engine.told)()
        engine.told.pieces = (whole("good"),)
        release.set()
        assert b"error" in first.result(60)
        assert [each.result(60) for each in others] == [whole("good")] * 3
    assert engine.requests == 2


def test_who_waits_and_leaves_is_forgotten(stand: tuple[Gateway, CacheEngine]) -> None:
    """Nothing of it stays, and the first is served as ever."""
    gateway, engine = stand
    engine.tell(whole("one"), b" ", holds_at=1)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, gateway, "leaves")
        wait_for("the first to be there", engine.holding.is_set)
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "leaves"}], "temperature": 0}
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": False}), headers)
        wait_for("it to wait", lambda: joined(gateway) == 1)
        connection.close()
        wait_for("it to be forgotten", lambda: joined(gateway) == 0)
        engine.goes_on.set()
        assert first.result(60) == whole("one") + b" "
    wait_for("quiet", gateway.quiet)
    assert engine.requests == 1


def test_a_first_whose_client_leaves_lets_the_next_one_go(stand: tuple[Gateway, CacheEngine]) -> None:
    """One of those that wait is served, and the rest get its answer; nothing of the first stays."""
    gateway, engine = stand
    engine.tell(whole("one"), b" ", holds_at=1)
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "first leaves"}], "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS['acme']}"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": False}), headers)
    wait_for("the first to be there", engine.holding.is_set)
    release = engine.goes_on
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(ask, gateway, "first leaves") for _ in range(3)]
        wait_for("three to wait", lambda: joined(gateway) == 3)
        engine.told = type(engine.told)()
        engine.told.pieces = (whole("good"),)
        connection.close()
        assert [each.result(60) for each in others] == [whole("good")] * 3
    release.set()
    assert engine.requests == 2
    wait_for("quiet", gateway.quiet)
    assert looked(gateway, "joined") == 2
    assert ask(gateway, "first leaves") == whole("good")
    assert engine.requests == 2


def test_one_that_waited_in_vain_may_be_held_after_that() -> None:
    """The replica has one place, and another request is before it: Envoy waits a second time as well."""
    with (
        CacheEngine() as engine,
        Gateway(
            chat_pool([{"address": engine.address, "max_concurrent": 1}], ask_usage=False),
            tenants=[tenant("acme"), tenant("globex")],
            cache={},
            classes=[{"name": "standard", "hold_ms": 60_000}],
            gateway={"retries": 0, "decision_timeout_ms": 2_000},
        ) as gateway,
        ThreadPoolExecutor(3) as threads,
    ):
        engine.tell(whole(error={"message": "no"}), b" ", holds_at=1)
        first = threads.submit(ask, gateway, "equal")
        wait_for("the first to be there", engine.holding.is_set)
        equal = threads.submit(ask, gateway, "equal")
        wait_for("one to wait", lambda: joined(gateway) == 1)
        other = threads.submit(ask, gateway, "other")
        wait_for("another to be held", lambda: gateway.status()["counts"].get("held", 0) == 1)
        before, release = engine.requests, engine.goes_on
        engine.goes_on, engine.holding = type(release)(), type(release)()
        engine.told = type(engine.told)()
        engine.told.pieces, engine.told.holds_at = (whole("good"), b" "), 1
        release.set()
        assert b"error" in first.result(60)
        wait_for("the next to be there", engine.holding.is_set)
        wait_for("both to have been held", lambda: gateway.status()["counts"]["held"] == 2)
        assert engine.requests == before + 1
        begun = time.monotonic()
        wait_for("it", lambda: time.monotonic() - begun > 2.5)
        engine.goes_on.set()
        assert [other.result(60), equal.result(60)] == [whole("good") + b" "] * 2
        assert engine.requests == before + 2
