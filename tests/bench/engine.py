"""Engines that cost nothing to ask: `python engine.py PORT…` answers at once, the same to everybody.

A body that begins with `{"stream": true` is answered with TOKENS events, each written by itself a moment
after the one before, as an engine's are; any other with one JSON object. In a process of its own, so that
what it costs is in nobody's figures.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

#: Events of a stream that hold a token; two follow, with the usage and the end.
TOKENS = 16
TOKEN_EVERY_S = 0.001
STREAM_BEGINS = b'{"stream": true'

ANSWER_BODY = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":1,"total_tokens":251}}'
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER_BODY),
    ANSWER_BODY,
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
)
_USAGE = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":16,"total_tokens":266}}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


#: What is written of a stream, one after the other.
_PIECES = [_HEAD + _chunk(_EVENT), *[_chunk(_EVENT)] * (TOKENS - 1), _chunk(_USAGE)]
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = cast(asyncio.Transport, transport), bytearray()
        self.wanted: int | None = None
        self.streams = False
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            if self.wanted is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                head = bytes(self.buffer[:end]).lower()
                length = head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
                self.wanted = end + 4 + int(length or 0)
                self.streams = False
            if len(self.buffer) < self.wanted:
                return
            body = self.buffer.find(b"\r\n\r\n") + 4
            self.streams = self.buffer[body : body + len(STREAM_BEGINS)] == STREAM_BEGINS
            del self.buffer[: self.wanted]
            self.wanted = None
            if self.streams:
                self._say(0)
            else:
                self.transport.write(_ANSWER)

    def _say(self, at: int) -> None:
        if self.transport.is_closing():
            return
        if at == len(_PIECES):
            self.transport.write(_END)
            return
        self.transport.write(_PIECES[at])
        self.loop.call_later(TOKEN_EVERY_S, self._say, at + 1)


async def serve(ports: list[int]) -> None:
    """Listen until killed."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", port) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
