"""A small HTTP/1.1 load client and a static upstream, on asyncio protocols: cheap enough to measure with."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import cast


class _Client(asyncio.Protocol):
    """One keep-alive connection; one request at a time; answers carry a content-length or come in chunks."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.waiter: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None
        self.first_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        if self.first_s is None and len(self.buffer) > end + 4:
            self.first_s = time.perf_counter()
        head = bytes(self.buffer[:end]).lower()
        at = head.find(b"content-length:")
        if at >= 0:
            whole = len(self.buffer) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        else:
            whole = b"transfer-encoding: chunked" not in head or self.buffer.endswith(b"\r\n0\r\n\r\n")
        if whole and self.waiter is not None and not self.waiter.done():
            status = int(head.split(b" ", 2)[1])
            self.buffer.clear()
            self.waiter.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(0)

    async def send(self, request: bytes) -> int:
        """Send, and wait for the status of the whole answer; 0 for a lost connection."""
        assert self.transport is not None
        self.waiter, self.first_s = asyncio.get_running_loop().create_future(), None
        self.transport.write(request)
        return await self.waiter


class _Static(asyncio.Protocol):
    """Answers every request at once with the same JSON."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            del self.buffer[: end + 4 + length]
            self.transport.write(self.answer)


ANSWER_BODY = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":1,"total_tokens":251}}'
)


async def static_upstream(count: int) -> tuple[list[str], list[asyncio.Server]]:
    """`count` upstreams on free ports: their addresses and servers."""
    loop = asyncio.get_running_loop()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        len(ANSWER_BODY),
        ANSWER_BODY,
    )
    servers = [await loop.create_server(lambda: _Static(answer), "127.0.0.1", 0) for _ in range(count)]
    return [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers], servers


def request_bytes(body: bytes, key: str) -> bytes:
    """A chat request."""
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s" % (key.encode(), len(body), body)
    )


class Load:
    """Connections to one address. Latencies are to the body's first byte: of a stream, its first token."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.free: deque[_Client] = deque()
        #: Refused is what was answered 429; failed whatever else was no 200.
        self.failed = self.refused = 0

    async def _client(self) -> _Client:
        if self.free:
            return self.free.popleft()
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(_Client, "127.0.0.1", self.port)
        return client

    async def _one(self, request: bytes, into: list[float]) -> None:
        client = await self._client()
        began = time.perf_counter()
        status = await client.send(request)
        ended = time.perf_counter() if client.first_s is None else client.first_s
        if status in (200, 429):
            self.free.append(client)
        if status == 200:
            into.append((ended - began) * 1e3)
        elif status == 429:
            self.refused += 1
        else:
            self.failed += 1

    async def closed(self, request: bytes, count: int) -> list[float]:
        """`count` requests one after the other; latencies in milliseconds."""
        took: list[float] = []
        for _ in range(count):
            await self._one(request, took)
        return took

    async def open(self, request: bytes, rate: float, seconds: float) -> list[float]:
        """Evenly spaced arrivals whatever the answers do; latencies in milliseconds."""
        took: list[float] = []
        tasks = []
        began = time.perf_counter()
        for i in range(int(rate * seconds)):
            delay = began + i / rate - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(self._one(request, took)))
        await asyncio.gather(*tasks)
        return took

    async def some(self, request: bytes, count: int, connections: int) -> list[float]:
        """`count` requests, so many at a time; latencies in milliseconds."""
        took: list[float] = []
        left = count

        async def each() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._one(request, took)

        await asyncio.gather(*(each() for _ in range(connections)))
        return took

    async def saturate(self, request: bytes, connections: int, seconds: float) -> float:
        """As many as go through, one after the other on each connection: those served, a second."""
        took: list[float] = []
        began = time.perf_counter()

        async def some() -> None:
            while time.perf_counter() - began < seconds:
                await self._one(request, took)

        await asyncio.gather(*(some() for _ in range(connections)))
        return len(took) / (time.perf_counter() - began)

    def close(self) -> None:
        """Drop the connections."""
        for client in self.free:
            if client.transport is not None:
                client.transport.close()
