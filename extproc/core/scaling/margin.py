"""How far above the target is aimed, learnt from what fell short of it.

Owns the margin: which share of what a replica was seen to bear is left free. The record of ends says what a
replica bears while replicas and load agree; steps that nobody foresaw, replicas that still load and forecasts
that were too low cost attainment beside it. So the share that attained is held against the target, and the
margin is the integral of what is missing: it comes to rest where just the target attains, over all requests.
It is slow against a load time, so that no burst moves it far.
"""

from __future__ import annotations

from math import isfinite
from typing import Final

HOUR_NS: Final = 3_600 * 1_000_000_000
#: Ends are gathered for so long, and for so many requests at the least, before the margin moves.
WINDOW_NS: Final = HOUR_NS // 12
WINDOW_REQUESTS: Final = 30.0
#: An hour in which a share s too few attain makes the margin larger by so many times s. A tenth of a
#: replica's load is about .015 of attainment near its edge: half of a lasting shortfall is gone in an hour.
PER_HOUR: Final = 6.0
#: One window moves it by no more.
MOVED_MAX: Final = 0.02
#: A window counts by its requests, since all of them are promised: up to so many usual ones.
WEIGHT_MAX: Final = 4.0
#: How fast the usual number of a window's requests follows.
FOLLOWED: Final = 0.05


class AttainmentMargin:
    """One pool's. `share` (0..1): so much less than a replica was seen to bear is asked of it."""

    def __init__(self) -> None:
        self.share = 0.0
        self._began_ns: int | None = None
        self._judged = self._attained = 0.0
        self._usual = 0.0

    def saw(self, now_ns: int, *, attained: float, judged: float, target: float, most: float) -> None:
        """So many requests ended, of which so many attained, where a share `target` is to; the margin stays
        within 0..`most`. What cannot be is left out."""
        if not (isfinite(judged) and 0.0 <= attained <= judged):
            return
        if self._began_ns is None or now_ns < self._began_ns:
            self._began_ns = now_ns
        self._judged += judged
        self._attained += attained
        self.share = min(self.share, most)
        over_ns = now_ns - self._began_ns
        if over_ns < WINDOW_NS or self._judged < WINDOW_REQUESTS:
            return
        missing = target - self._attained / self._judged
        self._usual += (self._judged - self._usual) * (FOLLOWED if self._usual else 1.0)
        weight = min(WEIGHT_MAX, self._judged / self._usual)
        # A quiet pool's window is long; it tells no more than its requests do.
        hours = min(over_ns, 2 * WINDOW_NS) / HOUR_NS
        moved = min(max(PER_HOUR * missing * weight * hours, -MOVED_MAX), MOVED_MAX)
        self.share = min(max(self.share + moved, 0.0), most)
        self.pause()

    def pause(self) -> None:
        """What ended says nothing now: something else than the need decides how many replicas there are."""
        self._began_ns = None
        self._judged = self._attained = 0.0

    def recall(self, share: float) -> None:
        """What a file says."""
        if isfinite(share) and 0.0 <= share < 1.0:
            self.share = share
