"""Messages between the service and a process of its own: msgpack, each with four bytes of length before it.

Owns the framing on pipes and how such a process is ended. What is asked and answered is its owner's.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import BinaryIO

import msgspec


def framed(message: msgspec.Struct) -> bytes:
    """A message with its length before it."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def read_frame(stream: BinaryIO, *, most: int) -> bytes | None:
    """The next frame's message; None at the end, or where it has more than so many bytes."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "big")
    body = stream.read(length) if length <= most else b""
    return body if len(body) == length else None


async def frame_of(stream: asyncio.StreamReader, *, most: int) -> bytes:
    """The same on a loop. Raises EOFError where it is too long or cut (IncompleteReadError is one)."""
    length = int.from_bytes(await stream.readexactly(4), "big")
    if length > most:
        raise EOFError(f"a frame of {length} bytes")
    return await stream.readexactly(length)


async def begun(command: tuple[str, ...]) -> asyncio.subprocess.Process:
    """Start one. Raises OSError."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A terminal's Ctrl-C is for the service: it ends this one itself.
        start_new_session=True,
    )


async def ended(process: asyncio.subprocess.Process) -> None:
    """End one; its pipes are closed while there is a loop to do it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
