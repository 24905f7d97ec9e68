"""gRPC over HTTP/2: what stands in headers, trailers and before a message. Pure.

The protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from extproc.wire.calls import GrpcStatus

Headers = Iterable[tuple[bytes, bytes]]

#: Before each message: whether it is compressed, and its length.
PREFIX_BYTES = 5
#: A status's text is cut there: it stands in a header.
TEXT_CHARS_MAX = 1024
#: Nothing waits longer than a day, whatever a header says.
TIMEOUT_S_MAX = 86_400.0

RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK_TRAILERS = ((b"grpc-status", b"0"),)
OK_ALONE = (*RESPONSE, *OK_TRAILERS)
#: Who does not speak gRPC is answered in HTTP's own words (as the protocol's page asks).
NOT_GRPC = ((b":status", b"415"),)
NOT_POST = ((b":status", b"405"), (b"allow", b"POST"))

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def trailers(status: GrpcStatus, text: str) -> tuple[tuple[bytes, bytes], ...]:
    """How a call ended; the text is percent-encoded."""
    # encoded once: what is no ASCII, control characters and "%" itself
    said = quote(text[:TEXT_CHARS_MAX], safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode()
    return ((b"grpc-status", str(int(status)).encode()), (b"grpc-message", said))


def timeout_s(text: bytes) -> float | None:
    """The seconds of a `grpc-timeout`; None for what is none."""
    value, unit = text[:-1], text[-1:]
    if not (value.isdigit() and len(value) <= 8 and unit in _UNITS):
        return None
    return min(int(value) * _UNITS[unit], TIMEOUT_S_MAX)
