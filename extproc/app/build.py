"""From a configuration to what the core and the servers are built of. Pure."""

from __future__ import annotations

from extproc.config.model import Config
from extproc.core.desk import DeskLimits
from extproc.core.fleet import Member, PoolSpec
from extproc.core.tenant import Directory, Tenant

#: What a reload may change of a pool: Envoy knows nothing of these.
RELOADABLE_OF_POOL = frozenset(
    {"models", "strategy", "bytes_per_token", "output_tokens", "zone_penalty_tokens"}
)


def pool_specs(config: Config) -> list[PoolSpec]:
    """The configuration's pools as the core knows them."""
    return [
        PoolSpec(
            name=pool.name,
            models=tuple(pool.models),
            strategy=pool.strategy,
            endpoints=tuple(Member(e.address, e.zone, e.max_concurrent, e.region) for e in pool.endpoints),
            bytes_per_token=pool.bytes_per_token,
            output_tokens=pool.output_tokens,
            zone_penalty_tokens=pool.zone_penalty_tokens,
        )
        for pool in config.pools
    ]


def directory_of(config: Config) -> Directory:
    """The configuration's tenants by the hashes of their keys."""
    return Directory(
        (
            (
                Tenant(
                    name=tenant.name,
                    models=None if tenant.models is None else frozenset(tenant.models),
                    default_model=tenant.default_model,
                    regions=None if tenant.regions is None else frozenset(tenant.regions),
                ),
                [key.sha256 for key in tenant.keys],
            )
            for tenant in config.tenants
        ),
        required=config.gateway.auth == "api_key",
    )


def restart_needed(old: Config, new: Config, *, live: bool = False) -> list[str]:
    """Settings that differ and are Envoy's or the sockets', so that a reload cannot apply them.

    `live`: an Envoy takes its clusters and endpoints from us (ADS), so pools may change as well.
    """
    changed = [
        f"gateway.{name}"
        for name in type(old.gateway).model_fields
        if name not in ("auth", "default_model") and getattr(old.gateway, name) != getattr(new.gateway, name)
    ]
    if new.gateway.failure_mode == "open" and _default_pool(old) != _default_pool(new):
        changed.append("gateway.default_model (its pool is where Envoy fails open to)")
    changed += [
        f"service.{name}"
        for name in type(old.service).model_fields
        if getattr(old.service, name) != getattr(new.service, name)
    ]
    changed += [
        section for section in ("telemetry", "sharing") if getattr(old, section) != getattr(new, section)
    ]
    if live:
        return changed
    if [pool.name for pool in old.pools] != [pool.name for pool in new.pools]:
        return [*changed, "pools (their names and order)"]
    changed += [
        f"pools[{i}].{name}"
        for i, (before, after) in enumerate(zip(old.pools, new.pools, strict=True))
        for name in type(before).model_fields
        if name not in RELOADABLE_OF_POOL and getattr(before, name) != getattr(after, name)
    ]
    return changed


def _default_pool(config: Config) -> str:
    pool = config.pool_of(config.default_model)
    assert pool is not None, config.default_model  # the configuration's own checks
    return pool.name


def desk_limits(config: Config) -> DeskLimits:
    """The desk's bounds."""
    return DeskLimits(
        reservation_ttl_ns=config.limits.reservation_ttl_s * 1_000_000_000,
        reservations_max=config.limits.reservations_max,
        settled_remembered_max=config.limits.settled_remembered_max,
    )
