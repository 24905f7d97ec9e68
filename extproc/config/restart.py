"""What of a changed configuration a running service cannot take: what is Envoy's, or a socket's. Pure.

Beside the models and not in the service, so that a supervisor can tell it without importing one.
"""

from __future__ import annotations

from extproc.config.away import away_routes, fallback
from extproc.config.holds import longest_hold_ms
from extproc.config.model import Config, GatewayConfig, PoolConfig, ServiceClass
from extproc.config.own_routes import own_in_envoy
from extproc.config.section import reloadable
from extproc.config.site_checks import returning

#: What a reload may change of the gateway, and of a pool.
_OF_GATEWAY, _OF_POOL = reloadable(GatewayConfig), reloadable(PoolConfig)


def restart_needed(old: Config, new: Config, *, live: bool = False) -> list[str]:
    """Settings that differ and are Envoy's or the sockets', so that a reload cannot apply them.

    `live`: an Envoy takes its clusters and endpoints from us (ADS), so pools may change as well.
    """
    changed = [
        f"gateway.{name}"
        for name in type(old.gateway).model_fields
        if name not in reloadable(type(old.gateway))
        and getattr(old.gateway, name) != getattr(new.gateway, name)
    ]
    if fallback(old) != fallback(new):
        changed.append(
            "gateway.default_model, or the classes' failure_mode or floor (where Envoy fails open to)"
        )
    if away_routes(old) != away_routes(new):
        changed.append("what Envoy does with tenants that it knows by itself (classes, tenants)")
    if _routes(old) != _routes(new):
        changed.append("classes (the retries and timeouts of Envoy's routes)")
    if own_in_envoy(old.routes) != own_in_envoy(new.routes):
        changed.append("routes (forms, places of usage and foreign dialects are Envoy's as well)")
    if longest_hold_ms(old) != longest_hold_ms(new):
        changed.append("classes (cold_hold_ms above 240000 is how long Envoy waits)")
    changed += [
        f"service.{name}"
        for name in type(old.service).model_fields
        if getattr(old.service, name) != getattr(new.service, name)
    ]
    changed += [
        f"analytics.{name}"
        for name in ("dir", "bytes_max")
        if getattr(old.analytics, name) != getattr(new.analytics, name)
    ]
    if old.scaling.external_scaler != new.scaling.external_scaler:
        changed.append("scaling.external_scaler")
    changed += [
        section
        for section in ("telemetry", "sharing", "state")
        if getattr(old, section) != getattr(new, section)
    ]
    if (old.cache is None) != (new.cache is None):
        changed.append("cache (Envoy gathers answers for it)")
    elif old.cache is not None and new.cache is not None and old.cache.store != new.cache.store:
        changed.append("cache.store")
    if _admin_port(old) != _admin_port(new):
        changed.append("admin.listen or admin.tls")
    if accepts_sites(old) != accepts_sites(new):
        changed.append("site.peers (whether any of them forwards: Envoy lets their header through)")
    if place_header(old) != place_header(new):
        changed.append("site.places.header (Envoy takes it away from who may not say it)")
    if live:
        return changed
    if [_cluster(each) for each in old.classes] != [_cluster(each) for each in new.classes]:
        changed.append("classes (their names, order and shares are Envoy's clusters)")
    if _returning(old) != _returning(new):
        changed.append("pools[].spill (Envoy knows where requests come back to, and go on to)")
    if [pool.name for pool in old.pools] != [pool.name for pool in new.pools]:
        return [*changed, "pools (their names and order)"]
    changed += [
        f"pools[{i}].{name}"
        for i, (before, after) in enumerate(zip(old.pools, new.pools, strict=True))
        for name in type(before).model_fields
        if name not in _OF_POOL and getattr(before, name) != getattr(after, name)
    ]
    return changed


def accepts_sites(config: Config) -> bool:
    """Whether another site may send requests on to this one."""
    return config.site is not None and any(peer.forwards for peer in config.site.peers)


def place_header(config: Config) -> str | None:
    """In which header a trusted proxy says where its clients are."""
    places = None if config.site is None else config.site.places
    return None if places is None else places.header


def _returning(config: Config) -> list[tuple[str, str, bool]]:
    """The clusters in which what fails in one pool is tried in another."""
    return [
        (there.name, pool.name, pool.spill is not None and pool.spill.after_failure)
        for there, pool in returning(config)
    ]


def _routes(config: Config) -> list[tuple[object, ...]]:
    """What Envoy's routes hold of the classes: those that have a route of their own."""
    own = (
        (each.name, each.retries, each.first_byte_timeout_ms, each.stream_idle_timeout_ms)
        for each in config.classes
    )
    return [each for each in own if each[1:] != (None, None, None)]


def _admin_port(config: Config) -> tuple[object, ...]:
    """What the admin port's listener holds."""
    return () if config.admin is None else (config.admin.listen, config.admin.tls)


def _cluster(each: ServiceClass) -> tuple[object, ...]:
    """What Envoy's clusters hold of a class."""
    return each.name, each.share_of_breakers, each.outlier_detection
