"""From a configuration to what the core and the servers are built of. Pure."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_network
from typing import Any

from extproc.config.check_upstream import is_named
from extproc.config.model import Config, EndpointConfig, KeyConfig, PoolConfig, Quota
from extproc.config.model import TenantConfig as TenantSection
from extproc.config.secret import key_secret
from extproc.config.site_checks import returns, tier_rule
from extproc.config.weights import family_weights
from extproc.core.accounts import Accounts, Price
from extproc.core.adapters import PoolAdapters
from extproc.core.attempts import AttemptLimiter
from extproc.core.bodies import BodyBounds
from extproc.core.contract import PEER_ADDRESS_HEADER
from extproc.core.experiment import arm_parameters
from extproc.core.fairqueue import QueueBounds
from extproc.core.families import Family, thresholds_for
from extproc.core.fleet import Member, PoolSpec
from extproc.core.policy import ClassSpec, Policy, SchedulerLimits, SchedulerSettings
from extproc.core.quota import QuotaLimits, ScopeLimits, limits
from extproc.core.spill.values import RateLimits, SpillAllowance, SpillRule
from extproc.core.tenant import ANONYMOUS, ApiKey, Directory, ProxyTrust, Tenant
from extproc.service.experiments import experiments_of

MS = 1_000_000
#: A pool's settings that the core takes as they stand in the file, by the same names.
_AS_IT_IS = {each.name for each in fields(PoolSpec)} & PoolConfig.model_fields.keys()
_AS_IT_IS -= {"models", "endpoints", "tenants", "adapters"}


def pool_specs(config: Config) -> list[PoolSpec]:
    """The configuration's pools as the core knows them."""
    return [
        PoolSpec(
            **{name: getattr(pool, name) for name in _AS_IT_IS},
            models=tuple(pool.models),
            endpoints=tuple(
                # Names become replicas when they were looked up.
                member_of(pool, endpoint)
                for endpoint in pool.endpoints
                if not is_named(endpoint.address)
            ),
            parameters=parameters_of(config, pool),
            tenants=None if pool.tenants is None else frozenset(pool.tenants),
            adapters=_adapters(pool),
            site="" if pool.remote is None else pool.remote.site,
            **_start_of(pool),
        )
        for pool in config.pools
    ]


def _adapters(pool: PoolConfig) -> PoolAdapters | None:
    given = pool.adapters
    if given is None:
        return None
    return PoolAdapters(
        names=frozenset(given.names),
        loaded_max=given.loaded_max,
        load_ms=given.load_ms,
        by_call=given.load is not None,
    )


def _start_of(pool: PoolConfig) -> dict[str, Any]:
    """How a pool gets its first replica."""
    scaling = pool.scaling
    if scaling is None:
        return {}
    # Its own processes begin at once; an orchestrator takes its time.
    reaction_s = scaling.reaction_s if scaling.launcher is None else 0.0
    return {
        "starts": True,
        "load_ns": round(scaling.load_time_s * 1e9),
        "reaction_ns": round(reaction_s * 1e9),
    }


def member_of(pool: PoolConfig, endpoint: EndpointConfig) -> Member:
    """A configured replica, with its pool's settings where it has none."""
    return Member(**{name: _setting(pool, endpoint, name) for name in Member._fields})


def _setting(pool: PoolConfig, endpoint: EndpointConfig, name: str) -> Any:
    own = getattr(endpoint, name)
    return getattr(pool, name, own) if own is None or own == "" else own


def parameters_of(config: Config, pool: PoolConfig) -> dict[str, dict[str, float | int | bool | str]]:
    """The pool's parameters by strategy; with one service class nobody is premium for `cost`."""
    given = {name: dict(each) for name, each in pool.strategy_parameters.items()}
    if len(config.classes) == 1:
        given.setdefault("cost", {}).setdefault("premium_ranks", 0)
    return given | arm_parameters(experiments_of(config), pool.name, given)


def directory_of(config: Config) -> Directory:
    """The configuration's tenants by what proves them. Raises ConfigError when the secret cannot be read."""
    gateway = config.gateway
    trusted = gateway.trusted_proxy
    return Directory(
        ((_tenant(tenant), [_key(key) for key in tenant.keys]) for tenant in config.tenants),
        required=gateway.auth == "api_key",
        # Without tenants there is nobody else to ask: whoever wrote the pool's `spill` allows it.
        anonymous=replace(ANONYMOUS, service_class=config.default_class, spill=SpillAllowance()),
        secret=key_secret(config.identity),
        claim=gateway.jwt.claim if gateway.jwt is not None else None,
        proxy=ProxyTrust(
            trusted.header,
            tuple(ip_network(each) for each in trusted.networks),
            PEER_ADDRESS_HEADER if gateway.client_address is not None else None,
        )
        if trusted is not None
        else None,
    )


def _tenant(tenant: TenantSection) -> Tenant:
    return Tenant(
        name=tenant.name,
        service_class=tenant.service_class,
        models=None if tenant.models is None else frozenset(tenant.models),
        default_model=tenant.default_model,
        regions=None if tenant.regions is None else frozenset(tenant.regions),
        strategy=tenant.strategy,
        jwt_subject=tenant.jwt_subject,
        certificate_sans=frozenset(tenant.certificate_sans),
        quality_floor=tenant.quality_floor,
        explain=tenant.explain,
        trace_prompts=tenant.trace_prompts,
        spill=None if tenant.spill is None else SpillAllowance(budget_per_hour=tenant.spill.budget_per_hour),
        away_model=tenant.away_model,
    )


