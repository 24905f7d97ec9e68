"""How a simulated replica and its agent behave, where it is not as a gateway would have it.

Owns the value and its checks; what it makes happen in a world is `upsets.py`'s and `world.py`'s. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """What is out of the ordinary; the defaults are nothing.

    Of its agent: `agent` false, there is none; its reports come `late_s` later; `hidden`, they say nothing
    of what waits. Of its answers: `usage` false, no record tells tokens; `cached_told`, usage tells what was
    found cached; `heard` false, no first token is heard of; a share `errors` of attempts is answered 503 at
    once. Of the engine: each `stall_every_s` nothing moves for `stall_s`; from the share `change_at` of the
    workload's time on it is `change` times slower (.5: twice as fast); a share `foreign` (below 1) of its
    load is requests that nobody told the gateway of.
    """

    agent: bool = True
    late_s: float = 0.0
    hidden: bool = False
    usage: bool = True
    cached_told: bool = False
    heard: bool = True
    errors: float = 0.0
    stall_s: float = 0.0
    stall_every_s: float = 60.0
    change: float = 1.0
    change_at: float = 0.5
    foreign: float = 0.0

    def problems(self) -> list[str]:
        """What cannot be, a line each."""
        found = [
            f"{name} must lie in 0..1, not {value:g}"
            for name in ("errors", "change_at")
            if not 0.0 <= (value := getattr(self, name)) <= 1.0
        ]
        if not 0.0 <= self.foreign < 1.0:
            found.append(f"foreign must lie in 0..1, below 1, not {self.foreign:g}")
        if not 0.0 <= self.stall_s < self.stall_every_s:
            found.append(f"stall_s ({self.stall_s:g}) must be below stall_every_s ({self.stall_every_s:g})")
        if self.change <= 0 or self.late_s < 0:
            found.append("change must be above 0, and late_s not below")
        return found


ORDINARY: Final = Conduct()
