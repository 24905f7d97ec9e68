"""Talking to Redis: how long to wait, and what to say of a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
from identity import Authority
from redis.exceptions import RedisError

from extproc.config.redis_url import several
from extproc.state import redis_client
from extproc.state.redis_client import BACKOFF_FIRST_S, BACKOFF_LONGEST_S, Backoff, place, reason
from tests.state.conftest import RedisServer


def test_the_backoff_doubles_to_its_longest_with_chance_in_it() -> None:
    """Each wait lies between half and the whole of its step."""
    backoff = Backoff(Random(1))
    waits = [backoff.next_s() for _ in range(40)]
    for number, wait in enumerate(waits):
        step = min(BACKOFF_FIRST_S * 2**number, BACKOFF_LONGEST_S)
        assert step / 2 <= wait <= step
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next_s() <= BACKOFF_FIRST_S


def test_a_place_says_no_password() -> None:
    """Host and port, or the path of a socket."""
    assert place("redis://user:secret@redis.example:6380/2") == "redis.example:6380"
    assert place("unix:///run/redis.sock") == "/run/redis.sock"


def test_a_reason_is_one_line() -> None:
    """Of the first failure in a group; a type where there is no text."""
    assert reason(ExceptionGroup("both", [OSError("no\nroute"), OSError("b")])) == "no route"
    assert reason(TimeoutError()) == "timeout"
    assert reason(KeyError()) == "KeyError"


def test_a_url_of_something_else_is_refused_at_once() -> None:
    """So that a typo is a configuration error, not an endless reconnect."""
    with pytest.raises(ValueError, match="scheme"):
        redis_client.connect("http://localhost")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://a:26379", "names no master"),
        ("redis+sentinel:///name", "names no host"),
        ("redis+cluster://a:7000/3", "only 0"),
        ("redis+cluster://a:port", "host that is none"),
        ("redis+sentinel://a/name/0?sentinel_pasword=x", "option that is none"),
        ("redis+sentinel://a/name/zero", "no number"),
    ],
)
def test_an_address_of_several_says_what_is_wrong(url: str, message: str) -> None:
    """And never what may be a password."""
    with pytest.raises(ValueError, match=message):
        redis_client.connect(url)


def test_an_address_of_several_has_users_of_its_own_for_sentinels() -> None:
    """The servers' user is not told to the sentinels, nor theirs to the servers; neither is in a place."""
    url = "rediss+sentinel://u:p%40w@a:1,b/quotas/2?sentinel_password=s&ssl_ca_certs=/ca.pem"
    found = several(url)
    assert found is not None
    assert found.nodes == (("a", 1), ("b", 26379))
    assert (found.master, found.db) == ("quotas", 2)
    both = {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert found.servers == {**both, "username": "u", "password": "p@w"}
    assert found.sentinels == {**both, "password": "s"}
    assert place(url) == "a:1,b/quotas/2"
    assert "p@w" not in repr(found)
    assert several("redis://a/0") is None


def test_tls_with_a_user(tmp_path: Path) -> None:
    """rediss:// takes the server's certificate from the named authority alone, and a user with a password."""
    ca = Authority(tmp_path)
    certificate, key = ca.issue("redis", "IP:127.0.0.1")
    (tmp_path / "data").mkdir()
    server = RedisServer(tmp_path / "data")
    tls = ("--tls-port", str(server.port), "--port", "0", "--tls-cert-file", str(certificate))
    tls += ("--tls-key-file", str(key), "--tls-ca-cert-file", str(ca.certificate), "--tls-auth-clients", "no")
    server.start(*tls, "--user", "u", "on", ">p@w", "~*", "+@all", "--user", "default", "off")

    async def ping(url: str) -> None:
        client = redis_client.connect(url)
        try:
            await client.set("k", "v")
        finally:
            await client.aclose()
            # A refused handshake's socket is closed by asyncio once the server has let go as well.
            sockets = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
            while len(sockets) > 1:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.01)

    where = f"127.0.0.1:{server.port}/0?ssl_ca_certs="
    try:
        asyncio.run(ping(f"rediss://u:p%40w@{where}{ca.certificate}"))
        for wrong in (
            f"rediss://u:no@{where}{ca.certificate}",
            f"rediss://u:p%40w@{where.partition('?')[0]}",
        ):
            with pytest.raises(RedisError):
                asyncio.run(ping(wrong))
    finally:
        server.kill()
