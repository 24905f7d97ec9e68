"""The checks across sections: what is wrong only in the light of another setting.

Owns locations and their spelling. Each message says what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.adapter_checks import adapter_checks
from extproc.config.check_launcher import launcher_checks
from extproc.config.check_service import service_checks
from extproc.config.check_tenants import class_checks, identity_checks
from extproc.config.check_upstream import upstream_checks
from extproc.config.experiment_checks import experiment_checks
from extproc.config.family_checks import family_checks
from extproc.config.locations import Loc, repeats
from extproc.config.model import Config
from extproc.config.parameters import wrong_with
from extproc.config.route_checks import route_checks
from extproc.config.site_checks import site_checks
from extproc.config.spill_checks import spill_checks
from extproc.meant import meant
from extproc.wording import dotted

__all__ = ["Loc", "cross_checks", "dotted"]


def cross_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message) for each mistake that only shows between sections."""
    yield from repeats((("pools", i, "name"), pool.name) for i, pool in enumerate(config.pools))
    yield from repeats((("tenants", i, "name"), tenant.name) for i, tenant in enumerate(config.tenants))
    yield from _shared_models(config)
    yield from _reserved(config)
    yield from repeats(
        (("pools", i, "endpoints", j, "address"), endpoint.address)
        for i, pool in enumerate(config.pools)
        for j, endpoint in enumerate(pool.endpoints)
    )
    served = sorted({model for pool in config.pools for model in pool.models})
    for location, model in _named_models(config):
        if model not in served:
            yield location, f"no pool serves {model!r}; pools serve {', '.join(served)}{meant(model, served)}"
    for i, tenant in enumerate(config.tenants):
        if tenant.models is not None and tenant.default_model and tenant.default_model not in tenant.models:
            yield (
                ("tenants", i, "default_model"),
                (f"{tenant.default_model!r} is not among the tenant's models; add it to tenants[{i}].models"),
            )
        for model in tenant.model_quotas:
            if tenant.models is not None and model not in tenant.models:
                yield (
                    ("tenants", i, "model_quotas", model),
                    f"is not among the tenant's models; add it to tenants[{i}].models, or remove the quota",
                )
    yield from upstream_checks(config)
    if config.gateway.auth == "api_key" and not config.tenants:
        yield (
            ("tenants",),
            (
                "gateway.auth is 'api_key' but no tenant is listed, so every request would get 401; "
                "list a tenant with a key, or set gateway.auth: none"
            ),
        )
    for i, pool in enumerate(config.pools):
        yield from adapter_checks(i, pool)
    yield from _strategies(config)
    yield from _tuning(config)
    yield from experiment_checks(config)
    yield from family_checks(config)
    yield from identity_checks(config)
    yield from service_checks(config)
    yield from class_checks(config)
    yield from launcher_checks(config)
    yield from spill_checks(config)
    yield from route_checks(config)
    yield from site_checks(config)
    yield from _sources(config)
    if config.limits.reservation_ttl_s < 3 * config.gateway.heartbeat_s:
        yield (
            ("limits", "reservation_ttl_s"),
            (
                f"{config.limits.reservation_ttl_s} s is less than three heartbeats; running requests would "
                f"expire. Write {3 * config.gateway.heartbeat_s} or more, or lower gateway.heartbeat_s"
            ),
        )
    yield from repeats(
        (("service", name, i), where)
        for name in ("listen", "ads_listen")
        for i, where in enumerate(getattr(config.service, name))
    )
    if config.gateway.listen == config.gateway.envoy_admin:
        yield ("gateway", "envoy_admin"), f"{config.gateway.listen} is gateway.listen's too; use another port"


def _shared_models(config: Config) -> Iterator[tuple[Loc, str]]:
    """Models that a tenant would find in two pools; one of everybody's and one of its own are told apart."""
    yield from repeats(
        (("pools", i, "models", j), model)
        for i, pool in enumerate(config.pools)
        for j, model in enumerate(pool.models)
        # Another site may serve what is served here: here goes first.
        if (pool.tenants is None and pool.remote is None) or pool.models.index(model) != j
    )
    yield from repeats(
        (("pools", i, "models", j), model)
        for i, pool in enumerate(config.pools)
        for j, model in enumerate(pool.models)
        if pool.tenants is None and pool.remote is not None and pool.models.index(model) == j
    )
    found: dict[tuple[str, str], str] = {}
    for i, pool in enumerate(config.pools):
        for j, model in enumerate(pool.models):
            for tenant in pool.tenants or ():
                other = found.setdefault((model, tenant), pool.name)
                if other != pool.name:
                    message = f"{model!r} is reserved for {tenant!r} in pool {other!r} too; keep it in one"
                    yield ("pools", i, "models", j), message


