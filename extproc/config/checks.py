"""The checks across sections: what is wrong only in the light of another setting.

Owns locations and their spelling. Each message says what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.model import Config

Loc = tuple[str | int, ...]


def cross_checks(config: Config) -> Iterator[tuple[Loc, str]]:
    """Yield (location, message) for each mistake that only shows between sections."""
    yield from _repeats((("pools", i, "name"), pool.name) for i, pool in enumerate(config.pools))
    yield from _repeats((("tenants", i, "name"), tenant.name) for i, tenant in enumerate(config.tenants))
    yield from _repeats(
        (("pools", i, "models", j), model)
        for i, pool in enumerate(config.pools)
        for j, model in enumerate(pool.models)
    )
    yield from _repeats(
        (("pools", i, "endpoints", j, "address"), endpoint.address)
        for i, pool in enumerate(config.pools)
        for j, endpoint in enumerate(pool.endpoints)
    )
    yield from _repeats(
        (("tenants", i, "keys", j, "sha256"), key.sha256)
        for i, tenant in enumerate(config.tenants)
        for j, key in enumerate(tenant.keys)
    )
    served = sorted({model for pool in config.pools for model in pool.models})
    for location, model in _named_models(config):
        if model not in served:
            yield location, f"no pool serves {model!r}; pools serve {', '.join(served)}"
    for i, tenant in enumerate(config.tenants):
        if tenant.models is not None and tenant.default_model and tenant.default_model not in tenant.models:
            yield (
                ("tenants", i, "default_model"),
                (f"{tenant.default_model!r} is not among the tenant's models; add it to tenants[{i}].models"),
            )
        if config.gateway.auth == "api_key" and not tenant.keys:
            yield (
                ("tenants", i, "keys"),
                ("the tenant has no key and can never be let in; make one with 'steersman tenant key new'"),
            )
    if config.gateway.auth == "api_key" and not config.tenants:
        yield (
            ("tenants",),
            (
                "gateway.auth is 'api_key' but no tenant is listed, so every request would get 401; "
                "list a tenant with a key, or set gateway.auth: none"
            ),
        )
    yield from _sources(config)
    if config.limits.reservation_ttl_s < 3 * config.gateway.heartbeat_s:
        yield (
            ("limits", "reservation_ttl_s"),
            (
                f"{config.limits.reservation_ttl_s} s is less than three heartbeats; running requests would "
                f"expire. Write {3 * config.gateway.heartbeat_s} or more, or lower gateway.heartbeat_s"
            ),
        )
    yield from _repeats((("service", "listen", i), where) for i, where in enumerate(config.service.listen))
    if config.gateway.listen == config.gateway.envoy_admin:
        yield ("gateway", "envoy_admin"), f"{config.gateway.listen} is gateway.listen's too; use another port"


def _sources(config: Config) -> Iterator[tuple[Loc, str]]:
    """Pools that could never have an endpoint, and agents that could never be believed."""
    telemetry = config.telemetry
    for i, pool in enumerate(config.pools):
        found = pool.discovery
        agents = found.agents and telemetry is not None
        if not pool.endpoints and not found.dns and not found.file and not agents:
            yield (
                ("pools", i, "endpoints"),
                (
                    "is empty; list at least one, name a source under discovery (dns, file), or add a "
                    "'telemetry' section so that agents can register replicas"
                ),
            )
    if telemetry is None:
        return
    yield from _repeats(
        (("telemetry", "nodes", i, "name"), node.name) for i, node in enumerate(telemetry.nodes)
    )
    yield from _repeats(
        (("telemetry", "nodes", i, "token_sha256"), node.token_sha256)
        for i, node in enumerate(telemetry.nodes)
        if node.token_sha256
    )
    if telemetry.auth == "none":
        return
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


def _repeats(items: Iterator[tuple[Loc, str]]) -> Iterator[tuple[Loc, str]]:
    seen: dict[str, Loc] = {}
    for location, value in items:
        if value in seen:
            yield location, f"{value!r} is already at {dotted(seen[value])}; each must be the only one"
        else:
            seen[value] = location


def _named_models(config: Config) -> Iterator[tuple[Loc, str]]:
    if config.gateway.default_model:
        yield ("gateway", "default_model"), config.gateway.default_model
    for i, tenant in enumerate(config.tenants):
        if tenant.default_model:
            yield ("tenants", i, "default_model"), tenant.default_model
        for j, model in enumerate(tenant.models or []):
            yield ("tenants", i, "models", j), model


def dotted(location: Loc) -> str:
    """`("pools", 0, "name")` as `pools[0].name`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
