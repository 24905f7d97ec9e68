from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import envoy_messages as envoy
import grpc
import pytest
import serving
from peer import PROCESS, Peer, Port, one_peer

from extproc.core.contract import EVENT_METHOD, EVENT_SERVICE
from extproc.wire.server import ACCESS_LOG, HEALTH
from tests.stand.waits import until


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_a_decision_in_one_turn() -> None:
    """From the body's bytes to the decision, its trailers and the stream's end: one read, one write."""

    async def test() -> None:
        with one_peer() as (port, peer):
            stream = peer.open()
            peer.send(stream, serving.HEADERS)
            peer.pump()
            before, tasks = len(peer.wire.writes), len(asyncio.all_tasks())
            peer.send(stream, envoy.body(serving.BODY))
            peer.give(peer.session.data_to_send())
            assert len(peer.wire.writes) == before + 1
            assert len(asyncio.all_tasks()) == tasks, "a decision takes no task"
            peer.pump()
            assert len(peer.messages(stream)) == 2
            assert (peer.status(stream), peer.ended[stream]) == (0, 0)
            assert len(port.processor.scheduler.ledger) == 1

    play(test)


def test_thousands_of_streams_on_one_connection() -> None:
    """Each gets its own answer, whatever the order; none is left."""

    async def test() -> None:
        with one_peer() as (port, peer):
            port.processor.decisions_concurrent_max = 5_000
            streams = [peer.open() for _ in range(3_000)]
            for stream in streams:
                peer.send(stream, serving.HEADERS)
            peer.pump()
            assert port.processor.open_exchanges == 3_000
            for stream in reversed(streams):
                peer.send(stream, envoy.body(serving.BODY))
            peer.pump()
            assert {peer.status(stream) for stream in streams} == {0}
            assert all(len(peer.messages(stream)) == 2 for stream in streams)
            assert port.processor.open_exchanges == 0
            assert not peer.connection.streams

    play(test)


def test_messages_in_one_frame_and_across_frames() -> None:
    """Two messages at once are answered in order; one that comes byte by byte is one all the same."""

    async def test() -> None:
        with one_peer() as (_, peer):
            stream = peer.open()
            peer.send(stream, serving.HEADERS)
            peer.send(stream, envoy.body(serving.BODY))
            peer.pump()
            assert len(peer.messages(stream)) == 2
            slow = peer.open()
            for message in (serving.HEADERS, envoy.body(serving.BODY)):
                for byte in b"\0" + len(message).to_bytes(4, "big") + message:
                    peer.session.send_data(slow, bytes((byte,)))
                    peer.pump()
            assert len(peer.messages(slow)) == 2
            assert peer.status(slow) == 0

    play(test)


def test_a_caller_that_leaves_in_the_very_read_of_its_decision() -> None:
    """What was decided for it is undone: nothing was delivered."""

    async def test() -> None:
        with one_peer() as (port, peer):
            stream = peer.open()
            peer.send(stream, serving.HEADERS)
            peer.pump()
            peer.send(stream, envoy.body(serving.BODY))
            data = peer.session.data_to_send()
            peer.session.reset_stream(stream)
            peer.give(data + peer.session.data_to_send())
            assert (port.counts["routed"], port.counts["cancelled"]) == (1, 1)
            assert len(port.processor.scheduler.ledger) == 0

    play(test)


@pytest.mark.parametrize(
    ("path", "more", "fields"),
    [
        ("/no.Such/Method", {}, {b"grpc-status": b"12"}),
        (PROCESS, {b"content-type": b"text/html"}, {b":status": b"415"}),
        (PROCESS, {b":method": b"GET"}, {b":status": b"405"}),
        (PROCESS, {b"grpc-timeout": b"1x"}, {b"grpc-status": b"3"}),
    ],
)
def test_calls_that_are_none(path: str, more: dict[bytes, bytes], fields: dict[bytes, bytes]) -> None:
    """Each is told in gRPC's words, or in HTTP's where it does not speak gRPC."""

    async def test() -> None:
        with one_peer() as (port, peer):
            stream = peer.open(path, *more.items())
            peer.pump()
            assert fields.items() <= peer.fields[stream].items()
            assert peer.ended[stream] == 0
            assert port.processor.open_exchanges == 0
            assert peer.status(peer.decide()) == 0

    play(test)


@pytest.mark.parametrize(
    ("data", "end", "status"),
    [
        (b"\x01\0\0\0\x02ab", False, 12),  # compressed
        (b"\0\xff\xff\xff\xff", False, 8),  # a length above the bound, told before a byte of it is kept
        (b"\0\0\0\0\x09ab", True, 13),  # it ends within a message
        (b"\0\0\0\0\x02\xff\xff", False, 3),  # not a ProcessingRequest
        (b"\0\0", True, 13),
    ],
)
def test_messages_that_are_none(data: bytes, end: bool, status: int) -> None:
    """Told by status; the connection and its other streams go on."""

    async def test() -> None:
        with one_peer() as (port, peer):
            stream = peer.open()
            peer.session.send_data(stream, data, end_stream=end)
            peer.pump()
            assert (peer.status(stream), peer.ended[stream]) == (status, 0)
            assert port.transport.buffered_bytes == 0
            assert peer.status(peer.decide()) == 0

    play(test)


