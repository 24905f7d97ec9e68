"""Several services over a real redis-server, and everything that it does to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator

import pytest
import redis

from extproc.state.messages import VERSION
from extproc.state.outbox import REPORTS_MAX
from extproc.state.redis_share import RedisShare
from extproc.state.share import REFRESH_NS
from tests.state.conftest import Lag, RedisServer, Service, services, until

# Seconds each, of a Redis that is killed, hung and emptied.
pytestmark = pytest.mark.soak

A, B = ("p", "10.0.0.1:80"), ("p", "10.0.0.2:80")
INDEX = f"{{steersman}}:services:v{VERSION}"
CHANNEL = f"{{steersman}}:share:v{VERSION}"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("extproc.state")]


def test_two_services_see_each_other_and_a_third_learns_at_once(redis_server: RedisServer) -> None:
    """A change is told when it comes; a new service finds what is, before anybody speaks again."""

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            took_s = []
            for number in range(1, 6):
                one.loads = {A: (number, number, 10 * number)}
                two.loads = {A: (1, 2, 3), B: (number, 1, 1)}
                took_s.append(
                    await until(lambda n=number: two.sees(*A) == (n, n, 10 * n) and one.sees(*B) == (n, 1, 1))
                )
            assert min(took_s) < REFRESH_NS / 4e9, "a change is told when it comes"
            assert two.changed == {A}
            await asyncio.sleep(1.1)
            # From here nobody speaks: what the third knows at once, it found.
            one.share._tasks[0].cancel()
            two.share._tasks[0].cancel()
            third = Service(redis_server.url, "three")
            await third.share.start()
            await until(lambda: third.sees(*A) == (6, 7, 53) and third.sees(*B) == (5, 1, 1))
            assert third.share.peers.deciders == 3
            await third.share.close()

    asyncio.run(scenario())


def test_a_closed_service_is_gone_by_its_word_and_a_dead_one_by_its_silence(
    redis_server: RedisServer,
) -> None:
    """The goodbye takes the load along and leaves nothing in the store; without it the load ages out."""

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two", "three") as (one, two, three):
            one.loads = two.loads = three.loads = {A: (1, 1, 1)}
            await until(lambda: one.sees(*A) == (2, 2, 2))
            await two.share.close()
            await until(lambda: one.sees(*A) == (1, 1, 1))
            assert one.share.counts["peers_expired"] == 0
            await three.die()
            await until(lambda: one.sees(*A) == (0, 0, 0))
            assert one.share.counts["peers_expired"] == 1
            assert one.share.peers.deciders == 1
            fourth = Service(redis_server.url, "four")
            await fourth.share.start()
            await until(lambda: fourth.share.peers.deciders == 2)
            assert redis_server.command("SCARD", INDEX) == 2
            await fourth.share.close()

    asyncio.run(scenario())


def test_reports_reach_the_other_services_once_and_as_they_were(redis_server: RedisServer) -> None:
    """Not the one that published them; a callback that fails harms nothing; one too large is dropped."""

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two", "three") as (one, two, three):
            two.share._on_report = lambda node, data: 1 / 0
            sent = [(f"node-{i}", bytes([i, 0, 255])) for i in range(200)]
            for node, data in sent:
                one.share.publish_report(node, data)
            one.share.publish_report("huge", b"x" * (1 << 20))
            await until(lambda: len(three.reports) >= len(sent))
            assert three.reports == sent
            assert one.reports == []
            assert one.share.counts["reports_dropped"] == 1
            assert two.share.counts["callback_failed"] == len(sent)
            assert two.share.connected

    asyncio.run(scenario())


def test_redis_killed_and_back(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Loads age out while it is away and are shared again when it is back; a line for each transition."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            one.loads = {A: (1, 1, 1)}
            await until(lambda: two.sees(*A) == (1, 1, 1))
            redis_server.kill()
            await until(lambda: not one.share.connected and not two.share.connected)
            assert two.sees(*A) == (1, 1, 1) or two.share.counts["peers_expired"]
            await until(lambda: two.sees(*A) == (0, 0, 0))
            one.loads = {A: (7, 7, 7)}
            redis_server.start()
            await until(lambda: two.sees(*A) == (7, 7, 7))
            assert one.share.connected
            assert one.share.counts["lost"] == one.share.counts["back"] == 1

    asyncio.run(scenario())
    assert sum(" lost (" in line for line in lines(caplog)) == 2
    assert sum("is back" in line for line in lines(caplog)) == 2
    assert len(lines(caplog)) == 6


def test_a_hung_redis_blocks_nothing_and_queues_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped for three seconds: the loop turns, what waits is bounded, the newest load goes on."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            async with Lag() as lag:
                redis_server.signal(signal.SIGSTOP)
                begun = time.monotonic()
                number = 0
                while time.monotonic() - begun < 3:
                    number += 1
                    one.loads = {A: (number, 1, 1)}
                    for i in range(20):
                        one.share.publish_report(f"node-{i}", b"x" * 1000)
                    await asyncio.sleep(0.02)
                assert not one.share.connected
                assert not two.share.connected
                assert len(one.share._outbox) <= REPORTS_MAX
                assert one.share.counts["reports_dropped"] > 0
                redis_server.signal(signal.SIGCONT)
                await until(lambda: two.sees(*A) == (number, 1, 1) and one.share.peers.deciders == 2)
            assert not lag.blocked, lag.worst_s
            assert len(asyncio.all_tasks()) < 12

    asyncio.run(scenario())
    assert sum(" lost (" in line for line in lines(caplog)) == 2
    assert sum("is back" in line for line in lines(caplog)) == 2


def test_a_service_starts_and_ends_without_redis(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Away or hung, `start` returns at once and `close` within its bound; one line says so."""

    async def scenario() -> None:
        service = Service(redis_server.url, "one")
        with pytest.raises(StopIteration):
            service.share.start().send(None)  # it waits for nothing
        await asyncio.sleep(0.5)
        assert not service.share.connected
        async with asyncio.timeout(30):
            await service.share.close()
            await service.share.close()

    redis_server.signal(signal.SIGSTOP)
    asyncio.run(scenario())
    assert lines(caplog) == []
    redis_server.kill()
    asyncio.run(scenario())
    assert len(lines(caplog)) == 1


