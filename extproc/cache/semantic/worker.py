"""The process that embeds and finds: `main` is its end, `EmbeddingWorker` the service's.

Owns its start, its end and the wait for it. Nobody waits longer than a request may: what is late is not
answered, and a process that ended or hangs is begun again after a pause that doubles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import PriorityQueue
from typing import BinaryIO, Final

import msgspec

from extproc.cache.semantic.jobs import (
    FRAME_MAX,
    AddJob,
    CompareJob,
    DropJob,
    FindJob,
    LearnJob,
    ReadyReply,
    SemanticJob,
    SemanticReply,
    ToldJob,
)
from extproc.pipes import begun, ended, frame_of, framed, read_frame

log = logging.getLogger(__name__)

#: Jobs that are not answered yet; above it a question is a miss, and a check is not made.
PENDING_MAX: Final = 64
#: Bytes that the process has not read yet; above them nothing more is written.
UNREAD_MAX: Final = 4 * 1024 * 1024
#: After an end that was not asked for it is begun again after so long, twice as long each time.
AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 300.0
#: A job that takes so long: the process hangs. So does one that takes so long to load its model.
HANGS_S: Final = 30.0
LOADS_S: Final = 120.0
#: It gives way to whoever serves.
NICE: Final = 10
#: What is told of a job; None where nothing came of it.
Heard = Callable[[SemanticReply | None], None]


def main(stdin: BinaryIO, stdout: BinaryIO, model: str, tokenizer: str) -> None:
    """Answer jobs until nobody asks any more; whoever waits comes first."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    from extproc.cache.semantic.index import SemanticIndex
    from extproc.cache.semantic.model import SentenceModel

    jobs: PriorityQueue[tuple[int, int, SemanticJob | None]] = PriorityQueue()
    threading.Thread(target=_read_jobs, args=(stdin, jobs), daemon=True).start()
    embedding = SentenceModel(model, tokenizer)
    # The first run of a model takes longer than those after it.
    embedding.embed("ready")
    index = SemanticIndex(embedding.embed)
    _say(stdout, ReadyReply())
    while (job := jobs.get()[2]) is not None:
        reply: SemanticReply | None = None
        if isinstance(job, FindJob):
            if time.monotonic_ns() < job.until_ns:
                reply = index.find(job)
        elif isinstance(job, CompareJob):
            reply = index.check(job)
        elif isinstance(job, AddJob):
            index.add(job)
        elif isinstance(job, DropJob):
            index.drop(job)
        elif isinstance(job, LearnJob):
            index.learn(job)
        else:
            index.window(job)
        if reply is not None:
            _say(stdout, reply)


def _say(stdout: BinaryIO, reply: SemanticReply) -> None:
    stdout.write(framed(reply))
    stdout.flush()


def _read_jobs(stdin: BinaryIO, jobs: PriorityQueue[tuple[int, int, SemanticJob | None]]) -> None:
    """Questions first, the rest in its order; the end is the end of all."""
    decoder = msgspec.msgpack.Decoder(SemanticJob)
    number = 0
    while (frame := read_frame(stdin, most=FRAME_MAX)) is not None:
        number += 1
        job: SemanticJob = decoder.decode(frame)
        jobs.put((1 if isinstance(job, FindJob) else 2, number, job))
    jobs.put((0, 0, None))


class PendingJob(msgspec.Struct):
    """A job whose answer is awaited; `since` in seconds of the loop."""

    heard: Heard
    since: float
    timer: asyncio.TimerHandle | None = None


