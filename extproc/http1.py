"""One HTTP/1.1 request on a connection of its own: for whoever wants a status, or a small answer.

Owns the bytes. No redirects and no proxies: what is asked is what was named. Not bounded in time: the
callers' budgets are. Who keeps connections open uses aiohttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ssl import SSLContext

#: Of an answer's first line.
LINE_BYTES_MAX = 4_096
_PIECE_BYTES = 16 * 1024


class NoHttpError(ConnectionError):
    """What came is no answer of HTTP/1."""


async def ask(
    method: str,
    host: str,
    port: int,
    path: str,
    *,
    headers: Mapping[str, str],
    body: bytes = b"",
    tls: SSLContext | None = None,
    server_name: str = "",
    answer_bytes_max: int = 0,
) -> tuple[int, bytes]:
    """The status, and so much of what follows the first line. Raises OSError where no HTTP answers.

    `server_name` is what the certificate must have, with `tls`; the host when empty.
    """
    sent = {**headers, "connection": "close"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    reader, writer = await asyncio.open_connection(
        host, port, ssl=tls, server_hostname=(server_name or host) if tls else None, limit=LINE_BYTES_MAX
    )
    try:
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await writer.drain()
        first = await reader.readline()
        rest = b""
        while len(rest) < answer_bytes_max and (piece := await reader.read(_PIECE_BYTES)):
            rest += piece
    except ValueError as error:
        raise NoHttpError("the answer is no HTTP") from error
    finally:
        writer.transport.abort()
    version, _, status = first.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise NoHttpError("the answer is no HTTP" if first else "closed without an answer")
    return int(status[:3]), rest
