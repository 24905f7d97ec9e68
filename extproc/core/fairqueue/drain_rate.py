"""How fast a pool's queue drains, and so when it is worth coming back.

Owns a ratio with forgetting: dispatches over the time during which something was held. A pool that
nobody waits for says nothing of its speed, so idle time does not count; a stall does.
"""

from __future__ import annotations

from math import ceil

#: Dispatches past which old ones fade, and below which there is no figure.
MEMORY, KNOWN_MIN = 256.0, 4.0
#: The longest that a client is told to stay away.
RETRY_AFTER_MAX_S = 60


class DrainRate:
    """The drain of one pool's queue."""

    __slots__ = ("_busy_ns", "_done", "_since_ns")

    def __init__(self) -> None:
        self._done = 0.0
        self._busy_ns = 0.0
        self._since_ns = 0

    def began(self, now_ns: int) -> None:
        """Something is held where nothing was."""
        self._since_ns = now_ns

    def dispatched(self, now_ns: int) -> None:
        """One of the held was dispatched."""
        self._busy_ns += max(0, now_ns - self._since_ns)
        self._since_ns = now_ns
        self._done += 1.0
        if self._done > MEMORY:
            self._done /= 2.0
            self._busy_ns /= 2.0

    def wait_s(self, ahead: float, *, now_ns: int, held: bool) -> float | None:
        """Seconds until so many have been dispatched; None while too few were to know."""
        if self._done < KNOWN_MIN:
            return None
        busy_ns = self._busy_ns + (max(0, now_ns - self._since_ns) if held else 0)
        return ahead * busy_ns / self._done / 1e9

    def guess_s(self, least_s: float, *, now_ns: int, held: bool) -> float:
        """Seconds a dispatch while too few were to know: `least_s`, and no less than what was seen of one."""
        busy_ns = self._busy_ns + (max(0, now_ns - self._since_ns) if held else 0)
        return max(least_s, busy_ns / (self._done + 1.0) / 1e9)


def retry_after_s(wait_s: float) -> int:
    """Whole seconds, rounded up, 1 to RETRY_AFTER_MAX_S."""
    return max(1, min(RETRY_AFTER_MAX_S, ceil(wait_s)))
