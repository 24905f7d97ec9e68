"""When the service does what time alone brings: the scheduler's own schedule, and the service's beside it.

Owns the loops. A fault of one piece of work is said and counted; the others, and the next time, go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from extproc.core.scheduler import ROUND_NS, STEP_NS, Scheduler

Sleep = Callable[[float], Awaitable[object]]
#: uvloop counts whole milliseconds from where its turn began, and so wakes up to that much too early: for
#: nothing, since what is due is not due yet.
TICK_S = 0.001


async def _rest(seconds: float) -> None:
    await asyncio.sleep(seconds + TICK_S if seconds else 0)


class Alarm:
    """A sleep on the event loop that can be cut short; one sleeper at a time."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._rung: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until `sooner` says."""
        if not seconds:
            await asyncio.sleep(0)
            return
        self._rung = asyncio.get_running_loop().create_future()
        self.sooner(seconds)
        try:
            await self._rung
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._rung = None

    def sooner(self, seconds: float) -> None:
        """Who sleeps wakes in so many seconds instead; nothing where nobody does."""
        if self._rung is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds + TICK_S, self._ring)

    def _ring(self) -> None:
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)


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
        sleep: Sleep | None = None,
    ) -> None:
        self._scheduler, self._clock, self._failed = scheduler, clock, failed
        self._alarm = Alarm()
        self._sleep = sleep or _rest
        self._until_step = sleep or self._alarm.sleep
        scheduler.failed = failed
        scheduler.next_step.sooner = self._sooner
        #: Hears by how many seconds each step came too late, or held others up: the event loop's lag.
        self.late: Callable[[float], None] = _unheard
        self._due_ns = 0

    async def steps(self, *rounds: tuple[str, Callable[[int], object]]) -> None:
        """Step the scheduler until cancelled; after each of its rounds do what takes `now_ns` and no time."""
        wake_ns, next_step = self._clock(), self._scheduler.next_step
        while True:
            now_ns = self._clock()
            # Late here, nobody else's silence is a sign: what they said lies unread.
            self._scheduler.fleet.absence.away(since_ns=wake_ns, now_ns=now_ns)
            self._scheduler.step(now_ns=now_ns)
            if now_ns >= self._due_ns:
                self._due_ns = now_ns + ROUND_NS
                for what, work in rounds:
                    try:
                        work(now_ns)
                    except Exception as error:  # noqa: BLE001 (without this task nothing would expire again)
                        self._failed(error, what)
            done_ns = self._clock()
            await self._until_step(max(0, next_step.due_ns - done_ns) / 1e9)
            wake_ns = next_step.due_ns
            self.late(max(self._clock() - wake_ns, done_ns - now_ns - STEP_NS) / 1e9)

    def _sooner(self, due_ns: int) -> None:
        self._alarm.sooner(max(0, due_ns - self._clock()) / 1e9)

    async def beside(self, *works: tuple[str, Callable[[], Coroutine[object, object, object]]]) -> None:
        """As often, until cancelled: what waits for threads or the disk, one after the other."""
        while True:
            await self._sleep(ROUND_NS / 1e9)
            for what, work in works:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 (the next time it may go well)
                    self._failed(error, what)