class EmbeddingWorker:
    """The service's end, within its event loop. `begun` is called whenever a new process, which knows
    nothing, is ready."""

    def __init__(self, *, model: str = "", tokenizer: str = "", command: tuple[str, ...] = ()) -> None:
        own = (sys.executable, "-m", "extproc.cache.semantic.worker", model, tokenizer)
        self._command = command or own
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        #: Its model is loaded: what is asked before would only be late.
        self._ready = False
        self._begun_at = 0.0
        self._pending: dict[int, PendingJob] = {}
        self._again = 0.0
        self._pause_s = AGAIN_S
        self._running = False
        self._stopped = False
        self._number = 0
        self._decoder: msgspec.msgpack.Decoder[SemanticReply] = msgspec.msgpack.Decoder(SemanticReply)
        self.begun: Callable[[], None] = lambda: None
        #: Jobs answered, late, and not taken; starts, and ends that nobody asked for.
        self.counts: Counter[str] = Counter()

    @property
    def up(self) -> bool:
        """Whether a process is there that answers."""
        return self._ready and self.pid > 0

    @property
    def pid(self) -> int:
        """Its process; 0 where there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    @property
    def full(self) -> bool:
        """Whether as much waits as may."""
        return len(self._pending) >= PENDING_MAX

    def number(self) -> int:
        """The next job's."""
        self._number += 1
        return self._number

    def find(self, job: FindJob, heard: Heard, *, budget_s: float) -> bool:
        """Ask; `heard` is called once, with None after `budget_s`. False where it cannot be asked now."""
        if not self._send(job):
            return False
        loop = asyncio.get_running_loop()
        timer = loop.call_later(budget_s, self._late, job.job)
        self._pending[job.job] = PendingJob(heard, loop.time(), timer)
        return True

    def check(self, job: CompareJob, heard: Heard) -> bool:
        """Have two answers compared. False where it cannot be done now."""
        if not self._send(job):
            return False
        self._pending[job.job] = PendingJob(heard, asyncio.get_running_loop().time())
        return True

    def tell(self, job: ToldJob) -> bool:
        """Have something kept or forgotten. False where it cannot be done now."""
        return self._send(job)

    def step(self) -> None:
        """Begin it where it is not there, and end it where it hangs."""
        now = asyncio.get_running_loop().time()
        if self.pid:
            loading = not self._ready and now - self._begun_at > LOADS_S
            if loading or any(now - each.since > HANGS_S for each in self._pending.values()):
                log.warning("semantic cache: the embedding process hangs; it is begun again")
                self._kill()
            return
        if not (self._running or self._stopped) and now >= self._again:
            self._running = True
            self._reader = asyncio.get_running_loop().create_task(self._run())

    def retire(self) -> None:
        """End the process for good; whoever waits is told."""
        self._stopped = True
        self._kill()

    async def stop(self) -> None:
        """The same, and wait for its end."""
        self.retire()
        if self._reader is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    def _send(self, job: SemanticJob) -> bool:
        process = self._process
        if not self.up or process is None or process.stdin is None:
            self.counts["away"] += 1
            return False
        body = framed(job)
        unread = process.stdin.transport.get_write_buffer_size()
        if unread + len(body) > UNREAD_MAX or len(body) > FRAME_MAX:
            self.counts["full"] += 1
            return False
        if isinstance(job, FindJob | CompareJob) and self.full:
            self.counts["full"] += 1
            return False
        process.stdin.write(body)
        return True

    def _late(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if pending is not None:
            self.counts["late"] += 1
            pending.heard(None)

    async def _run(self) -> None:
        """One process, from its start to its end; there is one such task at a time."""
        process: asyncio.subprocess.Process | None = None
        try:
            process = await begun(self._command)
            if not self._stopped:
                self._process, self._begun_at = process, asyncio.get_running_loop().time()
                self.counts["started"] += 1
                assert process.stdout is not None
                await self._listen(process.stdout)
        except (OSError, EOFError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            if not self._stopped:
                self.counts["ended"] += 1
                log.warning(
                    "semantic cache: the embedding process ended (%s); again in %.0f s",
                    error or type(error).__name__,
                    self._pause_s,
                )
        finally:
            self._process, self._ready = None, False
            if process is not None:
                await ended(process)
            self._again = asyncio.get_running_loop().time() + self._pause_s
            self._pause_s = min(2.0 * self._pause_s, AGAIN_MAX_S)
            pending, self._pending = self._pending, {}
            for each in pending.values():
                if each.timer is not None:
                    each.timer.cancel()
                each.heard(None)
            self._running = False

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        while True:
            reply = self._decoder.decode(await frame_of(stdout, most=FRAME_MAX))
            if isinstance(reply, ReadyReply):
                self._ready = True
                self.begun()
                continue
            self._pause_s = AGAIN_S
            pending = self._pending.pop(reply.job, None)
            if pending is None:
                continue
            if pending.timer is not None:
                pending.timer.cancel()
            self.counts["answered"] += 1
            pending.heard(reply)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer, *[*sys.argv[1:3], "", ""][:2])