def test_a_flushed_database_is_refilled(redis_server: RedisServer) -> None:
    """Nobody loses anything meanwhile, and a new service finds everything a second later."""

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            one.loads = {A: (1, 1, 1)}
            await until(lambda: two.sees(*A) == (1, 1, 1))
            redis_server.command("FLUSHALL")
            await until(lambda: redis_server.command("SCARD", INDEX) == 2)
            assert redis_server.command("DBSIZE") == 3
            assert two.sees(*A) == (1, 1, 1)
            assert two.share.connected

    asyncio.run(scenario())


def test_a_server_that_became_read_only_is_as_good_as_lost(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What is published there does not reach those on the new primary; it is asked again until it writes."""

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            redis_server.command("REPLICAOF", "127.0.0.1", "1")
            await until(lambda: not one.share.connected and not two.share.connected)
            await asyncio.sleep(0.5)
            redis_server.command("REPLICAOF", "NO", "ONE")
            one.loads = {A: (1, 1, 1)}
            await until(lambda: two.sees(*A) == (1, 1, 1))

    asyncio.run(scenario())
    lost = [line for line in lines(caplog) if " lost (" in line]
    assert len(lost) == 2
    assert "read only replica" in lost[0]


@pytest.mark.parametrize("url", ["redis://:wrong@127.0.0.1:{}/0", "redis://127.0.0.1:{}/0"])
def test_a_wrong_password_is_said_once_and_never_shown(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    """And once Redis accepts it, all is well without a restart."""
    redis_server.command("CONFIG", "SET", "requirepass", "right")

    async def scenario() -> None:
        service = Service(url.format(redis_server.port), "one")
        await service.share.start()
        await until(lambda: service.share.counts["failed_sessions"] >= 2)
        assert not service.share.connected
        reset = Service(f"redis://:right@127.0.0.1:{redis_server.port}/0", "admin")
        await reset.share.start()
        await until(lambda: reset.share.connected)
        with redis.Redis(port=redis_server.port, password="right") as client:
            client.config_set("requirepass", "wrong" if "wrong" in url else "")
        await until(lambda: service.share.connected)
        await reset.share.close()
        await service.share.close()

    asyncio.run(scenario())
    assert len(lines(caplog)) == 1
    assert "wrong" not in caplog.text.replace("WRONGPASS", "")


def test_a_store_that_refuses_does_not_end_the_sharing(redis_server: RedisServer) -> None:
    """A user that may publish and nothing else: only a new service learns a moment later."""
    redis_server.command("ACL", "SETUSER", "narrow", "on", "nopass", "allchannels", "+publish", "+subscribe")
    url = f"redis://narrow:x@127.0.0.1:{redis_server.port}/0"

    async def scenario() -> None:
        async with services(url, "one", "two") as (one, two):
            one.loads = {A: (1, 1, 1)}
            await until(lambda: two.sees(*A) == (1, 1, 1))
            assert one.share.connected
            assert one.share.counts["store_refused"] >= 3
            third = Service(url, "three")
            await third.share.start()
            await until(lambda: third.sees(*A) == (1, 1, 1))
            await third.share.close()

    asyncio.run(scenario())


def test_garbage_on_the_channel_and_in_the_store_is_counted(redis_server: RedisServer) -> None:
    """A flood of it takes nobody's turn; what stands in the keys is not believed either."""
    redis_server.command("SADD", INDEX, "junk", b"\xff\xfe", "forever", "gone")
    redis_server.command("SET", f"{INDEX}:junk", b"\x00garbage", "PX", 60_000)
    redis_server.command("SET", f"{INDEX}:forever", b"forever")

    async def scenario() -> None:
        async with services(redis_server.url, "one", "two") as (one, two):
            assert one.share.counts["rejected_no_sender"] == 1
            async with Lag() as lag:
                _, writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
                junk = b"x" * 50
                line = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$50\r\n%s\r\n" % (
                    len(CHANNEL),
                    CHANNEL.encode(),
                    junk,
                )
                writer.write(line * 3_000)
                await writer.drain()
                one.loads = {A: (1, 1, 1)}
                await until(lambda: two.sees(*A) == (1, 1, 1))
                await until(lambda: two.share.counts["rejected_no_sender"] >= 3_001)
            writer.close()
            assert not lag.blocked, lag.worst_s
            assert two.share.connected
            assert two.share.peers.deciders == 2

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def going_deaf(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A way to Redis; when the event is set, nothing more comes down the subscribed connection."""
    deaf = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marks: list[bool], *, down: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if not down and b"SUBSCRIBE" in data:
                    marks.append(True)
                if not (down and marks and deaf.is_set()):
                    writer.write(data)
                    await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        marks: list[bool] = []
        tasks.add(asyncio.create_task(pump(reader, behind_writer, marks, down=False)))
        tasks.add(asyncio.create_task(pump(behind_reader, writer, marks, down=True)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], deaf
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_subscription_that_fell_silent_is_noticed(redis_server: RedisServer) -> None:
    """Publishing still works, but our own heartbeat does not come back: the session begins anew."""

    async def scenario() -> None:
        async with going_deaf(redis_server.port) as (port, deaf):
            service = Service(f"redis://127.0.0.1:{port}/0", "one")
            await service.share.start()
            await until(lambda: service.share.connected)
            deaf.set()
            await until(lambda: service.share.counts["lost"] == 1, within_s=4.5)
            deaf.clear()
            await until(lambda: service.share.counts["back"] == 1)
            await service.share.close()

    asyncio.run(scenario())


def test_a_url_that_names_no_redis_is_refused_when_it_is_made() -> None:
    """A configuration error, not an endless reconnect."""
    with pytest.raises(ValueError, match="scheme"):
        RedisShare("http://x", service_id="a", loads=dict, on_peers=lambda _: None, on_report=lambda *_: None)
