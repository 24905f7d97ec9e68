"""How the admin port answers: JSON, errors, bodies, and what browsers are told to hold back.

Owns the shapes that all routes share. An answer that grows with tenants or endpoints is written piece by
piece, so that neither building nor encoding it holds the loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from extproc.admin.guard import Denied

T = TypeVar("T")

#: Bytes gathered before they are written.
PIECE_BYTES = 64 * 1024
#: The largest body that is read.
BODY_BYTES_MAX = 64 * 1024

#: Everything that a page may do: its own scripts, styles and answers, nothing inline, nothing of others.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class BadRequestError(Exception):
    """The request cannot be read; the message says what to write."""


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A value as JSON; not for what grows with the fleet."""
    return encoded(msgspec.json.encode(value), status=status, headers=headers)


def encoded(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON that is written already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def error_answer(
    status: int, code: str, message: str, *, problems: tuple[str, ...] = (), retry_after_s: int | None = None
) -> web.Response:
    """`{"error": {"code", "message"}}`, with `problems` where there are several."""
    error: dict[str, Any] = {"code": code, "message": message}
    if problems:
        error["problems"] = list(problems)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="steersman"'
    return json_answer({"error": error}, status=status, headers=headers)


def denied(refusal: Denied) -> web.Response:
    """A refusal as an answer."""
    return error_answer(refusal.status, refusal.code, refusal.message, retry_after_s=refusal.retry_after_s)


async def streamed(request: web.Request, parts: AsyncIterator[bytes]) -> web.StreamResponse:
    """JSON in parts as they come."""
    answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    await answer.prepare(request)
    gathered = bytearray()
    async for part in parts:
        gathered += part
        if len(gathered) >= PIECE_BYTES:
            await answer.write(bytes(gathered))
            gathered.clear()
    await answer.write(bytes(gathered))
    await answer.write_eof()
    return answer


async def array(items: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """A JSON array, item by item."""
    before = b"["
    async for item in items:
        yield before + msgspec.json.encode(item)
        before = b","
    yield b"[]" if before == b"[" else b"]"


async def mapping(items: AsyncIterator[tuple[str, Any]]) -> AsyncIterator[bytes]:
    """A JSON object, member by member."""
    before = b"{"
    async for name, item in items:
        yield before + msgspec.json.encode(name) + b":" + msgspec.json.encode(item)
        before = b","
    yield b"{}" if before == b"{" else b"}"


async def body_of(request: web.Request, shape: type[T]) -> T:
    """The request's JSON. BadRequestError says what is wrong with it."""
    if request.content_type != "application/json":
        # No form and no plain link of another site can send this type unasked.
        raise BadRequestError("send the order as JSON, with content-type: application/json")
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=shape)
    except msgspec.MsgspecError as error:
        raise BadRequestError(f"the body is not what is wanted: {error}") from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None


def whole(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    """A whole number of the query, within its bounds. BadRequestError else."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 12 or not low <= int(text) <= high:
        raise BadRequestError(f"{name} is a whole number from {low} to {high}, not {text[:40]!r}")
    return int(text)
