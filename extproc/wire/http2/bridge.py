"""Handlers that were written for grpc.aio (ADS), on our own streams.

Owns the context that they see: `read`, `write`, `abort`, `invocation_metadata`. Such a call has a task, for
as long as it lasts; what Envoy asks for each request has none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from extproc.wire.calls import Begin, GrpcStatus, RpcCall
from extproc.wire.http2.stream import GrpcStream


class CallAbortedError(Exception):
    """What `abort` raises, so that the handler ends."""


@dataclass(frozen=True, slots=True)
class CallDetails:
    """grpc's HandlerCallDetails, of which generic handlers read the method."""

    method: str
    invocation_metadata: Sequence[tuple[str, str]] = ()


class Bridge:
    """Finds methods among generic handlers; those of streams both ways alone are carried."""

    def __init__(self, handlers: Sequence[Any]) -> None:
        self._handlers = handlers

    def method(self, path: str) -> Begin | None:
        """What is served there."""
        for each in self._handlers:
            found = each.service(CallDetails(path))
            if found is not None and found.stream_stream is not None:
                return partial(BridgedCall, serve=found.stream_stream)
        return None


class BridgedCall:
    """One call: our handler towards the stream, grpc's context towards what serves it."""

    def __init__(self, call: RpcCall, serve: Callable[[AsyncIterator[bytes], Any], Awaitable[None]]) -> None:
        self._call = call
        self._unread: deque[bytes] = deque()
        self._all_read = False
        self._readable: asyncio.Future[None] | None = None
        self._writes: deque[asyncio.Future[None]] = deque()
        self.busy = False
        self._task = asyncio.get_running_loop().create_task(self._serve(serve))

    # our stream's side

    def message(self, data: bytes) -> None:
        """One message is kept; more wait in the peer's window."""
        self._unread.append(data)
        self.busy = True
        self._wake()

    def sent(self) -> None:
        """The oldest write is out."""
        if self._writes and not (write := self._writes.popleft()).done():
            write.set_result(None)

    def sent_all(self) -> None:
        """The peer has no more to say; the handler ends the call."""
        self.busy = self._all_read = True
        self._wake()

    def closed(self) -> None:
        """Its end cancels the handler, as grpc.aio's does."""
        self._task.cancel()

    def _wake(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    async def _serve(self, serve: Callable[[AsyncIterator[bytes], Any], Awaitable[None]]) -> None:
        try:
            await serve(self._messages(), self)
        except CallAbortedError:
            return
        except Exception:
            self._call.fail(GrpcStatus.UNKNOWN, "a fault of the service")
            raise
        self._call.write((), end=True)

    # grpc.aio's context

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """What the caller sent beside its messages."""
        return self._call.metadata()

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        while not self._unread:
            if self._all_read:
                return grpc.aio.EOF
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable
        data = self._unread.popleft()
        self.busy = False
        if isinstance(self._call, GrpcStream):
            self._call.resume()
        return data

    async def write(self, data: bytes) -> None:
        """Send one, and wait until it is out."""
        out: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writes.append(out)
        self._call.write((data,))
        await out

    async def abort(self, code: Any, details: str = "") -> None:
        """End it with a status."""
        self._call.fail(GrpcStatus(code.value[0]), details)
        raise CallAbortedError

    async def _messages(self) -> AsyncIterator[bytes]:
        while (data := await self.read()) is not grpc.aio.EOF:
            yield data
