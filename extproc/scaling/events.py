"""Known events: when each begins and ends, and what a pool has at the least while it lasts.

Owns the reading of `scaling.schedule`. A step takes microseconds but where a window is over and the next one
is looked for (below a millisecond; a cron line that comes once in four years, tens of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from extproc.config.scaling import ScheduledScaling

#: An event that never comes again (29 February of a year that is over) is not looked for again before.
AGAIN_S: Final = 86_400.0
#: A clock that was set back by more: windows are looked for anew.
STEP_BACK_S: Final = 60.0


@dataclass(slots=True)
class _Event:
    """One line, and its window that is or comes next, in unix seconds."""

    line: ScheduledScaling
    begins_s: float = 0.0
    ends_s: float = -1.0
    asked_s: float = 0.0

    def floor(self, at_s: float, lead_s: float) -> int:
        if at_s >= self.ends_s or at_s < self.asked_s - STEP_BACK_S:
            self._find(at_s)
        self.asked_s = at_s
        return self.line.replicas if self.begins_s - lead_s <= at_s < self.ends_s else 0

    def _find(self, at_s: float) -> None:
        zone = ZoneInfo(self.line.timezone)
        # The first that has not ended yet: it may have begun.
        since = datetime.fromtimestamp(at_s - self.line.duration_s, tz=UTC).astimezone(zone)
        found = next(CronSim(self.line.cron, since), None)
        if found is None:
            self.begins_s = self.ends_s = at_s + AGAIN_S
            return
        self.begins_s = found.timestamp()
        self.ends_s = self.begins_s + self.line.duration_s


class ScheduledFloors:
    """All events of a configuration."""

    def __init__(self, schedule: Sequence[ScheduledScaling]) -> None:
        self._events = [_Event(line) for line in schedule]

    def floor(self, pool: str, *, at_s: float, lead_s: float) -> int:
        """What a pool has at the least at a moment (unix seconds); an event counts `lead_s` before it begins,
        and of several the largest."""
        return max((each.floor(at_s, lead_s) for each in self._events if each.line.pool == pool), default=0)