def _reserved(config: Config) -> Iterator[tuple[Loc, str]]:
    """Pools that are reserved for nobody who exists."""
    names = {tenant.name for tenant in config.tenants}
    for i, pool in enumerate(config.pools):
        yield from repeats((("pools", i, "tenants", j), name) for j, name in enumerate(pool.tenants or ()))
        for j, name in enumerate(pool.tenants or ()):
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                yield ("pools", i, "tenants", j), f"no tenant {name!r}; there are {known}"


def _strategies(config: Config) -> Iterator[tuple[Loc, str]]:
    """Parameters that their strategy does not have, or not in that range."""
    for i, pool in enumerate(config.pools):
        for name, given in pool.strategy_parameters.items():
            if wrong := wrong_with(name, given):
                yield ("pools", i, "strategy_parameters", name), wrong


def _tuning(config: Config) -> Iterator[tuple[Loc, str]]:
    """A pool to tune that is not there."""
    names = [pool.name for pool in config.pools]
    if config.tuning.pool is not None and config.tuning.pool not in names:
        near = meant(config.tuning.pool, names)
        yield (
            ("tuning", "pool"),
            f"there is no pool {config.tuning.pool!r}; there are {', '.join(names)}{near}",
        )


def _sources(config: Config) -> Iterator[tuple[Loc, str]]:
    """Pools that could never have an endpoint, and agents that could never be believed."""
    telemetry = config.telemetry
    for i, pool in enumerate(config.pools):
        found = pool.discovery
        agents = found.agents and telemetry is not None
        launched = pool.scaling is not None and pool.scaling.launcher is not None
        if not (pool.endpoints or found.dns or found.file or agents or launched):
            yield (
                ("pools", i, "endpoints"),
                (
                    "is empty; list at least one, name a source under discovery (dns, file), let a "
                    "scaling.launcher start them, or set discovery.agents: true beside a 'telemetry' section "
                    "so that agents can register replicas"
                ),
            )
    if telemetry is None:
        return
    yield from repeats(
        (("telemetry", "nodes", i, "name"), node.name) for i, node in enumerate(telemetry.nodes)
    )
    yield from repeats(
        (("telemetry", "nodes", i, "token_sha256"), node.token_sha256)
        for i, node in enumerate(telemetry.nodes)
        if node.token_sha256
    )
    asked = [pool.name for pool in config.pools if pool.discovery.agents]
    if telemetry.auth == "none":
        return
    if asked and telemetry.nodes and not any(node.networks for node in telemetry.nodes):
        yield (
            ("telemetry", "nodes", 0, "networks"),
            (
                f"no node has any, so no agent could register a replica for pool {asked[0]!r}; write "
                "in which networks each node's replicas are"
            ),
        )
    if not telemetry.nodes:
        yield (
            ("telemetry", "nodes"),
            ("no node is listed, so every report would be refused; list them, or set telemetry.auth: none"),
        )
    for i, node in enumerate(telemetry.nodes):
        if node.token_sha256 is None and telemetry.tls is None:
            yield (
                ("telemetry", "nodes", i, "token_sha256"),
                ("is missing; make a token with 'steersman tenant key new', or configure telemetry.tls"),
            )


def _named_models(config: Config) -> Iterator[tuple[Loc, str]]:
    if config.gateway.default_model:
        yield ("gateway", "default_model"), config.gateway.default_model
    for i, tenant in enumerate(config.tenants):
        if tenant.default_model:
            yield ("tenants", i, "default_model"), tenant.default_model
        for j, model in enumerate(tenant.models or []):
            yield ("tenants", i, "models", j), model
        for model in tenant.model_quotas:
            yield ("tenants", i, "model_quotas", model), model
