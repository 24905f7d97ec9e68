from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import envoy_messages as envoy
import ngh2
import serving
from peer import PING, PROCESS, Port, frames, one_peer

from extproc.wire.http2 import connection as connection_module
from extproc.wire.http2.connection import LATE_S, ConnectionSettings
from tests.stand.waits import until


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


class Big:
    """Answers each message with so many bytes."""

    def __init__(self, call: Any, size: int) -> None:
        self.call, self.size, self.busy = call, size, False
        self.out = 0

    def message(self, data: bytes) -> None:
        self.busy = True
        self.call.write((b"x" * self.size,))

    def sent(self) -> None:
        self.busy = False
        self.out += 1

    def sent_all(self) -> None: ...

    def closed(self) -> None: ...


class Slow:
    """Takes one message, and no second until it is told to."""

    def __init__(self, call: Any) -> None:
        self.call, self.busy, self.got = call, False, 0

    def message(self, data: bytes) -> None:
        self.busy, self.got = True, self.got + 1

    def sent(self) -> None: ...

    def sent_all(self) -> None: ...

    def closed(self) -> None: ...


def test_a_decision_that_the_window_does_not_take_is_not_delivered() -> None:
    """It waits; a caller that leaves meanwhile has it undone, one that opens the window gets it."""

    async def test() -> None:
        port = Port()
        peer = port.peer(window=5)
        peer.pump()
        left, stays = peer.open(), peer.open()
        for stream in (left, stays):
            peer.send(stream, serving.HEADERS)
            peer.send(stream, envoy.body(serving.BODY))
        # Raw: the client of ngh2 would open its windows by itself.
        peer.give(peer.session.data_to_send())
        assert port.processor.open_exchanges == 2
        assert port.counts["routed"] == 0, "the second message waits for the first answer to leave"
        for stream in (left, stays):
            peer.give(b"\0\0\4\x08\0" + stream.to_bytes(4, "big") + (10).to_bytes(4, "big"))
        assert port.counts["routed"] == 2
        peer.give(b"\0\0\4\x03\0" + left.to_bytes(4, "big") + (8).to_bytes(4, "big"))
        assert port.counts["cancelled"] == 1
        peer.give(b"\0\0\4\x08\0" + stays.to_bytes(4, "big") + (100_000).to_bytes(4, "big"))
        assert port.processor.open_exchanges == 0
        assert len(port.processor.scheduler.ledger) == 1
        peer.lose()
        port.nothing_is_left()

    play(test)


def test_a_peer_that_does_not_read_fills_no_memory() -> None:
    """Its socket is full: nothing more is taken out of the session, and nothing of it is read."""
    made: list[Big] = []

    def begin(call: Any) -> Big:
        made.append(Big(call, 1_000_000))
        return made[-1]

    async def test() -> None:
        with one_peer(methods={"/a/Big": begin}) as (_, peer):
            streams = [peer.open("/a/Big") for _ in range(8)]
            for stream in streams:
                peer.send(stream, b"?")
            data = peer.session.data_to_send()
            write, connection = peer.wire.write, peer.connection

            def full(data: bytes) -> None:
                write(data)
                connection.pause_writing()

            peer.wire.write = full  # type: ignore[method-assign]
            peer.give(data)
            assert not peer.wire.reading
            assert sum(map(len, peer.wire.writes)) < 2 * connection_module.OUT_BYTES_MAX
            assert sum(each.out for each in made) == 0
            peer.wire.write = write  # type: ignore[method-assign]
            connection.resume_writing()
            assert peer.wire.reading
            peer.pump()
            assert {len(peer.messages(stream)[0]) for stream in streams} == {1_000_000}
            assert [each.out for each in made] == [1] * 8

    play(test)


def test_a_busy_call_bounds_what_its_caller_may_send() -> None:
    """What comes meanwhile is not acknowledged: the window is the bound; taken, the window opens again."""
    slow: list[Slow] = []

    def begin(call: Any) -> Slow:
        slow.append(Slow(call))
        return slow[-1]

    async def test() -> None:
        settings = ConnectionSettings(stream_window_bytes=50_000, connection_window_bytes=200_000)
        with one_peer(methods={"/a/Slow": begin}, settings=settings) as (port, peer):
            stream = peer.open("/a/Slow")
            for _ in range(20):
                peer.send(stream, b"x" * 10_000)
            peer.pump()
            assert slow[0].got == 1
            assert 30_000 < port.transport.buffered_bytes <= 50_000
            assert peer.session.queued_body_size(stream) > 100_000, "the rest is with its sender"
            for taken in range(2, 21):
                slow[0].busy = False
                peer.connection.streams[stream].resume()
                await asyncio.sleep(0)  # the window's update leaves with the next turn
                peer.pump()
                assert slow[0].got == taken
            assert port.transport.buffered_bytes == 0

    play(test)


def test_streams_that_are_reset_give_their_window_back() -> None:
    """Unread bytes of calls that are gone do not count against the connection for ever."""

    async def test() -> None:
        settings = ConnectionSettings(stream_window_bytes=50_000, connection_window_bytes=200_000)
        with one_peer(methods={"/a/Slow": Slow}, settings=settings) as (port, peer):
            for _ in range(50):
                stream = peer.open("/a/Slow")
                peer.send(stream, b"x")
                peer.send(stream, b"x" * 40_000)
                peer.pump()
                peer.session.reset_stream(stream)
                peer.pump()
            assert port.transport.buffered_bytes == 0
            assert peer.session.remote_window_size >= 100_000
            assert peer.status(peer.open("/none")) is None

    play(test)


