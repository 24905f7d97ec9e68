"""grpc_call.py against grpc.aio's server, and against what is no gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.supervise.grpc_call import FRAME_BYTES_MAX, NoGrpcError, NoMessageError, call

BOUND = 1024 * 1024


class Methods(grpc.GenericRpcHandler):
    """Answers what it is told to."""

    def __init__(self, answer: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
        self.answer = answer

    def service(self, details: Any) -> Any:
        """One method, of any message."""
        handler = grpc.unary_unary_rpc_method_handler(self.answer)
        return handler if details.method == "/a.Service/Method" else None


def against(
    tmp_path: Path, answer: Callable[[bytes, Any], Awaitable[bytes]], asked: Callable[[str], Awaitable[None]]
) -> None:
    """A server on a unix socket and on a port, each asked."""

    async def main() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Methods(answer),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.add_insecure_port(f"unix:{tmp_path}/sock")
        await server.start()
        for target in (f"127.0.0.1:{port}", f"unix:{tmp_path}/sock"):
            await asked(target)
        await server.stop(0)

    asyncio.run(main())


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 10_000])
@pytest.mark.parametrize("times", [1, 60])
def test_a_message_comes_back_whole(tmp_path: Path, length: int, times: int) -> None:
    """Empty, short, and of many frames."""

    async def answer(message: bytes, _: Any) -> bytes:
        return message * times

    async def asked(target: str) -> None:
        sent = b"m" * length
        assert await call(target, "/a.Service/Method", sent, answer_bytes_max=BOUND) == sent * times

    against(tmp_path, answer, asked)


def test_what_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Its bound is the caller's; at the bound it comes."""

    async def answer(_: bytes, __: Any) -> bytes:
        return b"x" * 100_000

    async def asked(target: str) -> None:
        assert len(await call(target, "/a.Service/Method", answer_bytes_max=100_000)) == 100_000
        with pytest.raises(ValueError, match="99999 bytes"):
            await call(target, "/a.Service/Method", answer_bytes_max=99_999)

    against(tmp_path, answer, asked)


@pytest.mark.parametrize("path", ["/a.Service/Method", "/a.Service/Other", "/" + "x" * 300])
def test_an_error_is_an_answer_without_a_message(tmp_path: Path, path: str) -> None:
    """A refusal, and a method that is not there, whatever its name's length."""

    async def answer(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no")
        return b""

    async def asked(target: str) -> None:
        with pytest.raises(NoMessageError):
            await call(target, path, answer_bytes_max=BOUND)

    against(tmp_path, answer, asked)


def _frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


SETTINGS, SETTINGS_ACK = _frame(4, 0, b"", 0), _frame(4, 1, b"", 0)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def asked_of(serve: Serve) -> bytes:
    """The answer of one connection, which is closed when `serve` has ended."""
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            ended.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await call(f"127.0.0.1:{port}", "/a.Service/Method", answer_bytes_max=BOUND)
    finally:
        await ended.wait()
        server.close()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", NoGrpcError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NoGrpcError),
        (SETTINGS, NoGrpcError),
        (SETTINGS + b"\x00", NoGrpcError),
        (SETTINGS + _frame(7, 0, bytes(8), 0), NoGrpcError),
        (SETTINGS + _frame(3, 0, bytes(4)), NoMessageError),
        (SETTINGS + _frame(0, 1, b"\0\0\0\0\x05abc"), NoGrpcError),
        (SETTINGS + _frame(0, 1, b"\1\0\0\0\x03abc"), NoGrpcError),
        (SETTINGS + (FRAME_BYTES_MAX + 1).to_bytes(3, "big") + bytes(6), NoGrpcError),
    ],
    ids=["closed", "http1", "silent", "cut", "goaway", "reset", "short", "compressed", "frame"],
)
def test_what_is_no_answer_is_said(said: bytes, error: type[Exception]) -> None:
    """Nothing but the errors that are promised, and no waiting for more."""
    assert issubclass(NoGrpcError, OSError)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(said)

    with pytest.raises(error):
        asyncio.run(asked_of(serve))


def test_frames_of_the_connection_are_borne() -> None:
    """Settings and pings are acknowledged, windows and padding are no message."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65_536))
        writer.write(SETTINGS + _frame(4, 1, b"", 0) + _frame(6, 0, b"12345678", 0))
        writer.write(_frame(8, 0, bytes(4), 0) + _frame(1, 4, b"\x88"))
        writer.write(_frame(0, 8, b"\x02\0\0\0\0\x03ab\0\0") + _frame(0, 0, b"c"))
        # The end comes when the settings and the ping were acknowledged.
        while _frame(6, 1, b"12345678", 0) not in heard:
            heard.extend(await reader.readexactly(1))
        writer.write(_frame(1, 5, b"\x88"))

    assert asyncio.run(asked_of(serve)) == b"abc"
    assert heard.endswith(SETTINGS_ACK + _frame(6, 1, b"12345678", 0))
