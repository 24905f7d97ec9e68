"""Hears one engine's KV events over ZeroMQ: the thin shell around kv_book.py. Needs the extra `kv-events`.

SUB of three frames: topic, sequence (8 bytes, big-endian), batch. Numbers that are missing are asked of the
replay socket (ROUTER there, DEALER here: an empty frame and the first number wanted; batches come until the
number −1).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from extproc.extras import need
from steersman_agent.config import KvEventsSettings
from steersman_agent.kv_book import KvBook

log = logging.getLogger(__name__)

#: Batches that wait here unread; ZeroMQ drops what comes beyond, which shows as a gap.
WAITING_MAX: Final = 10_000
#: A message above this closes its connection.
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
#: A replay is given up after so long without a batch, and after so many (the engines keep 10,000).
REPLAY_S: Final = 2.0
REPLAY_BATCHES_MAX: Final = 100_000
#: Batches taken in one go before others have their turn.
BURST: Final = 32
#: The number that ends a replay.
_END: Final = b"\xff" * 8


class KvListener:
    """Listens to one rank's publisher from `run`'s task; `changed` is called after each burst."""

    def __init__(self, settings: KvEventsSettings, rank: int, *, changed: Callable[[], None]) -> None:
        self.book = KvBook()
        self._endpoint = settings.at(settings.endpoint, rank)
        self._replay = settings.at(settings.replay, rank) if settings.replay is not None else None
        self._topic = settings.topic.encode()
        self._changed = changed
        self._gaps_told = 0

    async def run(self) -> None:
        """Until cancelled."""
        need("kv-events", by="kv_events in agent.yaml", instead="leave it out")
        import zmq
        import zmq.asyncio

        context = zmq.asyncio.Context()
        socket = context.socket(zmq.SUB)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, WAITING_MAX)
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            socket.setsockopt(zmq.SUBSCRIBE, self._topic)
            socket.connect(self._endpoint)
            taken = 0
            while True:
                frames = await socket.recv_multipart()
                await self._take(context, frames)
                taken += 1
                if taken % BURST == 0 or not await socket.poll(0):
                    self._changed()
                    await asyncio.sleep(0)
        finally:
            socket.close(linger=0)
            context.destroy(linger=0)

    async def _take(self, context: Any, frames: list[bytes]) -> None:
        if len(frames) != 3 or len(frames[1]) != 8:
            return
        sequence, book = int.from_bytes(frames[1], "big"), self.book
        if sequence > book.expected and self._replay is not None:
            await self._ask(context, book.expected, sequence)
        book.take(sequence, frames[2], time.monotonic())
        if book.gaps > self._gaps_told:
            self._gaps_told = book.gaps
            log.warning(
                "%s: KV events before number %d are lost; what it holds is not known",
                self._endpoint,
                sequence,
            )

    async def _ask(self, context: Any, first: int, before: int) -> None:
        """Take what the publisher still has of the numbers from `first` to `before`."""
        import zmq

        self.book.replayed()
        socket = context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            socket.connect(self._replay)
            await socket.send_multipart((b"", first.to_bytes(8, "big")))
            for count in range(REPLAY_BATCHES_MAX):
                async with asyncio.timeout(REPLAY_S):
                    frames = await socket.recv_multipart()
                # vLLM 0.32 puts the topic before the number; SGLang and older vLLM do not.
                if len(frames) not in (3, 4) or frames[-2] == _END:
                    return
                sequence = int.from_bytes(frames[-2], "big")
                if sequence < before:
                    self.book.take(sequence, frames[-1], time.monotonic())
                if count % BURST == 0:
                    await asyncio.sleep(0)
        except TimeoutError:
            log.debug("%s: no replay within %g s", self._replay, REPLAY_S)
        finally:
            socket.close(linger=0)
