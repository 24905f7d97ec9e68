"""Watches how much of their resources pools use, for the advice on larger or smaller replicas.

Owns the looks: some endpoints a step, all of them in turn, into one meter a pool that forgets by half in
HALF_LIFE_S. Says what binds each pool and since when; what a change would do is simulated by `steersman scale
advice` on recorded traffic. Nothing is ever applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from extproc.config.model import Config
from extproc.core.scaling.advice import Advice, PoolBound, advise
from extproc.core.scaling.use import UseMeter, look_at
from extproc.core.scheduler import Scheduler
from extproc.service.parts import Part

#: Endpoints looked at in one step (a quarter of a second): a thousand of them within 5 s.
LOOKED_AT: Final = 50
#: What may bind a pool, as it is told of.
RESOURCES: Final = ("memory", "compute", "permits", "idle")
#: What was seen counts half after so long, and how often it is aged and judged.
HALF_LIFE_S, JUDGED_EVERY_S = 3_600.0, 30.0


class AdvicePart(Part):
    """What binds each pool, by what its replicas used of late."""

    name = "advice"

    def __init__(self, config: Config, scheduler: Scheduler, *, clock: Callable[[], int]) -> None:
        self._scheduler, self._clock = scheduler, clock
        self._meters: dict[str, UseMeter] = {}
        #: What binds each pool, and since when by our clock.
        self._bound: dict[str, tuple[PoolBound, int]] = {}
        self._at = 0
        self._judged_ns = clock()
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Pools that are no more are forgotten."""
        names = {pool.name for pool in config.pools}
        for known in (self._meters, self._bound):
            for name in [name for name in known if name not in names]:
                del known[name]

    def step(self, *, now_ns: int) -> None:
        """Look at the next endpoints; now and then judge."""
        endpoints = self._scheduler.fleet.endpoints
        count = len(endpoints)
        for i in range(min(LOOKED_AT, count)):
            endpoint = endpoints[(self._at + i) % count]
            if endpoint.ready and not endpoint.draining:
                meter = self._meters.get(endpoint.pool)
                if meter is None:
                    meter = self._meters[endpoint.pool] = UseMeter()
                look_at(meter, endpoint)
        self._at = (self._at + LOOKED_AT) % count if count else 0
        passed_s = (now_ns - self._judged_ns) / 1e9
        if passed_s >= JUDGED_EVERY_S:
            self._judged_ns = now_ns
            for name, meter in self._meters.items():
                meter.age(0.5 ** (passed_s / HALF_LIFE_S))
                bound = advise(name, meter.use()).diagnosis.bound
                before = self._bound.get(name)
                if before is None or before[0] != bound:
                    self._bound[name] = (bound, now_ns)

    def bound(self) -> dict[tuple[str, str], float]:
        """By pool and resource for how long it has bound the pool, in seconds; 0 for those that do not."""
        now_ns = self._clock()
        return {
            (pool, name): (now_ns - since) / 1e9 if name == found else 0.0
            for pool, (found, since) in self._bound.items()
            for name in RESOURCES
        }

    def advice(self, pool: str = "") -> list[Advice]:
        """Of each pool that was looked at, or of one, what binds it now."""
        return [advise(name, meter.use()) for name, meter in self._meters.items() if not pool or name == pool]

    def status(self) -> dict[str, Any]:
        """By pool: what binds it, since how long, and what it uses."""
        return {
            each.pool: {
                "bound": each.diagnosis.bound,
                "why": each.diagnosis.why,
                "since_s": self._since_s(each.pool),
                "use": msgspec.to_builtins(each.use),
            }
            for each in self.advice()
        }

    def _since_s(self, pool: str) -> float | None:
        known = self._bound.get(pool)
        return round((self._clock() - known[1]) / 1e9, 1) if known is not None else None
