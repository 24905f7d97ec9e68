"""The calls of calls.py on grpc.aio: the transport that is there on every platform.

Owns grpc's server and its options. Each call costs a task and several turns of the event loop; wire/http2
does without.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from extproc.grpc_peers import PeerBounds
from extproc.wire.bind import BindError, bind
from extproc.wire.calls import Begin, GrpcStatus, Methods
from extproc.wire.gate import TokenCheck, TokenInterceptor
from extproc.wire.tls import TlsFiles

log = logging.getLogger(__name__)

_CODES: Mapping[int, Any] = {each.value[0]: each for each in grpc.StatusCode}

#: An Envoy that hangs is let go, and with it what decisions wait for it to accept.
PEERS = PeerBounds(connections_max=4_096, ping_ms=10_000, answer_ms=5_000)


class AioTransport:
    """One grpc.aio server. `handlers` are further generic RPC handlers, of grpc's own kind.

    `setting` is where its addresses are from, for errors.
    """

    def __init__(
        self,
        methods: Methods,
        *,
        message_bytes_max: int,
        tokens: TokenCheck | None,
        tls: TlsFiles | None,
        handlers: Sequence[Any] = (),
        setting: str = "service.listen",
        peers: PeerBounds = PEERS,
    ) -> None:
        self._setting = setting
        self._credentials = None if tls is None else tls.for_grpc()
        self._server = grpc.aio.server(
            interceptors=[TokenInterceptor(tokens)] if tokens is not None else [],
            options=[
                ("grpc.max_receive_message_length", message_bytes_max),
                # Two services on one port would share its connections by chance.
                ("grpc.so_reuseport", 0),
                # Envoy keeps one connection for long; its keepalive pings are no attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                *peers.options(),
            ],
        )
        self._server.add_generic_rpc_handlers((*generic_handlers(methods), *handlers))

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""
        try:
            bound = [
                bind(self._server, each, credentials=self._credentials, setting=self._setting)
                for each in addresses
            ]
        except BindError:
            await self._server.stop(None)  # lets go of the addresses bound before
            raise
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run may end for so long."""
        await self._server.stop(grace=grace_s)


def generic_handlers(methods: Methods) -> list[Any]:
    """The methods as handlers that any grpc.aio server takes."""
    services: dict[str, dict[str, Any]] = {}
    for path, begin in methods.items():
        _, service, method = path.split("/")
        services.setdefault(service, {})[method] = _handler(begin)
    return [grpc.method_handlers_generic_handler(name, table) for name, table in services.items()]


def _handler(begin: Begin) -> Any:
    async def serve(_: Any, context: Any) -> None:
        await AioCall(context).serve(begin)

    # On the wire a unary call is a stream of one message.
    return grpc.stream_stream_rpc_method_handler(serve)


class AioCall:
    """One call: reads for its handler while that is not busy, and sends what it writes."""

    __slots__ = ("_context", "_failed", "_interrupted", "_out", "_reading", "_wake")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._out: deque[tuple[Sequence[bytes], bool]] = deque()
        self._failed: tuple[GrpcStatus, str] | None = None
        #: The task of a read that a write may interrupt, and whether one has.
        self._reading: asyncio.Task[Any] | None = None
        self._interrupted = False
        self._wake: asyncio.Future[None] | None = None

    def metadata(self) -> Iterable[tuple[str, str]]:
        """The invocation's."""
        found: Iterable[tuple[str, str]] = self._context.invocation_metadata()
        return found

    def write(self, messages: Sequence[bytes], *, end: bool = False) -> None:
        """Sent in its turn."""
        self._out.append((messages, end))
        self._turn()

    def fail(self, status: GrpcStatus, message: str) -> None:
        """Sent in its turn, before what is not yet."""
        self._failed = status, message
        self._turn()

    def _turn(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        if self._reading is not None and not self._interrupted:
            self._interrupted = True
            self._reading.cancel()

    async def serve(self, begin: Begin) -> None:
        """Carry the call to its end."""
        handler = begin(self)
        try:
            while True:
                if self._failed is not None:
                    status, text = self._failed
                    await self._context.abort(_CODES[status], text)
                elif self._out:
                    messages, end = self._out.popleft()
                    for each in messages:
                        await self._context.write(each)
                    handler.sent()
                    if end:
                        return
                elif handler.busy:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    self._wake = None
                else:
                    data = await self._read()
                    if data is grpc.aio.EOF:
                        handler.sent_all()
                        if not self._out and self._failed is None and not handler.busy:
                            return
                    elif data is not None:
                        handler.message(data)
        finally:
            self._reading = None
            handler.closed()

    async def _read(self) -> Any:
        """The next message; None when there is something to send instead."""
        self._reading = asyncio.current_task()
        try:
            return await self._context.read()
        except asyncio.CancelledError:
            if not self._interrupted or self._reading is None or self._reading.uncancel() > 0:
                raise
            return None
        finally:
            self._reading, self._interrupted = None, False
