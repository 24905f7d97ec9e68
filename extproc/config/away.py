"""What Envoy does with a request while the service is away: the classes' failure modes as routes.

Owns what can truly be told without the service. Envoy verifies tokens and certificates and knows its
trusted proxy, so it knows those tenants; whose an API key is only the service knows. What a tenant was
promised (its regions, a pool of its own) holds without the service too: where Envoy cannot keep it, the
request is not served. Pure, and of the configuration alone, so that the checks, the rendering and a reload
see the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from extproc.config.model import Config, PoolConfig, ServiceClass, TenantConfig

Proof = Literal["proxy", "uri", "dns", "jwt"]


@dataclass(frozen=True, slots=True)
class Away:
    """Where a request goes: `pool` None is a 503, `floor` requests a second for each client address."""

    pool: str | None = None
    service_class: str = ""
    floor: int | None = None


@dataclass(frozen=True, slots=True)
class AwayRoute:
    """A tenant that Envoy knows by itself: the proof, its value, and where its requests go."""

    tenant: str
    proof: Proof
    value: str
    away: Away


CLOSED = Away()
#: Tenants that a sentence names.
NAMED_MAX = 3


def mode_of(config: Config, service_class: ServiceClass) -> str:
    """A class's failure mode."""
    return service_class.failure_mode or config.gateway.failure_mode


def _unknown_mode(config: Config) -> str:
    """The failure mode of requests whose tenant is not known."""
    modes = {mode_of(config, each) for each in config.classes}
    return modes.pop() if len(modes) == 1 else config.gateway.failure_mode


def fallback(config: Config) -> Away:
    """Where requests of unknown tenants go."""
    pool = config.pool_of(config.default_model)
    if _unknown_mode(config) == "closed" or pool is None or closed_by(config) is not None:
        return CLOSED
    floors = [each.requests_per_second_floor for each in config.classes if each.requests_per_second_floor]
    return Away(pool.name, config.default_class, min(floors, default=None))


def closed_by(config: Config) -> str | None:
    """Why requests of unknown tenants get 503 although the failure mode is open for them; None where they are
    served, or are not meant to be."""
    pool = config.pool_of(config.default_model)
    if _unknown_mode(config) == "closed" or pool is None:
        return None
    if pool.tenants is not None:
        return f"the default model's pool {pool.name} is reserved; set gateway.default_model to another's"
    if names := outside(config, pool):
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        return (
            f"tenants {', '.join(names[:NAMED_MAX])}{more} have regions that pool {pool.name} could leave; "
            "list its endpoints in these regions alone, or set gateway.failure_open_outside_regions: true"
        )
    return None


def outside(config: Config, pool: PoolConfig) -> list[str]:
    """The tenants whose requests could leave their regions if a pool took everybody's.

    None where the file says that they may, and none where the pool's replicas are all listed and lie where
    each of them may be served.
    """
    if config.gateway.auth == "none" or config.gateway.failure_open_outside_regions:
        return []
    found = pool.discovery
    listed = not (found.dns or found.file or config.picker.discover)
    listed = listed and not (found.agents and config.telemetry is not None)
    regions = {endpoint.region for endpoint in pool.endpoints}
    return [
        tenant.name
        for tenant in config.tenants
        if tenant.regions is not None and not (listed and regions <= set(tenant.regions))
    ]


def away_targets(config: Config) -> set[tuple[str, str]]:
    """The (pool, class) pairs that requests without a decision may go to."""
    everywhere = (fallback(config), *(route.away for route in away_routes(config)))
    return {(away.pool, away.service_class) for away in everywhere if away.pool is not None}


def away_routes(config: Config) -> list[AwayRoute]:
    """The tenants that Envoy knows by itself and treats otherwise than the rest."""
    rest = fallback(config)
    return [
        AwayRoute(tenant.name, proof, value, away)
        for tenant in config.tenants
        if (away := _away(config, tenant)) != rest
        for proof, value in known_by(config, tenant)
    ]


def known_by(config: Config, tenant: TenantConfig) -> list[tuple[Proof, str]]:
    """How Envoy alone can know a tenant."""
    gateway = config.gateway
    found: list[tuple[Proof, str]] = []
    if gateway.auth == "none":
        return found
    if gateway.trusted_proxy is not None:
        found.append(("proxy", tenant.name))
    if gateway.tls is not None and gateway.tls.client_ca is not None:
        found += [("uri" if ":" in san else "dns", san) for san in tenant.certificate_sans]
    if gateway.jwt is not None and tenant.jwt_subject is not None:
        found.append(("jwt", tenant.jwt_subject))
    return found


def _away(config: Config, tenant: TenantConfig) -> Away:
    service_class = next((each for each in config.classes if each.name == tenant.service_class), None)
    if service_class is None or mode_of(config, service_class) == "closed" or tenant.regions is not None:
        return CLOSED
    model = tenant.default_model or config.default_model
    pool = config.pool_for(model, tenant.name)
    if pool is None or (tenant.models is not None and model not in tenant.models):
        return CLOSED
    return Away(pool.name, service_class.name, service_class.requests_per_second_floor)