def test_unfinished_messages_are_bounded_together() -> None:
    """Past the bound the next piece ends its own call; what others hold goes on, and all of it is freed."""

    async def test() -> None:
        with one_peer(buffered_bytes_max=lambda: 25_000) as (port, peer):
            streams = [peer.open() for _ in range(3)]
            for stream in streams:
                peer.session.send_data(stream, b"\0\0\0\x60\0" + b"x" * 9_995)
                peer.pump()
            assert [peer.status(stream) for stream in streams] == [None, None, 8]
            assert port.counts["bound.http2_buffered_bytes_max"] == 1
            for stream in streams[:2]:
                peer.session.reset_stream(stream)
            peer.pump()
            assert port.transport.buffered_bytes == 0
            assert peer.status(peer.decide()) == 0

    play(test)


def test_connections_are_bounded() -> None:
    """One more is ended, and said; the place of one that has ended is free."""

    async def test() -> None:
        port = Port(connections_max=1)
        peer = port.peer()
        assert port.peer().wire.closed
        assert port.counts["bound.http2_connections_max"] == 1
        peer.lose()
        assert not port.peer().wire.closed

    play(test)


def test_a_peer_that_is_silent_is_let_go() -> None:
    """It is asked, and let go with what it had open; one that answers stays."""

    async def test() -> None:
        settings = ConnectionSettings(keepalive_s=0.05, keepalive_timeout_s=0.2)
        port = Port(settings=settings)
        dead, alive = port.peer(), port.peer()
        dead.pump()
        dead.send(dead.open(), serving.HEADERS)
        dead.give(dead.session.data_to_send())
        assert port.processor.open_exchanges == 1
        pinged = 0

        def over() -> bool:
            nonlocal pinged
            alive.pump()
            pinged = sum(isinstance(each, ngh2.PingReceived) for each in alive.events)
            return dead.wire.closed and pinged >= 3

        await until(over)
        assert not alive.wire.closed
        dead.lose()
        port.nothing_is_left()
        alive.lose()

    play(test)


def test_a_stall_of_ours_lets_nobody_go() -> None:
    """The answer to our ping lies unread when its time is over: the peer has the same time once more."""

    async def test() -> None:
        settings = ConnectionSettings(keepalive_s=0.05, keepalive_timeout_s=0.5)
        port = Port(settings=settings)
        peer = port.peer()

        def pings() -> int:
            return sum(kind == PING for kind, *_ in frames(b"".join(peer.wire.writes)))

        await until(pings)
        time.sleep(settings.keepalive_timeout_s + 2 * LATE_S)  # noqa: ASYNC251 (our loop stands)
        await asyncio.sleep(0.01)
        assert not peer.wire.closed
        peer.pump()
        await until(lambda: pings() > 1)
        await until(lambda: peer.wire.closed, "one that stays silent is let go")
        peer.lose()

    play(test)


def test_a_graceful_end() -> None:
    """What runs ends well, what comes meanwhile is served, and the connection closes with the last."""

    async def test() -> None:
        port = Port()
        peer, idle = port.peer(), port.peer()
        peer.pump()
        idle.pump()
        stream = peer.open()
        peer.send(stream, serving.HEADERS)
        peer.pump()
        late = peer.open()
        peer.send(late, serving.HEADERS)
        peer.send(late, envoy.body(serving.BODY))
        on_its_way = peer.session.data_to_send()
        stop = asyncio.create_task(port.transport.stop(30.0))
        await until(lambda: len(peer.wire.writes) > 1)
        peer.give(on_its_way)
        await until(lambda: idle.wire.closed)
        idle.lose()
        peer.pump()
        assert peer.status(late) == 0
        assert [each.error_code for each in peer.events if isinstance(each, ngh2.GoAwayReceived)] == [0, 0]
        peer.send(stream, envoy.body(serving.BODY))
        peer.pump()
        assert peer.status(stream) == 0
        assert peer.wire.closed
        peer.lose()
        await stop
        port.nothing_is_left()

    play(test)


def test_an_end_that_waits_for_nobody() -> None:
    """What runs past the grace is cut, and undone."""

    async def test() -> None:
        port = Port()
        peer = port.peer()
        peer.pump()
        peer.send(peer.open(PROCESS), serving.HEADERS)
        peer.pump()
        stop = asyncio.create_task(port.transport.stop(0.01))
        await until(lambda: peer.wire.closed)
        peer.lose()
        await stop
        port.nothing_is_left()

    play(test)


def test_a_caller_whose_side_stays_open() -> None:
    """No reset stands behind a good end, which Envoy would take for a failure; the call is over all the same.

    A caller that never closes its side is reset after a while, so that its streams are not kept for ever.
    """

    async def test() -> None:
        settings = ConnectionSettings(keepalive_s=0.05, keepalive_timeout_s=30.0)
        with one_peer(settings=settings) as (port, peer):
            peer.closes = False
            stream = peer.decide()
            assert peer.status(stream) == 0
            assert stream not in peer.ended, "there was a reset behind the end"
            port.nothing_is_left()
            assert stream in peer.connection.streams

            def swept() -> bool:
                peer.pump()
                return stream in peer.ended and not peer.connection.streams

            await until(swept)
            assert peer.ended[stream] == 0
            assert peer.status(peer.decide()) == 0

    play(test)


def test_a_call_that_fails_is_reset_at_once() -> None:
    """What its caller would still send is not waited for."""

    async def test() -> None:
        with one_peer() as (_, peer):
            peer.closes = False
            stream = peer.open("/no.Such/Method")
            peer.pump()
            assert (peer.status(stream), peer.ended[stream]) == (12, 0)
            assert not peer.connection.streams

    play(test)