def test_a_deadline_that_the_caller_names() -> None:
    """grpc-timeout ends a call that has had no answer by then; one that was answered in time it does not."""

    async def test() -> None:
        with one_peer() as (port, peer):
            late = peer.open(PROCESS, (b"grpc-timeout", b"20m"))
            peer.send(late, serving.HEADERS)
            peer.pump()
            await until(lambda: port.processor.open_exchanges == 0 or peer.pump())
            peer.pump()
            assert peer.status(late) == 4
            quick = peer.open(PROCESS, (b"grpc-timeout", b"59M"))
            peer.send(quick, serving.HEADERS)
            peer.send(quick, envoy.body(serving.BODY))
            peer.pump()
            assert peer.status(quick) == 0

    play(test)


def test_the_other_calls() -> None:
    """Records, first-token events and health: answered when the caller has said all."""

    async def test() -> None:
        with one_peer() as (port, peer):
            log = peer.open(f"/{ACCESS_LOG}/StreamAccessLogs")
            peer.send(log, b"")
            peer.pump()
            assert peer.status(log) is None, "a log's stream stands"
            peer.session.end_stream(log)
            peer.pump()
            assert (peer.messages(log), peer.status(log)) == ([b""], 0)
            event = peer.open(f"/{EVENT_SERVICE}/{EVENT_METHOD}")
            peer.send(event, b"", end=True)
            health = peer.open(f"/{HEALTH}/Check")
            peer.send(health, b"", end=True)
            peer.pump()
            assert (peer.messages(event), peer.status(event)) == ([b""], 0)
            assert serving.status_of(peer.messages(health)[0]) == "SERVING"
            assert port.counts["events.first_token"] == 1
            asks_nothing = peer.open(f"/{HEALTH}/Check", end=True)
            peer.pump()
            assert peer.status(asks_nothing) == 13

    play(test)


def test_a_fault_of_a_handler_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Logged, told as UNKNOWN; the connection lives."""

    class Faulty:
        busy = False

        def __init__(self, call: Any) -> None:
            self.told = 0

        def message(self, data: bytes) -> None:
            raise ZeroDivisionError("a fault of ours")

        def sent(self) -> None: ...

        def sent_all(self) -> None: ...

        def closed(self) -> None:
            closed.append(self)

    def broken(call: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    closed: list[Faulty] = []

    async def test() -> None:
        with one_peer(methods={"/a/Faulty": Faulty, "/a/Broken": broken}) as (_, peer):
            for path in ("/a/Faulty", "/a/Broken"):
                stream = peer.open(path)
                peer.send(stream, b"x")
                peer.pump()
                assert (peer.status(stream), peer.ended[stream]) == (2, 0)
            assert len(closed) == 1

    play(test)
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def bridged(serve: Callable[[Any, Any], Awaitable[None]]) -> Any:
    method = grpc.stream_stream_rpc_method_handler(serve)
    return grpc.method_handlers_generic_handler("a.Service", {"Method": method})


def test_handlers_of_grpcs_kind() -> None:
    """They read, write, abort and are cancelled as on grpc.aio."""
    ended: list[str] = []

    async def echo(_: Any, context: Any) -> None:
        assert ("x-a", "b") in context.invocation_metadata()
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                if data == b"abort":
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
                await context.write(data * 2)
            ended.append("whole")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def test() -> None:
        with one_peer(handlers=(bridged(echo),)) as (_, peer):

            def open_() -> int:
                return peer.open("/a.Service/Method", (b"x-a", b"b"))

            async def told(condition: Callable[[], Any]) -> None:
                await until(lambda: (peer.pump(), condition())[1])

            whole, aborted, left = open_(), open_(), open_()
            for each in (b"a", b"b", b"c"):
                peer.send(whole, each, end=each == b"c")
            peer.send(aborted, b"abort")
            peer.send(left, b"a")
            await told(lambda: peer.status(whole) == 0 and peer.status(aborted) == 8)
            assert peer.messages(whole) == [b"aa", b"bb", b"cc"]
            await told(lambda: peer.messages(left) == [b"aa"])
            peer.session.reset_stream(left)
            await told(lambda: ended == ["whole", "cancelled"])
            unknown = peer.open("/a.Service/Other")
            peer.pump()
            assert peer.status(unknown) == 12

    play(test)


def test_a_watch_hears_of_the_drain() -> None:
    """NOT_SERVING is pushed at once, and the watch ends."""

    async def test() -> None:
        with one_peer() as (port, peer):
            stream = peer.open(f"/{HEALTH}/Watch")
            peer.send(stream, b"", end=True)
            peer.pump()
            assert [serving.status_of(each) for each in peer.messages(stream)] == ["SERVING"]
            port.server.health.drain()
            await until(lambda: (peer.pump(), peer.status(stream) == 0)[1])
            assert [serving.status_of(each) for each in peer.messages(stream)] == ["SERVING", "NOT_SERVING"]

    play(test)


def test_a_lost_connection_undoes_what_was_not_delivered() -> None:
    """Whatever stands open is closed, and nothing stays reserved."""

    async def test() -> None:
        port = Port()
        peer: Peer = port.peer()
        peer.pump()
        for _ in range(5):
            peer.send(peer.open(), serving.HEADERS)
        peer.pump()
        assert port.processor.open_exchanges == 5
        peer.lose()
        port.nothing_is_left()
        assert not port.transport.connections

    play(test)
