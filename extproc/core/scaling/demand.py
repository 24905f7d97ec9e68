"""Work that comes to a pool: how much of it in each interval, and what the last requests were like.

Owns the counting. Pure; a request costs about a microsecond. Time is that of the day in seconds, so that a
season is where it was after a restart; the day's clock may be set. A step back of less than STEP_BACK_S goes
into the interval that is open, a larger one begins the counting anew; a step forward is a gap.
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from random import Random
from typing import Final

from extproc.core.scaling.values import Demand, WorkSample

#: Requests that are kept as samples: each new one takes the place of a random one, so that the last few
#: hundred are there, the newest most likely.
SAMPLES_MAX: Final = 512
#: The work that counts as one request follows the requests' mean: about so many are in it.
UNIT_REQUESTS: Final = 2_000.0
#: No request counts as more than so many usual ones.
WEIGHT_MAX: Final = 50.0
#: No request counts as more tokens.
TOKENS_MAX: Final = 10_000_000
#: A clock that went back by more has been set: what was counted cannot be put in order with what comes.
STEP_BACK_S: Final = 120.0
#: Intervals without a request that are told one by one; a longer silence of the counter is a gap.
QUIET_BUCKETS_MAX: Final = 360


class PoolDemand:
    """One pool's counts, weighed by work: a request of twice the mean work is two.

    `closed` are the (bucket, requests) that are over and not yet taken; `unit_ms` is the work of one.
    """

    def __init__(self, bucket_s: float, *, rng: Random) -> None:
        self.bucket_s = bucket_s
        self.samples: list[WorkSample] = []
        #: When the last request came; None before any.
        self.last_s: float | None = None
        #: How often the clock was set back.
        self.clock_steps = 0
        self.closed: deque[tuple[int, float]] = deque(maxlen=QUIET_BUCKETS_MAX)
        self._rng = rng
        self._open: int | None = None
        self._count = 0.0
        self.unit_ms = 0.0
        self._seen = 0.0

    def came(self, count: float = 1.0, *, at_s: float) -> None:
        """So many requests of the usual work came now."""
        self.step(at_s=at_s)
        self._count += count
        self.last_s = at_s

    def worked(self, work_ms: float, *, at_s: float) -> None:
        """A request came that is expected to be so much work."""
        if not 0.0 < work_ms < float("inf"):
            self.came(at_s=at_s)
            return
        if self._seen < UNIT_REQUESTS:
            self._seen += 1.0
        self.unit_ms += (work_ms - self.unit_ms) / self._seen
        self.came(min(work_ms / self.unit_ms, WEIGHT_MAX), at_s=at_s)

    def ended(self, sample: WorkSample) -> None:
        """What a request was, in the end; what cannot be is left out."""
        _, prompt, cached, output = sample
        if not (0 < prompt <= TOKENS_MAX and 0 <= cached <= prompt and 0 <= output <= TOKENS_MAX):
            return
        if len(self.samples) < SAMPLES_MAX:
            self.samples.append(sample)
        else:
            self.samples[self._rng.randrange(SAMPLES_MAX)] = sample

    def step(self, *, at_s: float) -> bool:
        """Let time pass: close what is over. False where the clock was set back by so much that the counting
        begins anew: whoever has taken counts forgets what was of late."""
        if not isfinite(at_s):
            return True
        bucket, at = int(at_s // self.bucket_s), self._open
        if at is None:
            self._open = bucket
            return True
        if bucket <= at:
            if (at - bucket) * self.bucket_s <= STEP_BACK_S:
                return True
            self.clock_steps += 1
            self._open, self._count, self.last_s = bucket, 0.0, at_s if self.last_s is not None else None
            self.closed.clear()
            return False
        self.closed.append((at, self._count))
        self._count, self._open = 0.0, bucket
        if bucket - at <= QUIET_BUCKETS_MAX:
            # Nobody came in these; who did not count (asleep, another clock) skips more.
            self.closed.extend((each, 0.0) for each in range(at + 1, bucket))
        return True

    def taken(self) -> list[tuple[int, float]]:
        """The buckets that are over since it was asked last, in order."""
        taken = list(self.closed)
        self.closed.clear()
        return taken

    def demand(self, requests_per_s: float) -> Demand:
        """As plans have it."""
        return Demand(requests_per_s=requests_per_s, samples=tuple(self.samples))
