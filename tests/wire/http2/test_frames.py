"""What stands in RFC 9113 and 7541 of what a server must do with frames, and frames that are none.

`h2spec` (github.com/summerwind/h2spec) asks the same from outside; what it finds that is not held here is
libnghttp2's own way: frames on streams that are over are ignored instead of answered (5.1), and a stream's
number that is too low is taken for one of those (5.1.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random

import envoy_messages as envoy
import pytest
import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PROCESS,
    RST,
    SETTINGS,
    WINDOW,
    Peer,
    Port,
    frame,
    frames,
)

from extproc.wire.http2.connection import ConnectionSettings

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED, COMPRESSION_ERROR = 0, 1, 3, 6, 7, 9
END_HEADERS, END_STREAM, ACK = 0x4, 0x1, 0x1


def play(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def literal(name: bytes, value: bytes) -> bytes:
    """A field without HPACK's tables (RFC 7541, 6.2.2), of fewer than 127 bytes each."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


CALL = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", PROCESS.encode()),
        (b":authority", b"a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
OPENING = PREFACE + frame(SETTINGS, 0, 0)


def message(stream: int, data: bytes, *, end: bool = False) -> bytes:
    framed = b"\0" + len(data).to_bytes(4, "big") + data
    return frame(DATA, END_STREAM if end else 0, stream, framed)


def decision(stream: int) -> bytes:
    """A gateway's bytes of a whole decision."""
    return (
        frame(HEADERS, END_HEADERS, stream, CALL)
        + message(stream, serving.HEADERS)
        + message(stream, envoy.body(serving.BODY))
    )


class Raw:
    """A connection that is given bytes."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.peer = Peer(port.transport)
        self.connection, self.wire = self.peer.connection, self.peer.wire

    def said(self) -> list[tuple[int, int, int, bytes]]:
        return frames(b"".join(self.wire.writes))

    def code_of(self, kind: int) -> int | None:
        """The error code of the last such frame (GOAWAY or RST_STREAM)."""
        found = [each for each in self.said() if each[0] == kind]
        at = 4 if kind == GOAWAY else 0
        return int.from_bytes(found[-1][3][at : at + 4], "big") if found else None


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR, id="6.1 DATA on stream 0"),
        pytest.param(frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR, id="5.1 DATA on an idle stream"),
        pytest.param(frame(RST, 0, 1, u32(8)), PROTOCOL_ERROR, id="5.1 RST_STREAM on an idle stream"),
        pytest.param(frame(WINDOW, 0, 1, u32(8)), PROTOCOL_ERROR, id="5.1 WINDOW_UPDATE on an idle stream"),
        pytest.param(frame(HEADERS, END_HEADERS, 0, CALL), PROTOCOL_ERROR, id="6.2 HEADERS on stream 0"),
        pytest.param(frame(HEADERS, END_HEADERS, 2, CALL), PROTOCOL_ERROR, id="5.1.1 an even stream"),
        pytest.param(frame(HEADERS, END_HEADERS | 8, 1, b"\xff" + CALL), PROTOCOL_ERROR, id="6.2 padding"),
        pytest.param(frame(CONTINUATION, END_HEADERS, 1, CALL), PROTOCOL_ERROR, id="6.10 no HEADERS before"),
        pytest.param(
            frame(HEADERS, 0, 1, CALL) + frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR, id="6.2 DATA within headers"
        ),
        pytest.param(
            frame(HEADERS, END_HEADERS, 1, b"\x80" + CALL), COMPRESSION_ERROR, id="7541 6.1 index 0"
        ),
        pytest.param(
            frame(HEADERS, END_HEADERS, 1, b"\xff\x7f"), COMPRESSION_ERROR, id="7541 2.3.3 no index"
        ),
        pytest.param(frame(RST, 0, 0, u32(8)), PROTOCOL_ERROR, id="6.4 RST_STREAM on stream 0"),
        pytest.param(frame(RST, 0, 1, b"\0\0\0"), FRAME_SIZE_ERROR, id="6.4 RST_STREAM of 3 bytes"),
        pytest.param(frame(SETTINGS, ACK, 0, b"\0" * 6), FRAME_SIZE_ERROR, id="6.5 an ACK with a payload"),
        pytest.param(frame(SETTINGS, 0, 1), PROTOCOL_ERROR, id="6.5 SETTINGS on a stream"),
        pytest.param(frame(SETTINGS, 0, 0, b"\0" * 5), FRAME_SIZE_ERROR, id="6.5 SETTINGS of 5 bytes"),
        pytest.param(frame(SETTINGS, 0, 0, b"\0\2" + u32(2)), PROTOCOL_ERROR, id="6.5.2 ENABLE_PUSH 2"),
        pytest.param(
            frame(SETTINGS, 0, 0, b"\0\4" + u32(2**31)), FLOW_CONTROL_ERROR, id="6.5.2 a window of 2^31"
        ),
        pytest.param(frame(SETTINGS, 0, 0, b"\0\5" + u32(1)), PROTOCOL_ERROR, id="6.5.2 a frame size of 1"),
        pytest.param(frame(PING, 0, 0, b"\0" * 7), FRAME_SIZE_ERROR, id="6.7 PING of 7 bytes"),
        pytest.param(frame(PING, 0, 1, b"\0" * 8), PROTOCOL_ERROR, id="6.7 PING on a stream"),
        pytest.param(frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL_ERROR, id="6.8 GOAWAY on a stream"),
        pytest.param(frame(WINDOW, 0, 0, u32(0)), PROTOCOL_ERROR, id="6.9 WINDOW_UPDATE by 0"),
        pytest.param(frame(WINDOW, 0, 0, b"\0\0\0"), FRAME_SIZE_ERROR, id="6.9 WINDOW_UPDATE of 3 bytes"),
        pytest.param(
            frame(WINDOW, 0, 0, u32(2**31 - 1)) * 2, FLOW_CONTROL_ERROR, id="6.9.1 a window above 2^31-1"
        ),
        pytest.param(frame(5, END_HEADERS, 1, u32(2) + CALL), PROTOCOL_ERROR, id="8.4 a client's promise"),
        pytest.param((2**14 + 1).to_bytes(3, "big") + b"\0\0\0\0\0\1", FRAME_SIZE_ERROR, id="4.2 too large"),
    ],
)
def test_errors_of_the_connection(data: bytes, code: int) -> None:
    """GOAWAY says which, and the connection ends with all that it had."""

    async def test() -> None:
        port = Port()
        raw = Raw(port)
        raw.connection.data_received(OPENING + data)
        assert raw.code_of(GOAWAY) == code
        assert raw.wire.closed
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(CALL + literal(b"Upper", b"x"), PROTOCOL_ERROR, id="8.2 an upper-case name"),
        pytest.param(CALL + literal(b"connection", b"x"), PROTOCOL_ERROR, id="8.2.2 connection"),
        pytest.param(CALL + literal(b"te", b"gzip"), PROTOCOL_ERROR, id="8.2.2 te"),
        pytest.param(CALL + literal(b":path", b"/"), PROTOCOL_ERROR, id="8.3 a pseudo-header behind"),
        pytest.param(literal(b":unknown", b"x") + CALL, PROTOCOL_ERROR, id="8.3 an unknown pseudo-header"),
        pytest.param(literal(b":method", b"POST"), PROTOCOL_ERROR, id="8.3.1 no scheme and path"),
        pytest.param(literal(b":status", b"200") + CALL, PROTOCOL_ERROR, id="8.3 a response's"),
    ],
)
def test_errors_of_a_stream(data: bytes, code: int) -> None:
    """RST_STREAM says which; the connection goes on."""

    async def test() -> None:
        port = Port()
        raw = Raw(port)
        raw.connection.data_received(OPENING + frame(HEADERS, END_HEADERS, 1, data))
        assert raw.code_of(RST) == code
        assert not raw.connection.streams
        raw.connection.data_received(decision(3))
        assert (HEADERS, 3) in [(kind, stream) for kind, _, stream, _ in raw.said()]
        assert port.counts["routed"] == 1
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


def test_what_must_be_answered_or_ignored() -> None:
    """A PING is, SETTINGS are; unknown frames and settings are ignored, and padding is none of a message."""

    async def test() -> None:
        port = Port()
        raw = Raw(port)
        raw.connection.data_received(OPENING + frame(PING, 0, 0, b"abcdefgh") + frame(0xEE, 0xFF, 0, b"?"))
        raw.connection.data_received(
            frame(SETTINGS, 0, 0, b"\xee\xee" + u32(1)) + frame(PING, ACK, 0, b"x" * 8)
        )
        said = raw.said()
        assert (PING, ACK, 0, b"abcdefgh") in said
        assert said.count((SETTINGS, ACK, 0, b"")) == 2
        assert all(kind != GOAWAY for kind, *_ in said)
        body = message(1, serving.HEADERS)[9:]
        padded = frame(DATA, 0x8, 1, b"\7" + body + b"\0" * 7)
        raw.connection.data_received(frame(HEADERS, END_HEADERS, 1, CALL) + padded)
        raw.connection.data_received(message(1, envoy.body(serving.BODY)))
        assert port.counts["routed"] == 1
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


@pytest.mark.parametrize(("known", "kind", "code"), [(False, RST, REFUSED), (True, GOAWAY, PROTOCOL_ERROR)])
def test_streams_past_the_bound_are_refused(known: bool, kind: int, code: int) -> None:
    """Before they cost a handler: who could not know of it yet may try again, who knew is let go."""

    async def test() -> None:
        port = Port(settings=ConnectionSettings(streams_max=2))
        raw = Raw(port)
        raw.connection.data_received(OPENING + (frame(SETTINGS, ACK, 0) if known else b""))
        opened = b"".join(frame(HEADERS, END_HEADERS, each, CALL) for each in (1, 3, 5))
        raw.connection.data_received(opened)
        assert set(raw.connection.streams) == {1, 3}
        assert (raw.code_of(kind), raw.wire.closed) == (code, known)
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\x02\0\1", b"\0" * 64])
def test_a_peer_that_speaks_something_else(first: bytes) -> None:
    """HTTP/1.1, TLS on a port in the clear, nothing at all: the connection ends."""

    async def test() -> None:
        port = Port()
        raw = Raw(port)
        raw.connection.data_received(first)
        assert raw.wire.closed
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


def test_headers_are_bounded() -> None:
    """Too many bytes of them, or endless CONTINUATIONs, cost the stream or the connection, and no memory."""

    async def test() -> None:
        port = Port()
        raw = Raw(port)
        raw.connection.data_received(OPENING)
        much = CALL + b"".join(literal(b"x-%d" % i, b"y" * 100) for i in range(150))
        raw.connection.data_received(
            frame(HEADERS, 0, 1, CALL) + frame(CONTINUATION, 0, 1, much[len(CALL) :])
        )
        for _ in range(20):
            if not raw.wire.closed:
                raw.connection.data_received(frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100)))
        assert raw.wire.closed or raw.code_of(RST) is not None
        assert not raw.connection.streams
        raw.peer.lose()
        port.nothing_is_left()

    play(test)


def test_bytes_split_anywhere() -> None:
    """Two decisions come in two reads, wherever the first ends: the answers are those of one read."""
    data = OPENING + decision(1) + decision(3)

    def answers(raw: Raw) -> list[tuple[int, int, int]]:
        return [(kind, flags, stream) for kind, flags, stream, _ in raw.said() if kind != SETTINGS]

    async def test() -> None:
        whole = Raw(Port())
        whole.connection.data_received(data)
        expected = sorted(answers(whole))
        assert whole.port.counts["routed"] == 2
        for at in range(1, len(data)):
            raw = Raw(Port())
            raw.connection.data_received(data[:at])
            raw.connection.data_received(data[at:])
            assert sorted(answers(raw)) == expected, at
            assert raw.port.processor.open_exchanges == 0
        single = Raw(Port())
        for at in range(len(data)):
            single.connection.data_received(data[at : at + 1])
        assert sorted(answers(single)) == expected

    play(test)


kinds = st.integers(0, 12)
noise = st.one_of(
    st.binary(max_size=200),
    st.builds(
        frame,
        kinds,
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]),
        st.one_of(st.binary(max_size=60), st.just(CALL), st.just(message(1, serving.HEADERS)[9:])),
    ),
    st.sampled_from([decision(1), decision(3), decision(5), frame(RST, 0, 1, u32(8)), OPENING]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(noise, max_size=12), st.booleans(), st.integers(0, 2**32))
def test_garbage_harms_nobody(parts: list[bytes], opened: bool, seed: int) -> None:
    """Whatever bytes come, in whatever pieces: nothing escapes, nothing leaks, another connection goes on."""
    chance = Random(seed)
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]

    async def test() -> None:
        port = Port()
        other = port.peer()
        other.pump()
        raw = Raw(port)
        data = (OPENING if opened else b"") + b"".join(parts)
        if data and chance.random() < 0.3:
            at = chance.randrange(len(data))
            data = data[:at] + bytes((chance.randrange(256),)) + data[at + 1 :]
        while data and not raw.wire.closed:
            size = chance.randint(1, len(data))
            raw.connection.data_received(data[:size])
            data = data[size:]
        await asyncio.sleep(0)
        assert other.status(other.decide()) == 0
        raw.peer.lose()
        other.lose()
        port.nothing_is_left()
        assert not port.transport.connections

    log = logging.getLogger("extproc.wire.http2")
    log.addHandler(handler)
    try:
        play(test)
    finally:
        log.removeHandler(handler)
    assert [record.getMessage() for record in logged if record.levelno >= logging.WARNING] == []
