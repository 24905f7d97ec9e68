"""Who acts on plans outside this process: KEDA, a webhook, Kubernetes; and what of scaling is shown.

Owns what each is told and when. What is wanted is the planner's (service/scaling.py).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from extproc.config.load import ConfigError, Problem
from extproc.config.model import Config
from extproc.core.decide import RoutingRequest
from extproc.core.errors import Error
from extproc.core.events import Observer
from extproc.core.outcome import Reject
from extproc.core.scaling.values import PoolPlan
from extproc.core.scheduler import Scheduler
from extproc.observe.alerts.watch import FLEET, Key
from extproc.observe.metrics.snapshot import ScalingSeen, SeenScaling
from extproc.scaling.external import ExternalScaler, files_of
from extproc.scaling.pods import PodCosts
from extproc.scaling.trouble import ScalingTrouble
from extproc.scaling.webhook import ScalingNotices, bearer_of
from extproc.service.credentials import check_tls
from extproc.service.parts import Part
from extproc.service.scaling import ScalingPart

#: A plan is too old to go by after so many of the planner's intervals, and not before so long.
STALE_INTERVALS, STALE_S_MIN = 10.0, 60.0
#: How long somebody who was turned away for want of a replica still counts as asking.
ASKED_NS: Final = 60 * 1_000_000_000
#: So long fewer replicas are not reported while Kubernetes does not know yet who is to go.
MARKING_NS: Final = 10 * 1_000_000_000
#: How often TLS's files are looked at.
RENEW_NS: Final = 30 * 1_000_000_000


class ScalersPart(Part, Observer):
    """The part that tells others. Raises ConfigError where a file that the settings name is no good.

    It is the scaler's source (`ScalerSource`), and hears of requests for the one case in which a plan comes
    too late: somebody waits and nothing is there.
    """

    name = "scalers"

    def __init__(
        self, config: Config, scheduler: Scheduler, planner: ScalingPart, *, clock: Callable[[], int]
    ) -> None:
        self._scheduler, self._planner, self._clock = scheduler, planner, clock
        self._wall_ns = time.time_ns() - clock()
        self._namespace = os.environ.get("POD_NAMESPACE", "")
        self.trouble = ScalingTrouble()
        #: When somebody was last turned away for want of a replica, by pool.
        self._refused_ns: dict[str, int] = {}
        #: Since when who leaves a pool is not known to Kubernetes.
        self._marking_ns: dict[str, int] = {}
        self._renewed_ns = clock()
        self._renewing: asyncio.Task[bool] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.scaler: ExternalScaler | None = None
        self.notices: ScalingNotices | None = None
        self.costs: PodCosts | None = None
        self._config = config
        _check(config)
        settings = config.scaling
        if settings.external_scaler is not None:
            self.scaler = ExternalScaler(settings.external_scaler, self, clock=clock)
            scheduler.dispatcher.on_cold.append(self._cold)
        planner.listeners.append(self.heard)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Itself, where somebody may be asleep that a request should wake."""
        return (self,) if self.scaler is not None else ()

    async def start(self) -> None:
        """Listen, and begin to tell."""
        if self.scaler is not None:
            await self.scaler.start()
        self._tell()

    async def stop(self) -> None:
        """Listen no more."""
        if self._renewing is not None:
            await self._renewing
        for each in (self.notices, self.costs, self.scaler):
            if each is not None:
                await each.stop()

    def apply(self, config: Config) -> None:
        """Another webhook, another namespace; pools that scale no more are forgotten."""
        before, self._config = self._config.scaling, config
        for pool in [name for name in self._known() if name not in self.pools()]:
            self.trouble.forget(pool)
            self._refused_ns.pop(pool, None)
            if self.costs is not None:
                self.costs.put(pool, ())
        if before.webhook != config.scaling.webhook and self.notices is not None:
            self._end(self.notices.stop())
            self.notices = None
        if before.pod_deletion_cost != config.scaling.pod_deletion_cost and self.costs is not None:
            self._end(self.costs.stop())
            self.costs = None
        self._tell()

    def step(self, *, now_ns: int) -> None:
        """Wake who sleeps where somebody waits, here or elsewhere; look whether certificates were renewed."""
        if self.scaler is None:
            return
        for pool in self.scaler.sleeping:
            if self.held(pool) or self._scheduler.peers.contended(pool):
                self.scaler.wake(pool)
        if now_ns - self._renewed_ns >= RENEW_NS and self.scaler.settings.tls is not None:
            self._renewed_ns = now_ns
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.get_running_loop().create_task(self.scaler.renew())

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """Somebody was turned away since no replica is there."""
        if reject.code == Error.NO_READY_ENDPOINT.code:
            self._refused_ns[routing.pool] = now_ns
            if self.scaler is not None:
                self.scaler.wake(routing.pool)

    def heard(self, plan: PoolPlan) -> None:
        """A new plan: whoever acts on it is told."""
        self.trouble.heard(plan)
        if self.costs is not None:
            self.costs.put(plan.pool, plan.leaving)
            if self.costs.written(plan.pool):
                self._marking_ns.pop(plan.pool, None)
            else:
                self._marking_ns.setdefault(plan.pool, self._clock())
        if self.notices is not None:
            self.notices.heard(plan)

    def pools(self) -> Collection[str]:
        """Those that scale."""
        return [pool.name for pool in self._config.pools if pool.scaling is not None]

    def plan(self, pool: str) -> PoolPlan | None:
        """The newest plan, unless it is too old; not fewer than there are while nobody knows who is to go."""
        plan = self._planner.plans.get(pool)
        if plan is None or self._stale(plan):
            return None
        if self.costs is not None and plan.wanted < plan.had and not self.costs.written(pool):
            since = self._marking_ns.setdefault(pool, self._clock())
            if self._clock() - since < MARKING_NS:
                return msgspec.structs.replace(plan, wanted=plan.had)
        return plan

    def held(self, pool: str) -> int:
        """Requests of a pool that wait here."""
        return self._scheduler.dispatcher.queue.by_pool_count(pool)

    def asked(self, pool: str) -> bool:
        """Whether somebody waits or runs, here or at another service, or was turned away within the last
        minute for want of a replica."""
        if self.held(pool) or self._scheduler.peers.contended(pool):
            return True
        refused_ns = self._refused_ns.get(pool)
        if refused_ns is not None and self._clock() - refused_ns < ASKED_NS:
            return True
        known = self._scheduler.fleet.pools.get(pool)
        return known is not None and any(each.requests + each.peer_requests for each in known.endpoints)

    def seen(self) -> ScalingSeen:
        """For the metrics."""
        now_ns = self._clock()
        hardware = {pool.name: pool.hardware for pool in self._config.pools}
        rows = []
        for pool, plan in self._planner.plans.items():
            wrong = self.trouble.of(pool, now_ns=now_ns)
            rows.append(
                SeenScaling(
                    plan=plan,
                    age_s=(now_ns - plan.at_ns) / 1e9,
                    stale=self._stale(plan),
                    unmet=wrong.unmet,
                    overdue=wrong.overdue,
                    turns=wrong.turns,
                    namespace=self._namespace,
                    accelerator=hardware.get(pool, ""),
                )
            )
        return ScalingSeen(tuple(rows), None if self.scaler is None else self.scaler.silence_s())

    def signals(self) -> Mapping[tuple[str, Key], float]:
        """For the alert rules."""
        now_ns = self._clock()
        found: dict[tuple[str, Key], float] = {}
        for pool in self._planner.plans:
            wrong, key = self.trouble.of(pool, now_ns=now_ns), ("pool", pool)
            found["scaling_unmet", key] = wrong.unmet
            found["scaling_overdue", key] = wrong.overdue
            found["scaling_turns", key] = float(wrong.turns)
        if self.scaler is not None and self.pools():
            found["scaler_silence_s", FLEET] = self.scaler.silence_s()
        return found

    def status(self) -> dict[str, object]:
        """Who asked, and who was told."""
        parts = {"external": self.scaler, "webhook": self.notices, "pod_deletion_cost": self.costs}
        return {name: part.status() for name, part in parts.items() if part is not None}

    def _cold(self, pool: str, now_ns: int) -> None:
        """A request found nobody ready: who sleeps looks as soon as it is held, or turned away."""
        self._refused_ns[pool] = now_ns
        if self.scaler is not None:
            self.scaler.wake(pool)

    def _stale(self, plan: PoolPlan) -> bool:
        patience_s = max(STALE_S_MIN, STALE_INTERVALS * self._config.scaling.interval_s)
        return self._clock() - plan.at_ns > patience_s * 1e9

    def _known(self) -> set[str]:
        return {*self._planner.plans, *self._refused_ns, *self._marking_ns}

    def _tell(self) -> None:
        """Begin to tell whoever the settings name and is not told yet; with what is wanted now."""
        settings = self._config.scaling
        if settings.webhook is not None and self.notices is None:
            self.notices = ScalingNotices(settings.webhook, wall_ns=self._wall_ns)
            self.notices.start()
        if settings.pod_deletion_cost is not None and self.costs is None:
            self.costs = PodCosts(settings.pod_deletion_cost)
            self.costs.start()
        for plan in self._planner.plans.values():
            self.heard(plan)

    def _end(self, ending: Any) -> None:
        """End what the settings name no more, beside what goes on."""
        task = asyncio.get_running_loop().create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _check(config: Config) -> None:
    """Raises ConfigError."""
    settings = config.scaling
    if settings.external_scaler is not None and settings.external_scaler.tls is not None:
        check_tls(files_of(settings.external_scaler.tls), "scaling.external_scaler.tls")
    if settings.webhook is not None and settings.webhook.bearer_file is not None:
        try:
            bearer_of(settings.webhook.bearer_file)
        except (OSError, ValueError) as error:
            problem = Problem("the configuration", None, "scaling.webhook.bearer_file", str(error))
            raise ConfigError([problem]) from None