def _key(key: KeyConfig) -> ApiKey:
    return ApiKey(
        # Its length tells nothing of the kind; the lookup tries both.
        hash=key.sha256 or key.hmac_sha256 or "",
        name=key.name,
        not_before=key.not_before.timestamp() if key.not_before is not None else None,
        expires=key.expires.timestamp() if key.expires is not None else None,
        revoked=key.revoked,
    )


def families_of(config: Config) -> dict[str, Family]:
    """The configuration's families by name. Raises ConfigError when a file of weights cannot be read."""
    return {
        family.name: Family(
            name=family.name,
            models=tuple(family.models),
            thresholds=thresholds_for(len(family.models))
            if family.thresholds is None
            else tuple(family.thresholds),
            weights=family_weights(family),
            wait_ms=family.shift_down.wait_ms if family.shift_down is not None else None,
        )
        for family in config.families
    }


def spills_of(config: Config) -> dict[str, SpillRule]:
    """Where pools' requests may go, by pool."""
    pools = {pool.name: pool for pool in config.pools}
    site = config.site
    edge = site is not None and site.tier == "edge"
    hops_max = 1 if site is None else site.hops_max
    return {
        pool.name: SpillRule(
            pool=pool.name,
            to=pool.spill.to,
            models=dict(pool.spill.models),
            wait_ms=pool.spill.wait_ms,
            attained_min=pool.spill.attained_min,
            budget_per_hour=pool.spill.budget_per_hour,
            output_tokens_max=pool.spill.output_tokens_max,
            tiers=tier_rule(pool.spill.tiers, hops_max=hops_max)
            if edge and pools[pool.spill.to].remote is not None
            else None,
            returns=returns(pool, pools[pool.spill.to]),
            after_failure=pool.spill.after_failure,
        )
        for pool in config.pools
        if pool.spill is not None
    }


def rate_limits_of(config: Config) -> dict[str, RateLimits]:
    """What is known of the minutes of pools that others spill to.

    Not of another site's, unless the file says so: its word of each second tells whether it has room, and
    what fails there comes home, so that one refusal need not close it.
    """
    pools = {pool.name: pool for pool in config.pools}
    found = {}
    for pool in config.pools:
        if pool.spill is not None:
            there = pools[pool.spill.to]
            limits = there.rate_limits
            if limits is not None:
                found[there.name] = RateLimits(**limits.model_dump())
            elif there.remote is None:
                found[there.name] = RateLimits()
    return found


def attempts_of(config: Config) -> AttemptLimiter:
    """The bound on failed attempts."""
    limits = config.identity.failed_attempts
    return AttemptLimiter(per_minute=limits.per_minute, burst=limits.burst, sources_max=limits.sources_max)


def classes_of(config: Config) -> tuple[ClassSpec, ...]:
    """The service classes, in order."""
    return tuple(
        ClassSpec(
            name=each.name,
            hold_ns=each.hold_ms * MS,
            ttft_ns=each.ttft_ms * MS,
            tpot_ns=each.tpot_ms * MS,
            long_prompt_tokens=each.long_prompt_tokens,
            long_ttft_ns=each.long_ttft_ms * MS,
            long_hold_ns=each.long_hold_ms * MS,
            retries=config.gateway.retries if each.retries is None else each.retries,
            cold_hold_ns=each.cold_hold_ms * MS,
        )
        for each in config.classes
    )


def policy_of(config: Config) -> Policy:
    """Classes, quotas, weights and prices. Grows with the tenants: a reload makes it off the loop."""
    return Policy(
        classes=classes_of(config),
        bounds=QueueBounds(
            held_max=config.limits.held_max,
            class_held_max=tuple(each.held_max for each in config.classes),
            tenants_held_max={tenant.name: tenant.held_max for tenant in config.tenants},
            ageing_ns=config.limits.ageing_ms * MS,
            oldest_after_ns=config.limits.oldest_after_ms * MS,
        ),
        accounts=Accounts(
            tenants={tenant.name: limits_of(tenant.quota) for tenant in config.tenants},
            models={
                (tenant.name, model): limits_of(quota)
                for tenant in config.tenants
                for model, quota in tenant.model_quotas.items()
            },
            keys={
                (tenant.name, _key(key).id): limits_of(key.quota)
                for tenant in config.tenants
                for key in tenant.keys
                if key.quota is not None
            },
        ),
        weights={tenant.name: tenant.weight for tenant in config.tenants},
        prices={
            pool.name: Price(
                input_per_million=pool.price.input_per_million,
                output_per_million=pool.price.output_per_million,
            )
            for pool in config.pools
        },
    )


def quota_limits(config: Config) -> QuotaLimits:
    """The quota books' bounds."""
    return QuotaLimits(
        reservation_ttl_ns=config.limits.reservation_ttl_s * 1_000_000_000,
        ended_remembered_max=config.limits.settled_remembered_max,
    )


def limits_of(quota: Quota) -> ScopeLimits:
    """A quota's limits as the books keep them."""
    return limits(**quota.model_dump())


def body_bounds(config: Config) -> BodyBounds:
    """What a body may hold."""
    limits = config.limits
    return BodyBounds(pieces_max=limits.body_pieces_max, messages_max=limits.body_messages_max)


def settings_of(config: Config) -> SchedulerSettings:
    """What the scheduler goes by. Raises ConfigError when a family's file of weights cannot be read."""
    limits = config.limits
    return SchedulerSettings(
        default_model=config.default_model,
        limits=SchedulerLimits(
            reservation_ttl_ns=limits.reservation_ttl_s * 1_000_000_000,
            reservations_max=limits.reservations_max,
            settled_remembered_max=limits.settled_remembered_max,
        ),
        policy=policy_of(config),
        families=families_of(config),
        spills=spills_of(config),
        rate_limits=rate_limits_of(config),
        zone=config.service.zone,
        hops_max=1 if config.site is None else config.site.hops_max,
    )
