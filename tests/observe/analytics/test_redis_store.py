"""Redis: what is left there ends by itself, and what happens while it is away."""

from __future__ import annotations

import time

import pytest

from extproc.observe.analytics import Retention, StoredRow, StoreError
from extproc.observe.analytics.redis_store import SLACK_S, RedisStore
from extproc.observe.analytics.spans import HOUR, MINUTE, Stretch
from tests.state.conftest import RedisServer


def store_of(server: RedisServer) -> RedisStore:
    return RedisStore(server.url, prefix="t", where="here")


def test_it_lets_go_by_itself(redis_server: RedisServer) -> None:
    """Every key of rows, and every claim, has an end of its own, later than its rows are kept."""
    store = store_of(redis_server)
    begin_s = int(time.time()) // 60 * 60
    store.write([StoredRow(MINUTE, begin_s, "w", b"k", b"x")], Retention(minutes_s=HOUR))
    store.claim(["a-1"])
    ttl_s = redis_server.command("TTL", f"{{t}}:analytics:v1:60:{begin_s}:w")
    assert SLACK_S + HOUR - 60 <= ttl_s <= SLACK_S + HOUR + 60
    assert 0 < redis_server.command("TTL", "{t}:analytics:v1:claim:a-1") <= HOUR
    store.close()


def test_while_it_is_away(redis_server: RedisServer) -> None:
    """Each call says so; when it is back, so are we."""
    store = store_of(redis_server)
    entries = [StoredRow(MINUTE, 60, "w", b"k", b"x")]
    forever = Retention(minutes_s=10**10)
    redis_server.kill()
    with pytest.raises(StoreError, match="redis here"):
        store.write(entries, forever)
    with pytest.raises(StoreError, match="redis here"):
        list(store.read(Stretch(MINUTE, 0, 10**10)))
    with pytest.raises(StoreError, match="redis here"):
        store.prune(forever, now_s=0)
    with pytest.raises(StoreError, match="redis here"):
        store.claim(["a"])
    redis_server.start()
    store.write(entries, forever)
    assert list(store.read(Stretch(MINUTE, 0, 10**10))) == entries
    store.close()


def test_a_url_that_names_no_redis() -> None:
    """Is the caller's mistake."""
    with pytest.raises(ValueError, match="Redis URL"):
        RedisStore("http://here", prefix="t", where="here")
