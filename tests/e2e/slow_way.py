"""A way between two sites: a TCP proxy that takes its time, stalls, and is cut in mid-stream or for good."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

from gateway import free_ports

from extproc.addresses import split

PIECE_BYTES = 64 * 1024


class SlowWay:
    """Listens on `address` and passes all on to `to`, each direction `delay_s` late."""

    def __init__(self, to: str, *, delay_s: float = 0.0) -> None:
        self.to, self.delay_s = split(to), delay_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="way", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        #: No outgoing connection may take it while the way is cut.
        (self.port,) = free_ports(1)

    @property
    def address(self) -> str:
        """Where it is entered."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> SlowWay:
        self._thread.start()
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Reset what is open, and refuse what comes."""
        self._await(self._cut(listening=False))

    def reset(self) -> None:
        """Reset what is open; what comes goes through."""
        self._await(self._cut(listening=True))

    def mend(self) -> None:
        """Let through what comes, at the same place as before."""
        self._await(self._listen())

    def stall(self) -> None:
        """Nothing arrives any more, and nothing breaks: packets are on their way."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        """What has waited arrives, and what comes."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)

    async def _cut(self, *, listening: bool) -> None:
        if self._server is not None and not listening:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(there_writer)
        pair = [self._one_way(reader, there_writer), self._one_way(there_reader, writer)]
        tasks = [self._loop.create_task(each) for each in pair]
        self._tasks.update(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        for each in (writer, there_writer):
            each.transport.abort()
            self._open.discard(each)

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = self._loop.create_task(self._send(due, writer))
        try:
            while True:
                piece = await reader.read(PIECE_BYTES)
                due.put_nowait((self._loop.time() + self.delay_s, piece))
                if not piece:
                    break
            await sender
        finally:
            sender.cancel()

    async def _send(self, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            at, piece = await due.get()
            await asyncio.sleep(max(0.0, at - self._loop.time()))
            await self._flows.wait()
            with contextlib.suppress(OSError):
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()
