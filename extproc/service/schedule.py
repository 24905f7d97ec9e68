"""When the service does what time alone brings: the scheduler's own schedule, and the service's beside it.

Owns the loops. A fault of one piece of work is said and counted; the others, and the next time, go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from extproc.core.scheduler import ROUND_NS, Scheduler

Sleep = Callable[[float], Awaitable[object]]
#: uvloop counts whole milliseconds from where its turn began, and so wakes up to that much too early: for
#: nothing, since what is due is not due yet.
TICK_S = 0.001


async def _rest(seconds: float) -> None:
    await asyncio.sleep(seconds + TICK_S if seconds else 0)


def _unheard(_seconds: float) -> None:
    """Nobody asks how late it woke."""


class Schedule:
    """Steps a scheduler whenever it says; `failed` hears of exceptions, with what was being done."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        failed: Callable[[Exception, str], None],
        sleep: Sleep = _rest,
    ) -> None:
        self._scheduler, self._clock, self._failed, self._sleep = scheduler, clock, failed, sleep
        scheduler.failed = failed
        #: Hears by how many seconds each step came too late: the event loop's lag.
        self.late: Callable[[float], None] = _unheard
        self._due_ns = 0

    async def steps(self, *rounds: tuple[str, Callable[[int], object]]) -> None:
        """Step the scheduler until cancelled; after each of its rounds do what takes `now_ns` and no time."""
        wake_ns = self._clock()
        while True:
            now_ns = self._clock()
            # Late here, nobody else's silence is a sign: what they said lies unread.
            self._scheduler.fleet.absence.away(since_ns=wake_ns, now_ns=now_ns)
            wake_ns = self._scheduler.step(now_ns=now_ns)
            if now_ns >= self._due_ns:
                self._due_ns = now_ns + ROUND_NS
                for what, work in rounds:
                    try:
                        work(now_ns)
                    except Exception as error:  # noqa: BLE001 (without this task nothing would expire again)
                        self._failed(error, what)
            await self._sleep(max(0, wake_ns - self._clock()) / 1e9)
            self.late((self._clock() - wake_ns) / 1e9)

    async def beside(self, *works: tuple[str, Callable[[], Coroutine[object, object, object]]]) -> None:
        """As often, until cancelled: what waits for threads or the disk, one after the other."""
        while True:
            await self._sleep(ROUND_NS / 1e9)
            for what, work in works:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 (the next time it may go well)
                    self._failed(error, what)
