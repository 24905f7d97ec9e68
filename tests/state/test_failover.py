"""A master that is no longer one, and every refusal of the server: nothing is thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from extproc.core.quota import Account, Amounts, Granted, QuotaLimits, limits
from extproc.observe.analytics.redis_store import RedisStore
from extproc.observe.analytics.spans import HOUR, Retention
from extproc.observe.analytics.store import StoredRow, StoreError
from extproc.state import redis_client
from extproc.state.quota.books import RedisQuota
from extproc.state.redis_session import poisonous
from tests.state.conftest import RedisServer, until

ONE = Amounts(1, 10, 10, 1.0, 0.0)
WHO = Account("t", "k", "m", (("tenant", limits(requests_per_minute=600_000, concurrent_requests=50)),))


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A second one."""
    (tmp_path / "other").mkdir()
    with RedisServer(tmp_path / "other") as server:
        yield server


class Address:
    """One address that points at a server now and at another one later; what stands is kept."""

    def __init__(self, port: int) -> None:
        self.target, self.port = port, 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._pipe(reader, ours), self._pipe(theirs, writer))
        finally:
            for each in (ours, writer):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def ask(books: RedisQuota, name: str) -> Granted | None:
    answer = await books.ask(WHO, name, ONE, budget_s=10)
    return answer if isinstance(answer, Granted) else None


def test_a_demoted_master_loses_its_connections(redis_server: RedisServer, other_server: RedisServer) -> None:
    """Its address points at the new one, what stands stays open: questions go to the new one all the same."""

    async def scenario() -> None:
        async with Address(redis_server.port).open() as address:
            books = RedisQuota(address.url, service_id="one", limits=QuotaLimits())
            await books.start()
            try:
                await until(lambda: books.connected)
                assert await ask(books, "before")
                assert books.counts["reserved.asked"] == 1
                # First only the address: the session is at the new one before the old one refuses anything.
                address.target = other_server.port
                redis_server.command("REPLICAOF", "127.0.0.1", other_server.port)

                asked = 1

                async def asked_of_the_new_one() -> bool:
                    nonlocal asked
                    asked += 1
                    await ask(books, f"after{asked}")
                    return books.connected and books.counts["reserved.asked"] > 1

                begun = time.monotonic()
                while not await asked_of_the_new_one():
                    assert time.monotonic() - begun < 30, books.counts
                    await asyncio.sleep(0.2)
                failed = books.counts["ask_failed"]
                for number in range(5):
                    assert await ask(books, f"then{number}")
                assert books.counts["ask_failed"] == failed
                await until(lambda: books.reconciled)
                held = other_server.command("HGET", "{steersman:quota:t}:b", "c:tenant")
                assert int(held) == len(books._table._running)
            finally:
                await books.close()
            assert books.counts["script_failed"] == 0

    asyncio.run(scenario())


def test_operations_refused_by_a_replica_are_told_to_the_master(redis_server: RedisServer) -> None:
    """READONLY in the middle of the journal keeps every operation; none is taken for a broken script."""

    async def scenario() -> None:
        books = RedisQuota(redis_server.url, service_id="one", limits=QuotaLimits())
        await books.start()
        try:
            await until(lambda: books.connected)
            for number in range(20):
                assert await ask(books, f"a{number}")
            await until(lambda: books.reconciled)
            redis_server.command("REPLICAOF", "127.0.0.1", "1")
            for number in range(20):
                books.settle(f"a{number}", ONE, now_ns=time.monotonic_ns())
            client = redis_client.connect(redis_server.url)
            with pytest.raises(RedisError):
                await books._reconciler.flush(client)
            await client.aclose()
            assert books.counts["script_failed"] == 0
            redis_server.command("REPLICAOF", "NO", "ONE")
            await until(lambda: books.connected and books.reconciled)
            assert int(redis_server.command("HGET", "{steersman:quota:t}:b", "t:settled")) == 20
        finally:
            await books.close()

    asyncio.run(scenario())


REFUSALS = {
    "READONLY": ("REPLICAOF", "127.0.0.1", "1"),
    "OOM": ("CONFIG", "SET", "maxmemory", "1"),
    "NOREPLICAS": ("CONFIG", "SET", "min-replicas-to-write", "1"),
    "NOPERM": ("ACL", "SETUSER", "default", "-hset"),
}


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_what_the_server_refuses_is_no_fault_of_the_script(redis_server: RedisServer, code: str) -> None:
    """As redis-py raises it, code cut off or not: the operation is kept."""

    async def scenario() -> None:
        client = redis_client.connect(redis_server.url)
        script = "return redis.call('HSET', KEYS[1], 'a', 'b')"
        redis_server.command(*REFUSALS[code])
        with pytest.raises(RedisError) as caught:
            await client.execute_command("EVAL", script, 1, "k")
        await client.aclose()
        assert not poisonous(caught.value), repr(caught.value)

    asyncio.run(scenario())


def test_what_the_script_trips_over_is_poison(redis_server: RedisServer) -> None:
    """An error of Lua's, and a key of another type, would come again with the same words."""

    async def scenario() -> None:
        client = redis_client.connect(redis_server.url)
        await client.set("k", "text")
        for script in ("return nil + 1", "return redis.call('HSET', KEYS[1], 'a', 'b')"):
            with pytest.raises(RedisError) as caught:
                await client.execute_command("EVAL", script, 1, "k")
            assert poisonous(caught.value), repr(caught.value)
        await client.aclose()

    asyncio.run(scenario())


def test_figures_go_to_the_new_master(redis_server: RedisServer, other_server: RedisServer) -> None:
    """The analytics' store is refused once by the demoted master, and then writes to the new one."""

    async def scenario() -> None:
        async with Address(redis_server.port).open() as address:
            store = RedisStore(address.url, prefix="t", where="here")
            entry = StoredRow(HOUR, 1_767_225_600, "w", b"k", b"v")
            retention = Retention(hours_s=10**10)
            await asyncio.to_thread(store.write, [entry], retention)
            address.target = other_server.port
            redis_server.command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreError):
                await asyncio.to_thread(store.write, [entry], retention)
            await asyncio.to_thread(store.write, [entry], retention)
            store.close()

    asyncio.run(scenario())
    assert other_server.command("KEYS", "*")
