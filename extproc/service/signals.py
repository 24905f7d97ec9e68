"""Where alert rules find their signals in the running service: the watch's windows, fleet and scheduler now.

Owns the gauges. Reads alone; what rules make of them is `observe/alerts`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from extproc.core.endpoint import Endpoint
from extproc.core.quota import Account
from extproc.core.scheduler import Scheduler
from extproc.observe.alerts.anomaly import Anomalies
from extproc.observe.alerts.watch import FLEET, AlertWatch, Key

#: What binds a pool, by the signal that it is.
_BOUND = {"memory": "memory_bound_s", "idle": "idle_s"}


class Values:
    """Where rules find their signals (`rules.Signals`): the watch's windows, and the fleet as it is now."""

    def __init__(self, scheduler: Scheduler, watch: AlertWatch, anomalies: Anomalies) -> None:
        self._scheduler, self._watch, self._anomalies = scheduler, watch, anomalies
        #: For how long what binds a pool has bound it; set by who watches.
        self.bound: Callable[[], Mapping[tuple[str, str], float]] = dict
        self._gauges: dict[tuple[str, Key], float] = {}
        self._now_ns = 0
        #: What is wrong with scaling; set by who knows.
        self.scaling: Callable[[], Mapping[tuple[str, Key], float]] = dict

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None
    ) -> tuple[float | None, int]:
        """See Watch.windowed."""
        return self._watch.windowed(signal, key, since, until, code=code)

    def covered_s(self, key: Key, since: int, until: int) -> int:
        """See Watch.covered_s."""
        return self._watch.covered_s(key, since, until)

    def moment(self, signal: str, key: Key) -> float | None:
        """A gauge; a tenant's are read when they are asked for, the others once a second."""
        kind, name = key
        if kind == "tenant":
            return self._of_tenant(signal, name)
        return self._gauges.get((signal, key))

    def look(self, *, now_ns: int) -> None:
        """Read the gauges of fleet, pools and classes."""
        self._now_ns = now_ns
        scheduler, queue = self._scheduler, self._scheduler.dispatcher.queue
        gauges: dict[tuple[str, Key], float] = {("held", FLEET): float(len(queue))}
        for spec, held in zip(scheduler.policy.classes, queue.by_class, strict=False):
            gauges["held", ("class", spec.name)] = float(held)
        everyone: list[Endpoint] = []
        for name, pool in scheduler.fleet.pools.items():
            gauges["held", ("pool", name)] = float(queue.by_pool_count(name))
            _fleet_gauges(gauges, ("pool", name), pool.endpoints)
            everyone += pool.endpoints
        _fleet_gauges(gauges, FLEET, everyone)
        for (bound, resource), seconds in self.bound().items():
            if (signal := _BOUND.get(resource)) is not None:
                gauges[signal, ("pool", bound)] = seconds
        if (median := scheduler.settlement.feedback.ttft.median) is not None:
            gauges["prediction_error", FLEET] = median
        gauges.update(self.scaling())
        self._gauges = gauges

    def _of_tenant(self, signal: str, name: str) -> float | None:
        if signal == "anomaly":
            return self._anomalies.verdict(name).score
        if signal == "held":
            return float(self._scheduler.dispatcher.queue.by_tenant.get(name, 0))
        if signal == "in_flight":
            return float(self._scheduler.ledger.by_tenant.get(name, 0))
        limits = self._scheduler.policy.accounts.tenants.get(name)
        if limits is None:
            return None
        account = Account(name, "", "", (("tenant", limits),))
        usage = self._scheduler.quotas.usage(account, now_ns=self._now_ns)
        return max((each.used / each.allowed for each in usage if each.allowed), default=None)


def _fleet_gauges(gauges: dict[tuple[str, Key], float], key: Key, endpoints: Sequence[Endpoint]) -> None:
    """What a pool's or the fleet's endpoints are; nothing of none."""
    gauges["in_flight", key] = float(sum(each.requests for each in endpoints))
    if not endpoints:
        return
    count, heard, stale, ready, health, faulty = len(endpoints), 0, 0, 0, 0.0, 0
    for each in endpoints:
        ready += each.ready
        health += each.health.value
        if each.reported_ns is not None:
            heard += 1
            stale += each.stale
        if each.health.causes:
            faulty += any(name.startswith("gpu ") for name in each.health.causes)
    gauges["ready_share", key] = ready / count
    gauges["health", key] = health / count
    gauges["gpu_faults", key] = float(faulty)
    if heard:
        gauges["stale_share", key] = stale / heard
