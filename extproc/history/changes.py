"""What a change of the configuration did to tenants: quotas, weights, keys. Pure; the audit log's events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from extproc.config.model import Config, KeyConfig, Quota, TenantConfig

#: Tenants' changes told one by one; the rest is counted.
CHANGES_MAX = 1_000

Event = tuple[str, dict[str, Any]]


def changes(before: Config, after: Config) -> list[Event]:
    """Events as (name, facts); one more, `more_changes`, stands for those above CHANGES_MAX."""
    found: list[Event] = []
    beyond = 0
    for event in _changes(before, after):
        if len(found) < CHANGES_MAX:
            found.append(event)
        else:
            beyond += 1
    return [*found, ("more_changes", {"count": beyond})] if beyond else found


def key_id(key: KeyConfig) -> str:
    """What a key is called in records: its name, or the beginning of its hash (core.tenant.Key.id)."""
    return key.name or (key.sha256 or key.hmac_sha256 or "")[:12]


def quota_of(quota: Quota | None) -> dict[str, Any]:
    """A quota's limits that are set."""
    return quota.model_dump(exclude_none=True, exclude_defaults=True) if quota is not None else {}


def _changes(before: Config, after: Config) -> Iterator[Event]:
    old = {tenant.name: tenant for tenant in before.tenants}
    new = {tenant.name: tenant for tenant in after.tenants}
    for name in old.keys() - new.keys():
        yield "tenant_removed", {"tenant": name}
    for name, tenant in new.items():
        if name not in old:
            yield "tenant_added", {"tenant": name}
        earlier = old.get(name) or TenantConfig(name=name)
        if earlier == tenant:
            continue
        yield from _quotas(earlier, tenant)
        yield from _keys(earlier, tenant)


def _quotas(before: TenantConfig, after: TenantConfig) -> Iterator[Event]:
    old, new = _scopes(before), _scopes(after)
    for scope in sorted(old.keys() | new.keys()):
        was, now = old.get(scope, {}), new.get(scope, {})
        if was != now:
            yield "quota_changed", {"tenant": after.name, "scope": scope, "before": was, "after": now}


def _scopes(tenant: TenantConfig) -> dict[str, dict[str, Any]]:
    """Every quota of a tenant by its scope; what decides on its place among others is the tenant's."""
    own = {"class": tenant.service_class, "weight": tenant.weight, "held_max": tenant.held_max}
    return {
        "tenant": {**quota_of(tenant.quota), **own},
        **{f"model:{model}": quota_of(quota) for model, quota in tenant.model_quotas.items()},
        **{f"key:{key_id(key)}": quota_of(key.quota) for key in tenant.keys if key.quota is not None},
    }


def _keys(before: TenantConfig, after: TenantConfig) -> Iterator[Event]:
    old = {key.sha256 or key.hmac_sha256: key for key in before.keys}
    new = {key.sha256 or key.hmac_sha256: key for key in after.keys}
    for digest, key in new.items():
        facts = {"tenant": after.name, "key": key_id(key), "hash": (digest or "")[:12]}
        earlier = old.get(digest)
        if earlier is None:
            yield "key_added", {**facts, "expires": key.expires.isoformat() if key.expires else None}
        elif key.revoked and not earlier.revoked:
            yield "key_revoked", facts
        elif earlier.model_copy(update={"quota": key.quota}) != key:
            yield "key_changed", facts
    for digest in old.keys() - new.keys():
        yield "key_removed", {"tenant": after.name, "key": key_id(old[digest]), "hash": (digest or "")[:12]}
