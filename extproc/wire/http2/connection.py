"""One HTTP/2 connection of a gateway: bytes in, events to its streams, one write back for each read.

Owns the session of libnghttp2, the windows, keepalive, and how a connection ends. Everything from the bytes
to the answer is synchronous; a turn of the event loop is one read or one flush.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import ngh2
from ngh2.config import Role
from ngh2.enums import Setting

from extproc.wire.calls import Begin, GrpcStatus
from extproc.wire.gate import REFUSAL, TokenCheck
from extproc.wire.http2 import framing
from extproc.wire.http2.stream import GrpcStream

log = logging.getLogger(__name__)

#: Streams of one connection at once. Envoy opens one a request that is being decided or held.
STREAMS_MAX = 65_536
#: Bytes that a peer may send before they are taken: of one stream, and of all of a connection.
STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES = 1024 * 1024, 64 * 1024 * 1024
#: Headers of one call.
HEADER_BYTES_MAX, HEADERS_MAX = 16 * 1024, 256
#: A connection on which nothing comes is asked whether it lives, and let go where it does not say so.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 10.0, 5.0
#: Our own turn came so much too late: what the peer answered is unread, and it has one more timeout.
LATE_S = 0.5
#: Bytes that are taken out of the session at once: what the peer's socket does not take stays in there.
OUT_BYTES_MAX = 256 * 1024
#: Envoy ends each stream that we end early with a reset, by design; nghttp2 would take that for an attack
#: (1,000, and 33 a second). A call costs no more when it is reset than when it is not.
_UNLIMITED = (2**40, 2**40)


class Owner(Protocol):
    """What a connection needs of who listens."""

    tokens: TokenCheck | None
    message_bytes_max: int
    settings: ConnectionSettings

    def method(self, path: str) -> Begin | None:
        """What is served there."""

    def buffered(self, more: int) -> bool:
        """So many bytes of unfinished messages more (or less) are kept; False where they are too many."""

    def opened(self, connection: Http2Connection) -> bool:
        """A connection has come; False where there are too many."""

    def gone(self, connection: Http2Connection) -> None:
        """It is no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """The bounds of one connection."""

    streams_max: int = STREAMS_MAX
    stream_window_bytes: int = STREAM_WINDOW_BYTES
    connection_window_bytes: int = CONNECTION_WINDOW_BYTES
    keepalive_s: float = KEEPALIVE_S
    keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S


