"""The running service's side of scaling: what comes is counted, plans are made, and who acts on them is told.

Owns the newest plan of each pool and the plans before it. Whoever acts on plans (the external scaler, the
launcher, the webhook) or shows them hangs on `plans`, `listeners` and `history`. Off unless a pool has
`scaling`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.scaling.values import PoolPlan
from extproc.core.scheduler import Scheduler
from extproc.service.parts import Part

#: Plans kept of each pool, the newest last: four hours of one every five seconds.
PLANS_KEPT: Final = 2_880


class ScalingPart(Part, Observer):
    """Plans of every pool that has `scaling`; `listeners` hear of each new one, on the event loop."""

    name = "scaling"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        failed: Callable[[Exception, str], None],
    ) -> None:
        self._scheduler, self._clock, self._failed = scheduler, clock, failed
        #: The newest plan of each pool that has one.
        self.plans: dict[str, PoolPlan] = {}
        #: Who is told of each new plan; an exception of theirs is said and counted.
        self.listeners: list[Callable[[PoolPlan], None]] = []
        self._kept: dict[str, deque[PoolPlan]] = {}
        self.apply(config)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where a pool scales."""
        return (self,) if self._pools else ()

    def apply(self, config: Config) -> None:
        """A new configuration holds: pools that do not scale any more have no plan."""
        self._config = config
        self._pools = {pool.name: pool.scaling for pool in config.pools if pool.scaling is not None}
        for known in (self.plans, self._kept):
            for name in [name for name in known if name not in self._pools]:
                del known[name]

    def history(self, pool: str) -> list[PoolPlan]:
        """The plans of a pool that are kept, the oldest first."""
        return list(self._kept.get(pool, ()))

    def publish(self, plan: PoolPlan) -> None:
        """A plan holds from now on: keep it, and tell whoever acts on it."""
        self.plans[plan.pool] = plan
        self._kept.setdefault(plan.pool, deque(maxlen=PLANS_KEPT)).append(plan)
        for listener in tuple(self.listeners):
            try:
                listener(plan)
            except Exception as error:  # noqa: BLE001 (one who acts on plans must not keep it from the others)
                self._failed(error, "telling of a plan")

    def status(self) -> dict[str, Any]:
        """For `steersman status`: the newest plan of each pool, without its samples."""
        return {name: brief(plan) for name, plan in self.plans.items()}


def brief(plan: PoolPlan) -> dict[str, Any]:
    """A plan as plain values, without the requests that its demand holds."""
    told: dict[str, Any] = msgspec.to_builtins(plan)
    told["now"] = {"requests_per_s": plan.now.requests_per_s}
    return told
