"""One call on one HTTP/2 stream: messages out of bytes for its handler, and what that writes into frames.

Owns the bytes that wait: a handler that is busy is given nothing, and what comes meanwhile is not
acknowledged, so that the peer's window bounds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import ngh2

from extproc.wire.calls import Begin, GrpcStatus, RpcHandler
from extproc.wire.http2 import framing

log = logging.getLogger(__name__)

#: Smaller ones are put together as they come: each has a few dozen bytes of Python's own.
PIECE_BYTES_MIN = 1024


class Carrier(Protocol):
    """What a stream needs of its connection."""

    session: ngh2.Connection
    #: The largest message that is taken.
    message_bytes_max: int

    def wrote(self, stream: GrpcStream) -> None:
        """It has something to send."""

    def turn(self) -> None:
        """The session has something to send, such as a window's update."""

    def buffered(self, more: int) -> bool:
        """So many bytes of unfinished messages more (or less) are kept; False where they are too many."""


class GrpcStream:
    """The `RpcCall` of one stream."""

    __slots__ = (
        "_carrier",
        "_failing",
        "_flushed",
        "_headers",
        "_held",
        "_lingers",
        "_need",
        "_peer_done",
        "_pieces",
        "_size",
        "_started",
        "_timer",
        "ended",
        "handler",
        "id",
        "over",
    )

    def __init__(self, carrier: Carrier, id_: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._carrier, self.id, self._headers = carrier, id_, headers
        self.handler: RpcHandler | None = None
        #: Bytes that are no whole message yet, or whose turn has not come, as they came; how many they are,
        #: and how many of them are unacknowledged.
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._size = self._held = 0
        #: The size of the message that has begun; None before its prefix.
        self._need: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = self._peer_done = False
        #: It ends other than well; all of its end has left; and that was so a while ago.
        self._failing = self._flushed = self._lingers = False
        #: Nothing more is written; and nothing at all happens any more.
        self.ended = self.over = False

    # The call, as its handler sees it.

    def metadata(self) -> Iterable[tuple[str, str]]:
        """What the caller sent beside its messages."""
        return [
            (name.decode("ascii", "replace"), value.decode("ascii", "replace"))
            for name, value in self._headers
            if not name.startswith(b":")
        ]

    def write(self, messages: Sequence[bytes], *, end: bool = False) -> None:
        """Send these, and with `end` the trailers of a call that ended well."""
        if self.ended:
            return
        session, id_, started = self._carrier.session, self.id, self._started
        self._started, self.ended = True, end
        try:
            if messages or not end:
                if not started:
                    session.send_response(id_, framing.RESPONSE)
                for message in messages:
                    session.send_data(id_, framing.framed(message))
                if end:
                    session.send_trailers(id_, framing.OK_TRAILERS)
            elif started:
                session.send_trailers(id_, framing.OK_TRAILERS)
            else:
                session.send_response(id_, framing.OK_ALONE, end_stream=True)
        except ngh2.NGH2Error:
            self._left()
        else:
            self._carrier.wrote(self)

    def fail(self, status: GrpcStatus, message: str) -> None:
        """End it with another status."""
        said = framing.trailers(status, message)
        self._failing = True
        if not self._started:
            self.answer((*framing.RESPONSE, *said))
        elif not self.ended:
            self.ended = True
            try:
                self._carrier.session.send_trailers(self.id, said)
            except ngh2.NGH2Error:
                self._left()
            else:
                self._carrier.wrote(self)

    def answer(self, headers: framing.Headers) -> None:
        """End it with headers alone."""
        if self.ended:
            return
        self._started = self.ended = self._failing = True
        try:
            self._carrier.session.send_response(self.id, headers, end_stream=True)
        except ngh2.NGH2Error:
            self._left()
        else:
            self._carrier.wrote(self)

    def _left(self) -> None:
        """The caller has left in the very bytes that are being read: its end comes right behind, as an event.

        Nothing was sent, so that nothing counts as delivered.
        """
        self.ended = True

    def resume(self) -> None:
        """The handler has ceased to be busy by itself: it may have its next message."""
        if self.handler is not None:
            self._guarded(self._parse)
            self._carrier.turn()

    # What the connection tells.

    def begin(self, begin: Begin, timeout: bytes | None) -> None:
        """The call begins; a deadline that it names (`grpc-timeout`) holds from here on."""
        try:
            self.handler = begin(self)
        except Exception:
            log.exception("a call could not begin")
            self.fail(GrpcStatus.UNKNOWN, "a fault of the service")
            return
        if timeout is not None:
            seconds = framing.timeout_s(timeout)
            if seconds is None:
                self.fail(GrpcStatus.INVALID_ARGUMENT, "grpc-timeout is no time")
            else:
                self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)

    def data(self, data: bytes, *, end: bool) -> None:
        """Bytes have come, and with `end` the last."""
        if end:
            self._peer_done = True
        handler = self.handler
        if self.ended or handler is None:
            self._acknowledge(len(data))
            return
        if handler.busy:
            self._held += len(data)
            self._keep(data)
            return
        self._acknowledge(len(data))
        whole = len(data) - framing.PREFIX_BYTES
        if (
            not self._size
            and self._need is None
            and 0 <= whole <= self._carrier.message_bytes_max
            and int.from_bytes(data[: framing.PREFIX_BYTES], "big") == whole
        ):
            # One message in one frame, uncompressed: what nearly all are.
            try:
                handler.message(data[framing.PREFIX_BYTES :])
            except Exception:  # noqa: BLE001 (as in _guarded)
                self._failed()
            if not self._peer_done:
                return
        elif data:
            self._keep(data)
            if self._need is not None and self._size < self._need and not self._peer_done:
                return
        self._guarded(self._parse)

    def flushed(self) -> None:
        """What was written has left whole."""
        if self.over:
            return
        if self.handler is not None:
            try:
                self.handler.sent()
            except Exception:  # noqa: BLE001 (as in _guarded)
                self._failed()
        if self.ended:
            self._let_go()
            if self._failing and not self._peer_done:
                # The caller need not send the rest: as gRPC's servers say it.
                self.give_up()
            else:
                # No reset behind a good end: an Envoy that puts off reading takes one for a failure, even of
                # what has come whole. It closes its own side by itself.
                self._flushed = True
        elif self._size or self._peer_done:
            self._guarded(self._parse)

    def lingers(self) -> bool:
        """Whether it has ended and was already asked this: its caller does not close its own side."""
        asked, self._lingers = self._lingers, self._flushed
        return asked

    def give_up(self) -> None:
        """Close the caller's side for it."""
        try:  # noqa: SIM105 (contextlib's costs more than the call)
            self._carrier.session.reset_stream(self.id, 0)
        except ngh2.NGH2Error:
            pass  # it is over already

    def close(self) -> None:
        """The stream is no more."""
        if self.over:
            return
        self.over = self.ended = True
        self._let_go()

    def _let_go(self) -> None:
        """It is over for its handler, and nothing of it is kept; its caller's side may still be open."""
        if self._timer is not None:
            self._timer.cancel()
        if self._size:
            self._carrier.buffered(-self._size)
            self._pieces.clear()
            self._size = 0
        self._acknowledge(self._held)
        self._held = 0
        handler, self.handler = self.handler, None
        if handler is not None:
            self._guarded(handler.closed)

    def _too_late(self) -> None:
        self._timer = None
        self.fail(GrpcStatus.DEADLINE_EXCEEDED, "the caller's deadline has passed")

    def _keep(self, data: bytes) -> None:
        pieces = self._pieces
        if len(data) >= PIECE_BYTES_MIN:
            pieces.append(data)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        self._size += len(data)
        if not self._carrier.buffered(len(data)):
            self.fail(GrpcStatus.RESOURCE_EXHAUSTED, "the service holds as many bytes as it may")

    def _cut(self, size: int) -> bytes:
        """Take so many of the bytes that are kept, copied once."""
        self._size -= size
        self._carrier.buffered(-size)
        pieces, parts = self._pieces, list[bytes | bytearray | memoryview]()
        while size:
            piece = pieces.popleft()
            if len(piece) > size:
                view = memoryview(piece)
                pieces.appendleft(view[size:])
                piece = view[:size]
            parts.append(piece)
            size -= len(piece)
        return b"".join(parts)

    def _parse(self) -> None:
        """Give the handler what is whole, while it takes it."""
        handler = self.handler
        assert handler is not None
        while not handler.busy and not self.ended:
            if self._held:
                self._acknowledge(self._held)
                self._held = 0
            if self._need is None:
                if self._size < framing.PREFIX_BYTES:
                    break
                prefix = self._cut(framing.PREFIX_BYTES)
                if prefix[0]:
                    self.fail(GrpcStatus.UNIMPLEMENTED, "messages are taken uncompressed alone")
                    return
                self._need = length = int.from_bytes(prefix[1:], "big")
                if length > self._carrier.message_bytes_max:
                    self.fail(GrpcStatus.RESOURCE_EXHAUSTED, f"a message of {length} bytes is too large")
                    return
            if self._size < self._need:
                break
            message, self._need = self._cut(self._need), None
            handler.message(message)
        if self._peer_done and not handler.busy and not self.ended:
            if self._size or self._need is not None:
                self.fail(GrpcStatus.INTERNAL, "the stream ended within a message")
            else:
                handler.sent_all()
                if not self.ended and not handler.busy:
                    self.write((), end=True)

    def _acknowledge(self, amount: int) -> None:
        if amount:
            try:  # noqa: SIM105 (as in `flushed`)
                self._carrier.session.acknowledge_received_data(amount, self.id)
            except ngh2.NGH2Error:
                pass  # the connection is over

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 (a fault of ours ends its own call, and no other)
            self._failed()

    def _failed(self) -> None:
        log.exception("a call failed; it is ended")
        if not self.over:
            self.fail(GrpcStatus.UNKNOWN, "a fault of the service")
