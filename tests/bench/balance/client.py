"""A streaming load client on an asyncio protocol: the first token's time and the end of each request.

Owns connections and clocks. Reads no token but the first: what comes after it is only looked through for
the end, so that the client costs little of the cores that the gateway needs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

#: A request that has not ended after so long has failed.
REQUEST_S_MAX = 60.0
_END = b"\r\n0\r\n\r\n"
_ERROR = b'data: {"error"'


@dataclass(slots=True)
class Seen:
    """What became of one request. Times in seconds from its due time; None where it did not come so far.

    `status` is 0 for a broken connection or a time-out; `refused` is an error inside a 200. `late_s` is how
    much later than its due time the client sent it, `due_s` that time (perf_counter).
    """

    status: int = 0
    late_s: float = 0.0
    first_s: float | None = None
    end_s: float | None = None
    refused: bool = False
    due_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Answered in full."""
        return self.status == 200 and not self.refused and self.end_s is not None

    @property
    def shed(self) -> bool:
        """Turned away for want of room."""
        return self.status == 429


class _Stream(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._done: asyncio.Future[bool] | None = None
        self._tail = b""
        self._length = -1
        self._due_s = 0.0
        self.seen = Seen()

    @property
    def open(self) -> bool:
        """The other side has not closed it since the last request."""
        return self.transport is not None and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own is none by inheritance

    def data_received(self, data: bytes) -> None:
        seen, done = self.seen, self._done
        if done is None or done.done():
            return
        if not seen.status:
            self._tail += data
            end = self._tail.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._tail[:end].lower(), self._tail[end + 4 :]
            seen.status = int(head.split(b" ", 2)[1])
            at = head.find(b"content-length:")
            self._length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            self._tail = b"\r\n"
        if seen.first_s is None and b"data:" in data:
            seen.first_s = time.perf_counter() - self._due_s
            seen.refused = _ERROR in data
        if self._length >= 0:
            self._length -= len(data)
            ended = self._length <= 0
        else:
            tail = self._tail + data[-len(_END) :] if len(data) < len(_END) else data
            self._tail = tail[-len(_END) :]
            ended = self._tail == _END
        if ended:
            seen.end_s = time.perf_counter() - self._due_s
            done.set_result(True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self.seen.status = 0
            self._done.set_result(False)

    async def send(self, request: bytes, due_s: float) -> tuple[Seen, bool]:
        """What was seen, and whether the connection may be used again."""
        assert self.transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._length, self._due_s = b"", -1, due_s
        self.seen = Seen(late_s=time.perf_counter() - due_s, due_s=due_s)
        self.transport.write(request)
        try:
            good = await asyncio.wait_for(self._done, REQUEST_S_MAX)
        except TimeoutError:
            self.seen.status, good = 0, False
        if not good:
            self.transport.abort()
        return self.seen, good


def generate_bytes(body: bytes, *, key: str, output_tokens: int) -> bytes:
    """A `/generate_stream` request whose answer the simulator makes exactly so long."""
    return (
        b"POST /generate_stream HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\nx-sim-output-tokens: %d\r\ncontent-length: %d\r\n\r\n%s"
        % (key.encode(), output_tokens, len(body), body)
    )


def completion_bytes(body: bytes, *, key: str, session: str = "") -> bytes:
    """A `/v1/completions` request; `session` for routers that keep one on a replica."""
    more = f"x-session-id: {session}\r\n" if session else ""
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\n%scontent-length: %d\r\n\r\n%s"
        % (key.encode(), more.encode(), len(body), body)
    )


class Load:
    """Connections to one port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: deque[_Stream] = deque()

    async def one(self, request: bytes, due_s: float) -> Seen:
        """Send one request now; `due_s` (perf_counter) is when it was to be sent."""
        while self._free:
            stream = self._free.popleft()
            if stream.open:
                break
        else:
            loop = asyncio.get_running_loop()
            try:
                _, stream = await loop.create_connection(_Stream, "127.0.0.1", self.port)
            except OSError:
                return Seen(due_s=due_s)
        seen, good = await stream.send(request, due_s)
        if good:
            self._free.append(stream)
        return seen

    async def play(self, requests: Sequence[tuple[float, bytes]]) -> list[Seen]:
        """Send each at its time (seconds from now), whatever becomes of the others."""
        began_s = time.perf_counter()
        tasks = []
        for at_s, request in requests:
            due_s = began_s + at_s
            if (left_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)
            tasks.append(asyncio.create_task(self.one(request, due_s)))
        return [await task for task in tasks]

    def close(self) -> None:
        """Drop the connections."""
        for stream in self._free:
            if stream.transport is not None:
                stream.transport.close()
        self._free.clear()
