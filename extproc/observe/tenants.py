"""What tenants use of what they may, as plain values for `steersman tenants` and `tenant show`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from extproc.core.accounts import Accounts
from extproc.core.quota import Account, ScopeLimits
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import Tenant

#: Tenants in one answer; those with most in flight and held come first, the rest is counted.
TENANTS_MAX = 1_000
#: Scopes (models, keys) shown of one tenant.
SCOPES_MAX = 200

#: Names of scopes with their limits.
Scopes = list[tuple[str, ScopeLimits]]


def tenants_view(scheduler: Scheduler, tenants: Iterable[Tenant], *, now_ns: int) -> dict[str, Any]:
    """`{"tenants": {name: …}, "left_out": n}`."""
    busy, waiting = scheduler.ledger.by_tenant, scheduler.dispatcher.queue.by_tenant
    everyone = sorted(tenants, key=lambda each: (-busy[each.name] - waiting[each.name], each.name))
    shown = everyone[:TENANTS_MAX]
    models, keys = scopes_of(scheduler.policy.accounts)
    return {
        "tenants": {
            each.name: _view(scheduler, each, models.get(each.name, []), keys.get(each.name, []), now_ns)
            for each in sorted(shown, key=lambda each: each.name)
        },
        "left_out": len(everyone) - len(shown),
    }


def tenant_view(
    scheduler: Scheduler,
    tenant: Tenant,
    *,
    now_ns: int,
    scopes: tuple[dict[str, Scopes], dict[str, Scopes]] | None = None,
) -> dict[str, Any]:
    """One tenant; `scopes` is what `scopes_of` found before, for whoever asks for many."""
    models, keys = scopes if scopes is not None else scopes_of(scheduler.policy.accounts)
    return _view(scheduler, tenant, models.get(tenant.name, []), keys.get(tenant.name, []), now_ns)


def scopes_of(accounts: Accounts) -> tuple[dict[str, Scopes], dict[str, Scopes]]:
    """The limits of models and of keys, by tenant."""
    found: tuple[dict[str, Scopes], dict[str, Scopes]] = ({}, {})
    for kind, table, by_tenant in (("model", accounts.models, found[0]), ("key", accounts.keys, found[1])):
        for (tenant, name), limits in table.items():
            by_tenant.setdefault(tenant, []).append((f"{kind}:{name}", limits))
    return found


def _view(scheduler: Scheduler, tenant: Tenant, models: Scopes, keys: Scopes, now_ns: int) -> dict[str, Any]:
    name = tenant.name
    own = scheduler.policy.accounts.tenants.get(name)
    scopes = ([("tenant", own)] if own else []) + [each for each in (*models, *keys) if each[1]]
    account = Account(name, "", "", tuple(scopes[:SCOPES_MAX]))
    return {
        "class": tenant.service_class,
        "weight": scheduler.policy.weights.get(name, 1.0),
        "in_flight": scheduler.ledger.by_tenant[name],
        "held": scheduler.dispatcher.queue.by_tenant[name],
        "limits": [
            {
                "scope": each.scope,
                "limit": each.limit,
                "allowed": each.allowed,
                "used": round(each.used, 3),
                "borrowed": each.borrowed,
                "throttled": each.throttled,
            }
            for each in scheduler.quotas.usage(account, now_ns=now_ns)
        ],
        "scopes_left_out": max(0, len(scopes) - SCOPES_MAX),
    }
