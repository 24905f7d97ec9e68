"""The process that embeds: real, with the real model; killed, hung, late and full."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from extproc.cache.semantic import worker as module
from extproc.cache.semantic.jobs import (
    AddJob,
    CheckedEntry,
    CompareJob,
    DropJob,
    FindJob,
    FoundEntry,
    SemanticReply,
)
from extproc.cache.semantic.worker import PENDING_MAX, EmbeddingWorker
from extproc.extras import missing

#: Deadlines for failures alone.
DEADLINE_S = 120.0

needs_model = pytest.mark.skipif(missing("semantic"), reason="the extra `semantic` is not installed")


def find(worker: EmbeddingWorker, text: str, *, scope: str = "tenant:a", frame: bytes = b"f") -> FindJob:
    return FindJob(
        job=worker.number(),
        scope=scope,
        frame=frame,
        text=text,
        least=0.7,
        bound=0.005,
        confidence=0.95,
        until_ns=time.monotonic_ns() + int(DEADLINE_S * 1e9),
    )


async def until(what: str, holds: Callable[[], bool], worker: EmbeddingWorker) -> None:
    """Step the worker until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            worker.step()
            await asyncio.sleep(0.01)
    assert holds(), what


async def found(
    worker: EmbeddingWorker, job: FindJob | CompareJob, *, budget_s: float = DEADLINE_S
) -> object:
    told: asyncio.Future[SemanticReply | None] = asyncio.get_running_loop().create_future()
    if isinstance(job, FindJob):
        assert worker.find(job, told.set_result, budget_s=budget_s)
    else:
        assert worker.check(job, told.set_result)
    return await told


async def answered(worker: EmbeddingWorker, text: str, entry: int) -> FoundEntry:
    """Ask until this entry is found (0: none): a question overtakes what is to be kept or forgotten."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            reply = await found(worker, find(worker, text))
            assert isinstance(reply, FoundEntry)
            if reply.entry == entry:
                return reply


def played(run: Callable[[EmbeddingWorker], Awaitable[None]], worker: EmbeddingWorker | None = None) -> None:
    """Run against a process that is up, and end it whatever happens."""

    async def main() -> None:
        it = worker or EmbeddingWorker()
        try:
            await until("the process is up", lambda: it.up, it)
            await run(it)
        finally:
            await it.stop()
        assert not it.up

    asyncio.run(main())


@needs_model
def test_it_finds_learns_and_begins_anew() -> None:
    """A paraphrase is found, a look-alike is not, nor in other scopes; after kill -9 it knows nothing."""

    async def run(worker: EmbeddingWorker) -> None:
        assert worker.tell(AddJob(scope="tenant:a", frame=b"f", entry=1, text="Convert 5 miles to km"))
        near = await answered(worker, "Please convert 5 miles into km", 1)
        assert near.similarity > 0.8
        assert not near.within
        other = await found(worker, find(worker, "Convert 5 km to miles"))
        assert isinstance(other, FoundEntry)
        assert other.entry == 0
        assert sum(other.refused.values()) == 1
        for scope, frame in (("tenant:b", b"f"), ("tenant:a", b"g")):
            nobody = await found(worker, find(worker, "Convert 5 miles to km", scope=scope, frame=frame))
            assert nobody == FoundEntry(job=nobody.job)  # type: ignore[attr-defined]
        long = await found(worker, find(worker, "why is it so " * 90))
        assert isinstance(long, FoundEntry)
        assert long.long
        check = CompareJob(
            job=worker.number(),
            scope="tenant:a",
            entry=1,
            similarity=0.9,
            would=True,
            kept="It is 8.05 km.",
            come="That is 8.05 km.",
            alike=0.9,
        )
        checked = await found(worker, check)
        assert checked == CheckedEntry(job=check.job, same=True)
        os.kill(worker.pid, signal.SIGKILL)
        await until("its end is seen", lambda: worker.counts["ended"] == 1, worker)
        await until("it is there again", lambda: worker.counts["started"] == 2 and worker.up, worker)
        gone = await found(worker, find(worker, "Convert 5 miles to km"))
        assert isinstance(gone, FoundEntry)
        assert gone.entry == 0

    played(run)


@needs_model
def test_what_is_dropped_is_not_found() -> None:
    """A question that was forgotten is nobody's candidate, and its scope is gone with the last one."""

    async def run(worker: EmbeddingWorker) -> None:
        worker.tell(AddJob(scope="tenant:a", frame=b"f", entry=1, text="Who wrote Hamlet?"))
        await answered(worker, "Who wrote Hamlet?", 1)
        worker.tell(DropJob(scope="tenant:a", entries=[1]))
        await answered(worker, "Who wrote Hamlet?", 0)

    played(run)


