"""When a child that died may come back: exponential backoff with jitter, and the end of a crash loop.

Pure: time comes as an argument, chance as a seeded Random.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Delays in seconds. `restarts_max` deaths within `window_s` are borne, one more is a crash loop; None
    bears all, at the pace of `longest_s`."""

    first_s: float = 0.2
    factor: float = 2.0
    longest_s: float = 10.0
    jitter: float = 0.25
    restarts_max: int | None = 5
    window_s: float = 60.0


#: Of what others can go on without: they stay, and it is tried until it stands again.
FOR_EVER = RestartPolicy(restarts_max=None, window_s=120.0)


@dataclass(slots=True)
class Restarts:
    """One child's deaths."""

    policy: RestartPolicy
    rng: Random
    deaths_s: deque[float] = field(default_factory=deque)

    def died(self, *, now_s: float) -> float | None:
        """Seconds to wait before the next start; None when this death makes it a crash loop."""
        policy = self.policy
        while self.deaths_s and now_s - self.deaths_s[0] > policy.window_s:
            self.deaths_s.popleft()
        self.deaths_s.append(now_s)
        if policy.restarts_max is not None and len(self.deaths_s) > policy.restarts_max:
            return None
        delay_s = min(policy.longest_s, policy.first_s * policy.factor ** (len(self.deaths_s) - 1))
        return delay_s * self.rng.uniform(1.0 - policy.jitter, 1.0 + policy.jitter)

    @property
    def count(self) -> int:
        """Deaths within the window."""
        return len(self.deaths_s)
