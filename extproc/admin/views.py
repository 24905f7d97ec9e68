"""Endpoints, tenants and strategies as the page and the API show them: plain values, one at a time.

Owns their shapes, and which of many are shown. What an endpoint or a tenant's use is made of is observe's.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from extproc.admin.slices import sliced
from extproc.admin.sources import Sources
from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet
from extproc.core.reports import GpuReport
from extproc.core.scaling.use import kv_share
from extproc.core.scheduler import Scheduler
from extproc.core.strategies import OWN, STRATEGIES, parameters
from extproc.core.tenant import Tenant
from extproc.observe.decisions import plain
from extproc.observe.endpoints import view
from extproc.observe.stats import Counters, Stats
from extproc.observe.tenants import Scopes, scopes_of, tenant_view

#: Endpoints and tenants that the live events carry; the rest is counted, and asked for by page.
TILES_MAX, ROWS_MAX = 400, 100
#: Limits of one tenant in a row: those most used.
LIMITS_SHOWN = 6
#: Health above this is shown as whole.
WHOLE = 0.995

_NOTHING = Counters()


def state_of(endpoint: Endpoint, *, now_ns: int) -> str:
    """One word: ready, degraded, suspect, stale, pending (not yet Envoy's), draining or down."""
    if endpoint.draining:
        return "draining"
    if not endpoint.ready:
        return "down"
    if not endpoint.announced:
        return "pending"
    if endpoint.suspect_until_ns > now_ns:
        return "suspect"
    if endpoint.health.value < WHOLE or endpoint.health.causes:
        return "degraded"
    return "stale" if endpoint.stale else "ready"


def tile(endpoint: Endpoint, line: Counters | None, *, now_ns: int) -> dict[str, Any]:
    """What a tile of the fleet map shows; a few microseconds."""
    report = endpoint.report
    line = line or _NOTHING
    return {
        "address": endpoint.address,
        "pool": endpoint.pool,
        "zone": endpoint.zone,
        "node": report.node if report else "",
        "state": state_of(endpoint, now_ns=now_ns),
        "stale": endpoint.stale,
        "health": round(endpoint.health.value, 2),
        "causes": [
            {"name": name, "kind": cause.kind.value, "detail": cause.detail}
            for name, cause in endpoint.health.causes.items()
        ],
        "detail": report.detail if report else "",
        "in_flight": endpoint.requests,
        "peers_in_flight": endpoint.peer_requests,
        "max_concurrent": endpoint.max_concurrent,
        "waiting": report.waiting if report else None,
        "running": report.running if report else None,
        "kv": kv_of(endpoint),
        "gpu": gpus_of(report.gpus) if report and report.gpus else None,
        "tokens_per_s": round(line.tokens.per_second(now_ns=now_ns)),
        "ok": line.ok,
        "failed": line.failed + line.refused,
    }


def kv_of(endpoint: Endpoint) -> float | None:
    """The share of KV memory in use; None where unknown."""
    share = kv_share(endpoint)
    return None if share is None else round(share, 3)


def gpus_of(gpus: Iterable[GpuReport]) -> dict[str, Any]:
    """A replica's cards as one: the busiest, the hottest, all their memory."""
    cards = tuple(gpus)
    used = sum(card.memory_used_bytes or 0 for card in cards)
    total = sum(card.memory_total_bytes or 0 for card in cards)
    return {
        "name": cards[0].name,
        "count": len(cards),
        "utilization": _most(card.utilization_percent for card in cards),
        "memory": round(used / total, 3) if total else None,
        "temperature_c": _most(card.temperature_c for card in cards),
        "power_w": round(sum(card.power_w or 0.0 for card in cards)),
        "lost": any(card.lost for card in cards),
        "xids": sorted({code for card in cards for code, _ in card.xids}),
    }


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


async def shown_endpoints(fleet: Fleet, *, now_ns: int) -> list[Endpoint]:
    """All of a small fleet; of a big one who needs a person first, then the busiest."""
    endpoints = list(fleet.endpoints)
    if len(endpoints) <= TILES_MAX:
        return endpoints
    ranked = [
        (state_of(each, now_ns=now_ns) == "ready", -each.requests, i)
        async for i, each in sliced(enumerate(endpoints))
    ]
    return [endpoints[i] for _, _, i in heapq.nsmallest(TILES_MAX, ranked)]


def pools_of(fleet: Fleet) -> list[dict[str, Any]]:
    """The pools with what may be said of each in a line."""
    return [
        {
            "name": pool.name,
            "models": list(pool.models),
            "strategy": pool.strategy,
            "endpoints": len(pool.endpoints),
            "ready": sum(each.ready and not each.draining for each in pool.endpoints),
        }
        for pool in fleet.pools.values()
    ]


def shown_tenants(scheduler: Scheduler, stats: Stats, tenants: Mapping[str, Tenant]) -> list[str]:
    """Names of the tenants with most going on; all of few."""
    if len(tenants) <= ROWS_MAX:
        return list(tenants)
    busy, held, lines = scheduler.ledger.by_tenant, scheduler.dispatcher.queue.by_tenant, stats.tenants
    active = [name for name in {*busy, *held, *lines} if name in tenants]
    found = heapq.nlargest(
        ROWS_MAX,
        active,
        key=lambda name: (busy[name] + held[name], lines[name].decided if name in lines else 0, name),
    )
    known = set(found)
    for name in tenants:
        if len(found) >= ROWS_MAX:
            break
        if name not in known:
            found.append(name)
    return found


class TenantRows:
    """Rows of tenants. Remembers whose models and keys have limits of their own while the accounts stay."""

    def __init__(self, scheduler: Scheduler, stats: Stats) -> None:
        self._scheduler, self._stats = scheduler, stats
        self._of: object = None
        self._scopes: tuple[dict[str, Scopes], dict[str, Scopes]] = ({}, {})

    def row(self, tenant: Tenant, *, now_ns: int) -> dict[str, Any]:
        """Figures since the start, and the limits that are used most."""
        use = self.use(tenant, now_ns=now_ns)
        line = self._stats.tenants.get(tenant.name, _NOTHING)
        limits = heapq.nlargest(LIMITS_SHOWN, use.pop("limits"), key=_used)
        use.pop("scopes_left_out")
        return {"name": tenant.name, **use, "limits": limits, **line.figures(now_ns=now_ns)}

    def use(self, tenant: Tenant, *, now_ns: int) -> dict[str, Any]:
        """observe.tenants' view, in time that does not grow with the tenants."""
        accounts = self._scheduler.policy.accounts
        if self._of is not accounts:
            self._of, self._scopes = accounts, scopes_of(accounts)
        return tenant_view(self._scheduler, tenant, now_ns=now_ns, scopes=self._scopes)


def _used(limit: Mapping[str, Any]) -> float:
    allowed = limit["allowed"]
    return limit["used"] / allowed if allowed else 0.0


def endpoint_view(endpoint: Endpoint, stats: Stats, *, now_ns: int) -> dict[str, Any]:
    """All of an endpoint, as `steersman status` has it, with the tile's word for its state."""
    line = stats.endpoints.get(endpoint.address, _NOTHING)
    return {
        **view(endpoint, now_ns=now_ns),
        **line.figures(now_ns=now_ns),
        "condition": state_of(endpoint, now_ns=now_ns),
    }


def decisions_after(sources: Sources, number: int, *, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The last decisions after a number, oldest first, and how many are left out."""
    found, left_out = sources.scheduler.dispatcher.decisions.after(number, limit=limit)
    offset_s = sources.wall_clock() - sources.clock() / 1e9
    return [plain(each, unix_s=offset_s + each.at_ns / 1e9) for each in found], left_out


def strategies_view(fleet: Fleet) -> list[dict[str, Any]]:
    """Every strategy with its parameters, and the pools that use it."""
    own = {strategy.name for strategy in OWN}
    return [
        {
            "name": name,
            "summary": _summary(strategy),
            "own": name in own,
            "pools": [pool.name for pool in fleet.pools.values() if pool.strategy == name],
            "parameters": {
                parameter: {"type": kind.__name__, "default": default}
                for parameter, (kind, default) in parameters(name).items()
            },
        }
        for name, strategy in STRATEGIES.items()
    ]


def _summary(strategy: object) -> str:
    module = inspect.getmodule(type(strategy))
    title = inspect.cleandoc((module.__doc__ if module else "") or "").partition("\n\n")[0]
    return " ".join(title.partition(": ")[2].split())