class Http2Connection(asyncio.Protocol):
    """The server's side of one connection."""

    def __init__(self, owner: Owner) -> None:
        self._owner, self._settings = owner, owner.settings
        self.message_bytes_max = owner.message_bytes_max
        self.session = _session()
        self.streams: dict[int, GrpcStream] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        #: Streams that have written since the last flush; and those that wait for the peer's windows.
        self._written: list[GrpcStream] = []
        self._blocked: dict[int, GrpcStream] = {}
        #: In a read or a flush, whose end flushes; a flush that is to come; the peer takes nothing just now.
        self._busy = self._scheduled = self._paused = False
        #: Something came; asked whether it is there; waited for once more, for we were late ourselves.
        self._heard = self._pinged = self._spared = False
        self._keepalive: asyncio.TimerHandle | None = None
        self._closing = False

    # asyncio's protocol

    def connection_made(self, transport: Any) -> None:
        """Say our settings, or end it where there are too many or TLS agreed on something else."""
        self._transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        if not self._owner.opened(self):
            transport.abort()
            return
        settings = self._settings
        self.session.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: settings.streams_max,
                Setting.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
                Setting.MAX_HEADER_LIST_SIZE: HEADER_BYTES_MAX,
            }
        )
        self.session.set_local_window_size(settings.connection_window_bytes)
        self._ask_in(settings.keepalive_s)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what came, and answer it in one write."""
        if self._closing:
            return
        self._heard = True
        self._busy = True
        try:
            try:
                self.session.receive_data(data)
            except ngh2.NGH2Error as error:
                self._close(f"{error}")
            self._take_events()
        finally:
            self._busy = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Whoever is left was cancelled."""
        self._closing = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        streams, self.streams = list(self.streams.values()), {}
        self._written, self._blocked = [], {}
        for stream in streams:
            stream.close()
        self._owner.gone(self)

    def pause_writing(self) -> None:
        """The peer does not read: nor do we, or its answers would fill memory."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._paused = False
        self._transport.resume_reading()
        self._flush()

    # for streams

    def wrote(self, stream: GrpcStream) -> None:
        """It has something to send: with what else this turn brings."""
        self._written.append(stream)
        self.turn()

    def turn(self) -> None:
        """The session has something to send, such as a window's update."""
        if not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    def buffered(self, more: int) -> bool:
        """So many bytes of unfinished messages more (or less)."""
        return self._owner.buffered(more)

    # for who listens

    def notify(self) -> None:
        """Ask the peer to open no further streams here; those that it opens meanwhile are served."""
        if not self._closing and self._transport is not None:
            self._attempt(self.session.send_shutdown_notice)
            self._flush()

    def go_away(self) -> None:
        """No further stream is taken; the connection ends with the last that runs."""
        if self._closing or self._transport is None:
            return
        self._attempt(self.session.send_goaway, 0)
        self._flush()
        self._close_if_idle()

    def end(self) -> None:
        """End it, with what runs."""
        if self._closing or self._transport is None:
            return
        self._attempt(self.session.terminate_connection, 0)
        self._flush()
        self._close("the service ends")

    def abort(self) -> None:
        """Without a word more: it is over at once."""
        if self._transport is not None:
            self._transport.abort()

    # events

    def _take_events(self) -> None:
        for event in self.session.events():
            take = self._EVENTS.get(type(event))
            if take is not None:
                take(self, event)

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        stream = self.streams[event.stream_id] = GrpcStream(self, event.stream_id, event.headers)
        fields = dict(event.headers)
        path = fields.get(b":path", b"").decode("ascii", "replace")
        if not fields.get(b"content-type", b"").startswith(b"application/grpc"):
            stream.answer(framing.NOT_GRPC)
        elif fields.get(b":method") != b"POST":
            stream.answer(framing.NOT_POST)
        elif self._owner.tokens is not None and not self._owner.tokens.admit(path, stream.metadata()):
            stream.fail(GrpcStatus.UNAUTHENTICATED, REFUSAL)
        elif (begin := self._owner.method(path)) is None:
            stream.fail(GrpcStatus.UNIMPLEMENTED, "nothing is served at this path")
        else:
            stream.begin(begin, fields.get(b"grpc-timeout"))
        if event.end_stream:
            stream.data(b"", end=True)

    def _on_data(self, event: ngh2.DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.data(event.data, end=event.end_stream)
        elif event.data:
            self.session.acknowledge_received_data(len(event.data), event.stream_id)

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.data(b"", end=True)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id, None)
        self._blocked.pop(event.stream_id, None)
        if stream is not None:
            stream.close()

    def _on_window(self, event: ngh2.WindowUpdated | ngh2.SettingsReceived) -> None:
        """What waited for the peer's windows may have left."""
        if not self._blocked:
            return
        id_ = event.stream_id if isinstance(event, ngh2.WindowUpdated) else 0
        if id_ == 0:
            self._written.extend(self._blocked.values())
            self._blocked.clear()
        elif (stream := self._blocked.pop(id_, None)) is not None:
            self._written.append(stream)

    def _on_connection_closed(self, _: ngh2.ConnectionClosed) -> None:
        self._close("the peer broke the protocol")

    _EVENTS: ClassVar[dict[type, Callable[[Http2Connection, Any], None]]] = {
        ngh2.RequestReceived: _on_request,
        ngh2.DataReceived: _on_data,
        ngh2.TrailersReceived: _on_trailers,
        ngh2.StreamClosed: _on_closed,
        ngh2.WindowUpdated: _on_window,
        ngh2.SettingsReceived: _on_window,
        ngh2.ConnectionClosed: _on_connection_closed,
    }

    # going out

    def _flush_soon(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        """Send what there is in one write, and tell whose words have left."""
        if self._paused or self._busy or self._transport is None:
            return
        self._busy, out = True, list[bytes]()
        try:
            while True:
                data = self.session.data_to_send(OUT_BYTES_MAX)
                if data:
                    out.append(data)
                if len(data) == OUT_BYTES_MAX:
                    if not self._write(out):
                        break  # what is left stays in the session, bounded by what its streams may have
                    continue
                # Before the events: where the caller had closed its side, that all has left ends the stream.
                told = bool(self._written)
                self._tell()
                self._take_events()
                if not told and not self._written:
                    break
        except ngh2.NGH2Error as error:
            self._close(f"{error}")
        finally:
            self._busy = False
        self._write(out)
        if self._closing:
            self._transport.close()
        elif not self.streams:
            self._close_if_idle()

    def _write(self, out: list[bytes]) -> bool:
        """Whether the peer's socket takes more."""
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        return not self._paused

    def _tell(self) -> None:
        written, self._written = self._written, []
        for stream in written:
            if stream.over:
                continue
            if self.session.queued_body_size(stream.id):
                self._blocked[stream.id] = stream
            else:
                stream.flushed()

    # its end

    def _close_if_idle(self) -> None:
        session = self.session
        if not self.streams and not session.want_read and not session.want_write:
            self._close("nothing is left to do")
            self._transport.close()

    def _close(self, why: str) -> None:
        if not self._closing:
            self._closing = True
            log.debug("a connection is closed: %s", why)
            if not self._busy:
                self._transport.close()

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except ngh2.NGH2Error as error:
            self._close(f"{error}")

    def _ask_after(self) -> None:
        """A while has passed: a peer of which nothing came is asked, and let go when it was asked before.

        Calls that ended a while ago, and whose callers have not closed their side, are closed.
        """
        settings = self._settings
        lingering = [stream for stream in self.streams.values() if stream.lingers()]
        if lingering:
            for stream in lingering:
                stream.give_up()
            self._flush()
        if self._heard:
            self._heard = self._pinged = self._spared = False
        elif self._pinged and self._loop.time() - self._due_s > LATE_S and not self._spared:
            self._spared = True  # late ourselves, we have not read its answer yet
        elif self._pinged:
            log.info("a gateway's connection was silent for %.0f s and is let go", settings.keepalive_s)
            self.abort()
            return
        else:
            self._pinged = True
            self._attempt(self.session.ping)
            self._flush()
        self._ask_in(settings.keepalive_timeout_s if self._pinged else settings.keepalive_s)

    def _ask_in(self, wait_s: float) -> None:
        self._due_s = self._loop.time() + wait_s
        self._keepalive = self._loop.call_at(self._due_s, self._ask_after)


def _session() -> ngh2.Connection:
    return ngh2.Connection(
        Role.SERVER,
        ngh2.Configuration(
            auto_window_update=False,
            stream_reset_rate_limit=_UNLIMITED,
            glitch_rate_limit=_UNLIMITED,
            max_inbound_header_list_size=HEADER_BYTES_MAX,
            max_inbound_header_count=HEADERS_MAX,
        ),
    )
