"""One gRPC call on a connection of its own, without a gRPC library: for a supervisor that asks once a second.

grpc.aio costs a process 10 MB, and threads of its own that poll. What is asked here is asked of a service
of ours, on this machine. Owns HTTP/2's bytes (RFC 9113) as far as one unary call needs them: what is sent is
literal (RFC 7541, 6.2.2), and of an answer the message is read, its headers not. Who needs a call's status or
TLS takes grpc. Not bounded in time: the callers' budgets are.
"""

from __future__ import annotations

import asyncio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK, _PADDED = 1, 4, 1, 8
_WINDOW_MAX = 2**31 - 1
#: A frame's payload without a word of ours about larger ones.
FRAME_BYTES_MAX = 16_384
_STREAM = 1


class NoGrpcError(ConnectionError):
    """What answers speaks no HTTP/2, or breaks off."""


class NoMessageError(Exception):
    """The call was answered, and without a message: whoever it is does not do this."""


async def call(target: str, path: str, message: bytes = b"", *, answer_bytes_max: int) -> bytes:
    """The answer's message. `target` is `ip:port`, as `[ip]:port` too, or `unix:/path`.

    Raises OSError where no gRPC answers, NoMessageError, and ValueError above `answer_bytes_max`.
    """
    if target.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(target.removeprefix("unix:"))
    else:
        host, _, port = target.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(_request(path, message))
        return await _answer(reader, writer, answer_bytes_max)
    except asyncio.IncompleteReadError as error:
        raise NoGrpcError("closed without an answer") from error
    finally:
        writer.transport.abort()


def _request(path: str, message: bytes) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    assert len(block) <= FRAME_BYTES_MAX
    assert len(body) <= FRAME_BYTES_MAX, "a question is short"
    # No pushes, and nothing is held back for want of a window: the answer's bound is `answer_bytes_max`.
    settings = b"\x00\x02" + (0).to_bytes(4, "big") + b"\x00\x04" + _WINDOW_MAX.to_bytes(4, "big")
    return (
        PREFACE
        + _frame(_SETTINGS, 0, 0, settings)
        + _frame(_WINDOW, 0, 0, (_WINDOW_MAX - 65_535).to_bytes(4, "big"))
        + _frame(_HEADERS, _END_HEADERS, _STREAM, block)
        + _frame(_DATA, _END_STREAM, _STREAM, body)
    )


def _text(text: str) -> bytes:
    raw = text.encode("latin-1")
    if len(raw) < 127:  # a whole prefix of seven bits would say that more follows
        return bytes([len(raw)]) + raw
    rest, digits = len(raw) - 127, b""
    while rest >= 128:
        digits, rest = digits + bytes([rest % 128 + 128]), rest // 128
    return b"\x7f" + digits + bytes([rest]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_max: int) -> bytes:
    body, begun = bytearray(), False
    while True:
        head = await reader.readexactly(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        if length > FRAME_BYTES_MAX or (not begun and kind != _SETTINGS):
            raise NoGrpcError("the answer is no HTTP/2")
        begun = True
        payload = await reader.readexactly(length)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            raise NoGrpcError("the connection is being closed")
        elif kind == _DATA:
            body += payload[1 : length - payload[0]] if flags & _PADDED and payload else payload
            if len(body) > bytes_max + 5:
                raise ValueError(f"an answer of more than {bytes_max} bytes")
        if (kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RESET:
            break
    if len(body) < 5:
        raise NoMessageError
    size = int.from_bytes(body[1:5], "big")
    if body[0] or len(body) < 5 + size:
        raise NoGrpcError("the message is cut or compressed")
    return bytes(body[5 : 5 + size])
