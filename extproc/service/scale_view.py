"""What operators and the page see of scaling: the newest plans, those before, and the terms of each.

Owns the shapes of the answers and their bounds. Plans are `service.scaling`'s, advice `service.advice`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from extproc.config.model import Config
from extproc.core.scaling.values import PoolPlan
from extproc.service.advice import AdvicePart

#: Points of a pool's history in one answer: by default, and at the most. More are thinned out evenly.
POINTS, POINTS_MAX = 120, 1_000
#: Of all pools of one answer together.
POINTS_ALL_MAX: Final = 20_000
#: Pools in one answer.
POOLS_MAX: Final = 200


class PlanSource(Protocol):
    """What is looked at: `service.scaling.ScalingPart`."""

    plans: dict[str, PoolPlan]

    def history(self, pool: str) -> list[PoolPlan]:
        """The plans of a pool that are kept, the oldest first."""

    def notes(self, pool: str) -> list[str]:
        """What model switches cost, and who lacks memory, in words."""


class ScaleView:
    """Answers of one service. `clock` in ns is the plans' own, `wall_s` unix seconds."""

    def __init__(
        self,
        config: Callable[[], Config],
        plans: PlanSource,
        advice: AdvicePart,
        *,
        clock: Callable[[], int],
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._plans, self._advice = config, plans, advice
        self._clock, self._wall_s = clock, wall_s

    async def order(self, body: bytes) -> bytes:
        """`{"what": "status" | "history" | "explain" | "advice", "pool": "", "points": 120}`.

        ValueError for a pool that has no `scaling`, and where no pool has.
        """
        order = msgspec.json.decode(body, type=_ScaleOrder)
        if order.what == "advice":
            return msgspec.json.encode({"pools": self.advised(order.pool)})
        self._known(order.pool)
        found = {name: plan for name, plan in self._plans.plans.items() if order.pool in ("", name)}
        plans = list(found.values())[:POOLS_MAX]
        if order.what == "history":
            answer = await self._told_all(plans, order.points)
        else:
            tell = self._explained if order.what == "explain" else self._brief
            answer = [msgspec.Raw(msgspec.json.encode(tell(plan))) for plan in plans]
        waiting = [name for name in self._scaled() if name not in self._plans.plans]
        return msgspec.json.encode(
            {"pools": answer, "waiting": [each for each in waiting if order.pool in ("", each)]}
        )

    async def view(self, points: int = POINTS) -> bytes:
        """Every pool that scales with its history, and what binds each, as JSON: for the page and the API."""
        plans = list(self._plans.plans.values())
        return msgspec.json.encode(
            {
                "pools": await self._told_all(plans[:POOLS_MAX], points),
                "pools_left_out": max(0, len(plans) - POOLS_MAX),
                "advice": self.advised(),
            }
        )

    async def _told_all(self, plans: Sequence[PoolPlan], points: int) -> list[msgspec.Raw]:
        """Pools with their history; decisions go on in between."""
        points = min(points, max(1, POINTS_ALL_MAX // max(1, len(plans))))
        told = []
        for plan in plans:
            told.append(msgspec.Raw(msgspec.json.encode(self._told(plan, points))))
            await asyncio.sleep(0)
        return told

    def live(self) -> dict[str, Any]:
        """The same without history, for the live events: the page gathers the points itself."""
        plans = list(self._plans.plans.values())
        return {
            "pools": [{**self._brief(plan), "point": self._point(plan)} for plan in plans[:POOLS_MAX]],
            "pools_left_out": max(0, len(plans) - POOLS_MAX),
            # To whole percents: what has not changed is not told again.
            "advice": [
                {"pool": each["pool"], "bound": each["bound"], "why": each["why"]} for each in self.advised()
            ],
        }

    def advised(self, pool: str = "") -> list[dict[str, Any]]:
        """What binds each pool, or one."""
        status = self._advice.status()
        if pool and pool not in status:
            raise ValueError(f"pool {pool[:63]!r} has no replica that was looked at yet; {_listed(status)}")
        return [
            {"pool": name, **each, "notes": self._plans.notes(name)}
            for name, each in status.items()
            if pool in ("", name)
        ]

    def _scaled(self) -> list[str]:
        return [pool.name for pool in self._config().pools if pool.scaling is not None]

    def _known(self, pool: str) -> None:
        scaled = self._scaled()
        if not scaled:
            raise ValueError("no pool scales here; give one 'scaling: {max_replicas: …}' (docs/scaling.md)")
        if pool and pool not in scaled:
            raise ValueError(f"pool {pool[:63]!r} does not scale; {_listed(scaled)}")

    def _unix_s(self, at_ns: int) -> float:
        return round(self._wall_s() - (self._clock() - at_ns) / 1e9, 1)

    def _brief(self, plan: PoolPlan) -> dict[str, Any]:
        told: dict[str, Any] = msgspec.to_builtins(plan.bare)
        del told["at_ns"], told["now"]["samples"]
        return {**told, "at": self._unix_s(plan.at_ns), "had": plan.had}

    def _told(self, plan: PoolPlan, points: int) -> dict[str, Any]:
        kept = thinned(self._plans.history(plan.pool), points)
        return {**self._brief(plan), "points": [self._point(each) for each in kept]}

    def _point(self, plan: PoolPlan) -> dict[str, Any]:
        return {
            "at": self._unix_s(plan.at_ns),
            "requests_per_s": plan.now.requests_per_s,
            "low": plan.forecast.low,
            "median": plan.forecast.median,
            "high": plan.forecast.high,
            "wanted": plan.wanted,
            "ready": plan.ready,
            "loading": plan.loading,
            "draining": plan.draining,
            "held": plan.held,
            "bound": plan.bound,
            "cost_per_hour": plan.cost_per_hour,
        }

    def _explained(self, plan: PoolPlan) -> dict[str, Any]:
        """The plan with its pool's bounds, and how it came to be what it is."""
        pool = next((each for each in self._config().pools if each.name == plan.pool), None)
        settings = pool.scaling if pool is not None else None
        kept = self._plans.history(plan.pool)
        before = next((each for each in reversed(kept) if each.wanted != plan.wanted), None)
        since = next((each for each in kept if before is not None and each.at_ns > before.at_ns), None)
        return {
            **self._brief(plan),
            "bounds": settings.model_dump(mode="json", exclude={"launcher"}) if settings is not None else {},
            "before": before.wanted if before is not None else None,
            "since": self._unix_s(since.at_ns) if since is not None else None,
        }


def thinned(plans: Sequence[PoolPlan], points: int) -> list[PoolPlan]:
    """At most so many of them, evenly, the newest among them."""
    if len(plans) <= points:
        return list(plans)
    if points <= 1:
        return list(plans[-1:])
    last = len(plans) - 1
    return [plans[round(at * last / (points - 1))] for at in range(points)]


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = ", ".join(list(names)[:20])
    return f"there are {shown}" if shown else "there is none"


class _ScaleOrder(msgspec.Struct):
    what: Literal["status", "history", "explain", "advice"] = "status"
    pool: str = ""
    points: int = POINTS

    def __post_init__(self) -> None:
        if not 1 <= self.points <= POINTS_MAX:
            raise ValueError(f"points must be 1 to {POINTS_MAX}")
