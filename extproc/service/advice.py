"""Watches how much of their resources pools use, for the advice on larger or smaller replicas.

Owns the looks: some endpoints a step, all of them in turn, into one meter a pool that forgets by half in
HALF_LIFE_S. Says what binds each pool and since when; what a change would do is simulated by `steersman scale
advice` on recorded traffic. Nothing is ever applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from extproc.config.model import Config
from extproc.core.scaling.advice import Advice, advise
from extproc.core.scaling.use import UseMeter, look_at
from extproc.core.scheduler import Scheduler
from extproc.service.parts import Part

#: Endpoints looked at in one step (a quarter of a second): a thousand of them within 5 s.
LOOKED_AT: Final = 50
#: What may bind a pool, as it is told of.
RESOURCES: Final = ("memory", "compute", "permits", "idle")
#: What was seen counts half after so long; how often a pool is aged and judged, and how many in one step.
HALF_LIFE_S, JUDGED_EVERY_S, JUDGED_AT_ONCE = 3_600.0, 30.0, 4


@dataclass(slots=True)
class _Watched:
    """One pool: its meter, what was last said of it, and since when the same binds it."""

    meter: UseMeter = field(default_factory=UseMeter)
    judged_ns: int | None = None
    advice: Advice | None = None
    since_ns: int = 0


class AdvicePart(Part):
    """What binds each pool, by what its replicas used of late."""

    name = "advice"

    def __init__(self, config: Config, scheduler: Scheduler, *, clock: Callable[[], int]) -> None:
        self._scheduler, self._clock = scheduler, clock
        self._pools: dict[str, _Watched] = {}
        self._at = self._turn = 0
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Pools that are no more are forgotten."""
        names = {pool.name for pool in config.pools}
        for name in [name for name in self._pools if name not in names]:
            del self._pools[name]

    def step(self, *, now_ns: int) -> None:
        """Look at the next endpoints, and judge the next pools that it is time for."""
        endpoints = self._scheduler.fleet.endpoints
        count = len(endpoints)
        for i in range(min(LOOKED_AT, count)):
            endpoint = endpoints[(self._at + i) % count]
            if endpoint.ready and not endpoint.draining:
                watched = self._pools.get(endpoint.pool)
                if watched is None:
                    watched = self._pools[endpoint.pool] = _Watched()
                look_at(watched.meter, endpoint)
        self._at = (self._at + LOOKED_AT) % count if count else 0
        names = list(self._pools)
        for i in range(min(JUDGED_AT_ONCE, len(names))):
            self._judge(names[(self._turn + i) % len(names)], now_ns)
        self._turn = (self._turn + JUDGED_AT_ONCE) % len(names) if names else 0

    def _judge(self, name: str, now_ns: int) -> None:
        watched = self._pools[name]
        passed_s = JUDGED_EVERY_S if watched.judged_ns is None else (now_ns - watched.judged_ns) / 1e9
        if passed_s < JUDGED_EVERY_S:
            return
        if watched.judged_ns is not None:
            watched.meter.age(0.5 ** (passed_s / HALF_LIFE_S))
        found = advise(name, watched.meter.use())
        if watched.advice is None or watched.advice.diagnosis.bound != found.diagnosis.bound:
            watched.since_ns = now_ns
        watched.judged_ns, watched.advice = now_ns, found

    def bound(self) -> dict[tuple[str, str], float]:
        """By pool and resource for how long it has bound the pool, in seconds; 0 for those that do not."""
        now_ns = self._clock()
        return {
            (pool, name): (now_ns - each.since_ns) / 1e9 if each.advice.diagnosis.bound == name else 0.0
            for pool, each in self._pools.items()
            if each.advice is not None
            for name in RESOURCES
        }

    def status(self) -> dict[str, Any]:
        """By pool as it was last judged: what binds it, since how long, and what it uses."""
        now_ns = self._clock()
        return {
            pool: {
                "bound": each.advice.diagnosis.bound,
                "why": each.advice.diagnosis.why,
                "since_s": round((now_ns - each.since_ns) / 1e9, 1),
                "use": msgspec.to_builtins(each.advice.use),
            }
            for pool, each in self._pools.items()
            if each.advice is not None
        }