#: Says that it is ready, and nothing more.
SILENT = (
    sys.executable,
    "-c",
    (
        "import sys; from extproc.cache.semantic.jobs import ReadyReply; from extproc.pipes import framed;"
        "sys.stdout.buffer.write(framed(ReadyReply())); sys.stdout.flush(); sys.stdin.read()"
    ),
)
#: Never ready.
LOADING = (sys.executable, "-c", "import sys; sys.stdin.read()")


def test_nothing_is_asked_of_a_process_that_loads_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question is a miss at once, not after its budget; what loads for ever is begun again."""

    async def run() -> None:
        worker = EmbeddingWorker(command=LOADING)
        try:
            await until("the process is there", lambda: worker.pid > 0, worker)
            for _ in range(50):
                worker.step()
            assert not worker.up
            assert not worker.find(find(worker, "x"), lambda _: None, budget_s=DEADLINE_S)
            assert worker.counts == {"started": 1, "away": 1}
            monkeypatch.setattr(module, "LOADS_S", 0.0)
            await until("it is begun again", lambda: worker.counts["started"] >= 2, worker)
        finally:
            await worker.stop()

    asyncio.run(run())


def test_whoever_waits_hears_nothing_after_its_budget() -> None:
    """A process that says nothing costs a request its budget and no more; only so many wait at once."""

    async def run(worker: EmbeddingWorker) -> None:
        assert await found(worker, find(worker, "hello"), budget_s=0.001) is None
        assert worker.counts["late"] == 1
        told: list[object] = []
        for _ in range(PENDING_MAX):
            assert worker.find(find(worker, "hello"), told.append, budget_s=DEADLINE_S)
        assert not worker.find(find(worker, "hello"), told.append, budget_s=DEADLINE_S)
        os.kill(worker.pid, signal.SIGKILL)
        await until("all are told", lambda: len(told) == PENDING_MAX, worker)
        assert told == [None] * PENDING_MAX

    played(run, EmbeddingWorker(command=SILENT))


def test_a_process_that_hangs_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that is never answered ends the process; who waits for it is told."""
    monkeypatch.setattr(module, "HANGS_S", 0.0)

    async def run(worker: EmbeddingWorker) -> None:
        told: list[object] = []
        check = CompareJob(
            job=1, scope="s", entry=1, similarity=0.9, would=False, kept="a", come="b", alike=0.9
        )
        assert worker.check(check, told.append)
        await until("it is begun again", lambda: worker.counts["started"] >= 2, worker)
        assert told == [None]

    played(run, EmbeddingWorker(command=SILENT))


def test_a_process_that_cannot_begin_is_left_alone_longer_each_time() -> None:
    """What ends at once is not begun again at once; nothing waits for it, and nothing is asked of it."""

    async def run() -> None:
        worker = EmbeddingWorker(command=(sys.executable, "-c", "raise SystemExit(3)"))
        await until("it has ended", lambda: worker.counts["ended"] == 1, worker)
        for _ in range(50):
            worker.step()
        await asyncio.sleep(0)
        assert worker.counts["started"] == 1
        assert not worker.find(find(worker, "x"), lambda _: None, budget_s=1.0)
        assert worker.counts["away"] == 1
        await worker.stop()

    asyncio.run(run())
