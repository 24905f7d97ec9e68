"""shared_key.py with a real Redis: services agree on the key of their tickets."""

from __future__ import annotations

import asyncio

import pytest
from redis_harness import Redis as RedisServer

from extproc.state import redis_client
from extproc.state.shared_key import EVERY_NS, SharedKey


class Service:
    """One side: the keys that it has learnt, the last of which seals."""

    def __init__(self, own: bytes) -> None:
        self.keys = [own]
        self.shared = SharedKey("steersman", own=lambda: self.keys[-1], learn=self.keys.append)


def test_the_first_ones_key_is_everybodys(redis_server: RedisServer) -> None:
    """Kept over sessions, given again to a Redis that was emptied, and not looked at for each frame."""

    async def play() -> None:
        client = redis_client.connect(redis_server.url)
        one, two, late = Service(b"1" * 32), Service(b"2" * 32), Service(b"3" * 32)
        assert await one.shared.agree(client, now_ns=0)
        assert await two.shared.agree(client, now_ns=0)
        assert (one.keys[-1], two.keys[-1]) == (b"1" * 32, b"1" * 32)
        await client.flushall()
        assert await two.shared.agree(client, now_ns=EVERY_NS - 1)
        assert await client.dbsize() == 0, "not looked at yet"
        assert await two.shared.agree(client, now_ns=EVERY_NS)
        assert await late.shared.agree(client, now_ns=0)
        assert late.keys[-1] == b"1" * 32
        await client.aclose()

    asyncio.run(play())


@pytest.mark.parametrize("held", [b"", b"no key at all", b"z" * 64, b"1" * 63])
def test_what_is_no_key_is_not_learnt(redis_server: RedisServer, held: bytes) -> None:
    """Somebody else's value under the name changes nothing here."""

    async def play() -> None:
        client = redis_client.connect(redis_server.url)
        await client.set("{steersman}:seal:v1", held)
        service = Service(b"1" * 32)
        assert not await service.shared.agree(client, now_ns=0)
        assert service.keys == [b"1" * 32]
        await client.aclose()

    asyncio.run(play())


def test_a_store_that_refuses_costs_nothing(redis_server: RedisServer) -> None:
    """A user without the right to it goes on with a key of its own."""

    async def play() -> None:
        client = redis_client.connect(redis_server.url)
        await client.execute_command("ACL", "SETUSER", "default", "-set")
        service = Service(b"1" * 32)
        assert not await service.shared.agree(client, now_ns=0)
        assert service.keys == [b"1" * 32]
        await client.aclose()

    asyncio.run(play())
