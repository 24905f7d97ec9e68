"""Time-outs that count the asker's own time: where we were late ourselves, silence says nothing of the other.

A process that stalls (a busy machine, a paused one, a long turn of its event loop) finds all its time-outs
passed at once, with the answers lying unread in its sockets. So a time-out is counted in slices. One that
ended late is waited for again, up to a bound: a loop that is always late judges later, and still judges.
Owns that count, and the time-out for asyncio. Knows nothing of who is asked.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

#: A time-out's slices.
SLICES = 8
#: A slice that ended late by more than this share of itself is not counted …
LATE_SHARE = 0.5
#: … nor by less than this in seconds: timers are that late on a busy machine that answers all the same.
LATE_S_MIN = 0.1
#: Late slices that are waited for again; further ones count.
LATE_SLICES_MAX = 4 * SLICES


class OwnTime:
    """How much of a time-out is left. Pure: seconds are handed in, of any one clock."""

    __slots__ = ("_late", "_left", "_slice_s", "due_s")

    def __init__(self, timeout_s: float, *, now_s: float) -> None:
        """`timeout_s` above 0."""
        self._slice_s, self._left, self._late = timeout_s / SLICES, SLICES, 0
        #: When the slice ends: `spent` is to be asked then.
        self.due_s = now_s + self._slice_s

    @property
    def late(self) -> int:
        """Slices that ended late, 0 to LATE_SLICES_MAX."""
        return self._late

    def spent(self, *, now_s: float) -> bool:
        """Take the end of a slice; whether it was the last. Otherwise `due_s` is the next one's."""
        if now_s < self.due_s:
            return False
        late_s = now_s - self.due_s
        if late_s > max(LATE_S_MIN, LATE_SHARE * self._slice_s) and self._late < LATE_SLICES_MAX:
            self._late += 1
        else:
            self._left -= 1
        self.due_s = now_s + self._slice_s
        return self._left <= 0


class patient:  # noqa: N801 (used as asyncio.timeout is)
    """`asyncio.timeout(timeout_s)` of one's own time. Raises TimeoutError at the end, as that does."""

    __slots__ = ("_loop", "_own", "_timeout", "_timeout_s", "_timer")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def __aenter__(self) -> patient:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._own = OwnTime(self._timeout_s, now_s=self._loop.time())
        self._timer = self._loop.call_at(self._own.due_s, self._sliced)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _sliced(self) -> None:
        if self._own.spent(now_s=self._loop.time()):
            self._timeout.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_at(self._own.due_s, self._sliced)
