"""What the terminal and the system ask of a supervisor: stop, stop now, reload."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Signals:
    """SIGINT and SIGTERM ask to stop, a second one forces it, a third ends this process as it stands.

    After a third the kernel ends the children (leash.py). A context manager.

    SIGHUP reloads, or asks to stop as well where there is nothing to reload (a closed terminal).
    """

    def __init__(self, *, force: Callable[[], None], reload: Callable[[], object] | None = None) -> None:
        self.stop = asyncio.Event()
        self._force = force
        self._reload = reload

    def __enter__(self) -> Signals:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._asked)
        loop.add_signal_handler(signal.SIGHUP, self._reload or self.stop.set)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(signum)

    def _asked(self) -> None:
        if self.stop.is_set():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)
            self._force()
        self.stop.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result, or None when a stop came first (the work is then cancelled)."""
        task = asyncio.create_task(work)
        await first_of(task, self.stop.wait())
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None


async def first_of(*works: Awaitable[Any]) -> None:
    """Return when one of them is done, or raise what it raised; the others are cancelled.

    What was a task already stays the caller's: it is neither cancelled nor raised from.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    own = [task for task, work in zip(tasks, works, strict=True) if task is not work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
    for task in own:
        if task in done:
            task.result()
