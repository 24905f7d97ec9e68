"""What the admin port is handed of the service: figures to show, and orders to pass on.

Owns the interface alone. Each callable that may be absent is None until the part behind it is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from extproc.admin.live_series import LiveSeries
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant
from extproc.observe.stats import Stats

#: An operator's order as the service takes it: JSON in, JSON out; ValueError is the caller's mistake.
Order = Callable[[bytes], bytes | Awaitable[bytes]]


class RefusedError(Exception):
    """An order that cannot be carried out as things are; the message says why."""

    def __init__(self, message: str, *, status: int = 409, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status, self.problems = status, problems


class MissingError(RefusedError):
    """What was asked for is not switched on in this service."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Everything the admin port knows of its service. Clocks in nanoseconds, `wall_clock` in unix seconds."""

    version: str
    scheduler: Scheduler
    stats: Stats
    live_series: LiveSeries
    tenants: Callable[[], Mapping[str, Tenant]]
    #: The service's status without what grows with tenants and endpoints.
    brief: Callable[[], dict[str, Any]]
    clock: Callable[[], int]
    wall_clock: Callable[[], float]
    serving: Callable[[], bool]
    #: Drain, ClearFaults, Explain and Experiment, as operators' commands have them.
    orders: Mapping[str, Order]
    start_experiment: Callable[[str, dict[str, Any], str], Awaitable[dict[str, Any]]]
    stop_experiment: Callable[[str, dict[str, Any], str], Awaitable[dict[str, Any]]]
    #: These raise MissingError where no part is there for them.
    report: Callable[[dict[str, str]], Awaitable[dict[str, Any]]]
    alerts: Callable[[], Awaitable[dict[str, Any]]]
    #: Pools that scale with so many points of their past each; and without, for the live events.
    scaling: Callable[[int], Awaitable[bytes]]
    scaling_now: Callable[[], dict[str, Any]]
    #: The response cache's figures; empty where there is none.
    cache_now: Callable[[], dict[str, Any]]
    exposition: Callable[[str], Awaitable[tuple[bytes, str]]]
    #: Notes an event for the audit log.
    note: Callable[..., None]
