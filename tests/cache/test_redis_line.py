"""The connection for looks: each answer reaches who asked, and one that cannot be told apart ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import InvalidResponse, ResponseError
from redis_harness import Redis as RedisServer

from extproc.cache.redis.line import AnswerLine
from tests.stand.redis_answers import until

PING = b"*1\r\n$4\r\nPING\r\n"


class Lined:
    """A line, what was heard on it, and why it was lost."""

    def __init__(self, connection: Any) -> None:
        self.heard: list[tuple[int, Any]] = []
        self.lost: list[Exception] = []
        self.line = AnswerLine(connection, lost=self.lost.append)

    def ask(self, number: int, *words: bytes) -> None:
        spelled = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self.line.send(spelled, [lambda answer: self.heard.append((number, answer))])


@contextlib.asynccontextmanager
async def lined(server: RedisServer) -> AsyncIterator[Lined]:
    client = Redis.from_url(server.url, protocol=2)
    try:
        pool: Any = client.connection_pool
        yield Lined(await pool.get_connection())
    finally:
        # Ends only if redis-py hears of its connection's end.
        async with asyncio.timeout(30):
            await client.aclose()


def test_each_hears_its_own_answer_in_whatever_pieces_it_comes(redis_server: RedisServer) -> None:
    """Answers of 300 KB between short ones, errors among them, all written at once."""

    async def check() -> None:
        large = bytes(range(256)) * 1_200
        async with lined(redis_server) as stand:
            for number in range(20):
                stand.ask(3 * number, b"ECHO", large + b"%d" % number)
                stand.ask(3 * number + 1, b"NONE-SUCH")
                stand.ask(3 * number + 2, b"GET", b"nowhere")
            await until(lambda: len(stand.heard) == 60)
            for at, (number, answer) in enumerate(stand.heard):
                assert at == number
                if number % 3 == 0:
                    assert answer == large + b"%d" % (number // 3)
                elif number % 3 == 1:
                    assert isinstance(answer, ResponseError)
                else:
                    assert answer is None
            assert stand.line.open
            assert not stand.lost

    asyncio.run(check())


def test_a_server_that_answers_nothing_ends_it_for_all_that_wait(redis_server: RedisServer) -> None:
    """Whoever is behind the answer that does not come hears so too, and it is lost once."""

    async def check() -> None:
        async with lined(redis_server) as stand:
            stand.ask(0, b"BLPOP", b"nothing", b"0")
            stand.ask(1, b"PING")
            await until(lambda: len(stand.heard) == 2)
            assert [number for number, _ in stand.heard] == [0, 1]
            assert all(isinstance(answer, TimeoutError) for _, answer in stand.heard)
            assert not stand.line.open
            assert len(stand.lost) == 1

    asyncio.run(check())


def test_answers_that_nobody_asked_for_end_it(redis_server: RedisServer) -> None:
    """Two answers to one question: the second would be taken for the next one's."""

    async def check() -> None:
        async with lined(redis_server) as stand:
            stand.ask(0, b"SUBSCRIBE", b"a", b"b")
            await until(lambda: bool(stand.lost))
            assert [number for number, _ in stand.heard] == [0]
            assert isinstance(stand.lost[0], InvalidResponse)
            assert not stand.line.open

    asyncio.run(check())


def test_a_connection_that_ends_is_told_to_all_that_wait(redis_server: RedisServer) -> None:
    """A server that closes it, in mid-question."""

    async def check() -> None:
        async with lined(redis_server) as stand:
            stand.ask(0, b"BLPOP", b"nothing", b"0")
            stand.ask(1, b"PING")
            redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: len(stand.heard) == 2)
            assert all(isinstance(answer, Exception) for _, answer in stand.heard)
            assert len(stand.lost) == 1

    asyncio.run(check())
