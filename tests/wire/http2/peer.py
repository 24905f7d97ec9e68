"""A gateway's side of one connection, in memory: bytes go in and come out in this very turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import envoy_messages as envoy
import ngh2
import serving
from ngh2.config import Role

from extproc.core.outcome import Outcome
from extproc.wire.calls import Methods
from extproc.wire.http2.connection import ConnectionSettings, Http2Connection
from extproc.wire.http2.framing import framed
from extproc.wire.http2.transport import Http2Transport
from extproc.wire.processor import Processor
from extproc.wire.server import EXT_PROC, Server

PROCESS = f"/{EXT_PROC}/Process"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Wire(asyncio.Transport):
    """The transport that a connection sees: keeps each write, takes none away."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.reading, self.closed = True, False

    def write(self, data: Any) -> None:
        assert not self.closed, "written after its end"
        self.writes.append(bytes(data))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2, as it stands on the wire."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of each frame."""
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


class Peer:
    """A connection with a client of ngh2 at its other end."""

    def __init__(self, owner: Http2Transport, *, window: int = 16 * 1024 * 1024) -> None:
        self.connection = Http2Connection(owner)
        self.wire = Wire()
        self.session = ngh2.Connection(Role.CLIENT, ngh2.Configuration(peer_max_concurrent_streams=100_000))
        self.session.initiate_connection({4: window})
        #: Of each stream: the response's bytes, its fields (trailers included), and how it ended.
        self.data: dict[int, bytes] = {}
        self.fields: dict[int, dict[bytes, bytes]] = {}
        self.ended: dict[int, int] = {}
        self.events: list[Any] = []
        #: As Envoy does, it closes its own side once the response is there whole.
        self.closes = True
        self._read = 0
        self.connection.connection_made(self.wire)

    def give(self, data: bytes) -> None:
        """Bytes of the peer's, as one read."""
        assert self.wire.reading or not data, "who does not read is given nothing"
        self.connection.data_received(data)

    def pump(self) -> None:
        """Carry bytes both ways until nobody has any more to say."""
        while True:
            out = self.session.data_to_send()
            if out and not self.wire.closed:
                self.give(out)
            fresh = self.wire.writes[self._read :]
            self._read = len(self.wire.writes)
            for each in fresh:
                self.session.receive_data(each)
            self._take()
            if not out and not fresh:
                return

    def _take(self) -> None:
        for event in self.session.events():
            self.events.append(event)
            if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                self.fields.setdefault(event.stream_id, {}).update(dict(event.headers))
            elif isinstance(event, ngh2.DataReceived):
                self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
            elif isinstance(event, ngh2.StreamClosed):
                self.ended[event.stream_id] = event.error_code
            whole = isinstance(event, ngh2.TrailersReceived) or getattr(event, "end_stream", False)
            if whole and self.closes and event.stream_id not in self.ended:
                self.session.reset_stream(event.stream_id, 0)

    def open(self, path: str = PROCESS, *more: tuple[bytes, bytes], end: bool = False) -> int:
        """Begin a call."""
        fields = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path.encode(),
            b":authority": b"steersman",
            b"content-type": b"application/grpc",
            b"te": b"trailers",
            **dict(more),
        }
        return self.session.send_request(list(fields.items()), end_stream=end)

    def send(self, stream: int, message: bytes, *, end: bool = False) -> None:
        """Send one message of a call."""
        self.session.send_data(stream, framed(message), end_stream=end)

    def messages(self, stream: int) -> list[bytes]:
        """The whole messages that have come of a call."""
        data, found = self.data.get(stream, b""), []
        while len(data) >= 5:
            length = int.from_bytes(data[1:5], "big")
            found.append(data[5 : 5 + length])
            data = data[5 + length :]
        return found

    def status(self, stream: int) -> int | None:
        """The call's grpc-status; None while there is none."""
        said = self.fields.get(stream, {}).get(b"grpc-status")
        return None if said is None else int(said)

    def decide(self) -> int:
        """A whole decision; returns its stream."""
        stream = self.open()
        self.send(stream, serving.HEADERS)
        self.pump()
        self.send(stream, envoy.body(serving.BODY))
        self.pump()
        return stream

    def lose(self) -> None:
        """The connection breaks."""
        self.connection.connection_lost(None)


class Port:
    """A server's logic on the transport, without a socket."""

    def __init__(
        self,
        *,
        settings: ConnectionSettings | None = None,
        connections_max: int = 16,
        methods: Methods | None = None,
        handlers: tuple[Any, ...] = (),
        buffered_bytes_max: Callable[[], int] | None = None,
    ) -> None:
        self.server: Server
        self.processor: Processor
        self.settled: list[Outcome]
        self.server, self.processor, self.settled = serving.build()
        made = self.server._transport
        assert isinstance(made, Http2Transport)
        self.counts = self.processor.scheduler.counts
        self.transport = Http2Transport(
            made._methods if methods is None else methods,
            message_bytes_max=made.message_bytes_max,
            tokens=None,
            tls=None,
            handlers=handlers,
            settings=settings,
            connections_max=connections_max,
            buffered_bytes_max=buffered_bytes_max or made._buffered_bytes_max,
            count=made._count,
        )

    def peer(self, *, window: int = 16 * 1024 * 1024) -> Peer:
        """A connection."""
        return Peer(self.transport, window=window)

    def nothing_is_left(self) -> None:
        """Every exchange is closed, nothing is buffered, and what is reserved was delivered."""
        assert self.processor.open_exchanges == 0
        assert self.transport.buffered_bytes == 0
        assert len(self.processor.scheduler.ledger) == self.counts["routed"] - self.counts["cancelled"]


@contextmanager
def one_peer(**settings: Any) -> Iterator[tuple[Port, Peer]]:
    """A server and a connection to it, which breaks at the end and leaves nothing."""
    port = Port(**settings)
    peer = port.peer()
    peer.pump()
    yield port, peer
    peer.lose()
    port.nothing_is_left()
