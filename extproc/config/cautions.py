"""What a configuration allows, or does not do, that who wrote it may not have meant: good, but said.

Owns the sentences that `steersman check` and a service's start say. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from extproc.config.away import closed_by
from extproc.config.model import Config, Quota
from extproc.config.places import loopback


def open_ports(config: Config) -> list[tuple[str, str]]:
    """Where the service listens for Envoy beyond this machine and asks nobody for proof: the setting, the
    address."""
    service = config.service
    if service.token_file or service.token_env or (service.tls is not None and service.tls.client_ca):
        return []
    told = [("listen", each) for each in service.listen]
    told += [("ads_listen", each) for each in service.ads_listen]
    return [(f"service.{name}", where) for name, where in told if not loopback(where)]


def cautions(config: Config) -> Iterator[str]:
    """Each as `PATH: what is so; what to do`."""
    for setting, where in open_ports(config):
        gets = "endpoints" if setting == "service.ads_listen" else "decisions and endpoints"
        yield (
            f"{setting}: {where} is not loopback, and whoever reaches it gets {gets}; "
            "set service.token_file (or token_env), or service.tls with client_ca"
        )
    service, several = config.service, len(config.service_addresses) > 1
    if several and config.sharing is None and not (service.token_file or service.token_env):
        yield (
            "gateway.services: several services without sharing do not know each other's decisions, and each "
            "counts its own requests alone; set service.token_file (or token_env), the same for all"
        )
    if not any(pool.scaling for pool in config.pools):
        for name in ("external_scaler", "webhook", "pod_deletion_cost"):
            if getattr(config.scaling, name) is not None:
                yield (
                    f"scaling.{name}: no pool scales, so nobody is ever told anything; "
                    "give a pool 'scaling: {max_replicas: …}'"
                )
    yield from _open_and_closed(config)
    yield from _left_on_retries(config)
    yield from _forgotten(config)


def left_out(config: Config) -> Iterator[str]:
    """Replicas that a rendered Envoy of mode static does not know, each as `PATH: what is so; what to do`."""
    mend = "render with --mode ads, or list them under endpoints as well"
    for i, pool in enumerate(config.pools):
        if pool.discovery.file:
            yield f"pools[{i}].discovery.file: its replicas are unknown to an Envoy of mode static; {mend}"
        if pool.discovery.agents and config.telemetry is not None:
            yield (
                f"pools[{i}].discovery.agents: replicas that agents register are unknown to an Envoy of mode "
                f"static; {mend}"
            )


def _open_and_closed(config: Config) -> Iterator[str]:
    """A failure mode `open` that is closed, since a tenant was promised more."""
    if (why := closed_by(config)) is not None:
        yield (
            "gateway.failure_mode: open, and still 503 while the service is away to whoever has an API key, "
            f"since Envoy cannot tell whose it is: {why}"
        )


def _left_on_retries(config: Config) -> Iterator[str]:
    """Regions and reserved pools that hang on another's gateway."""
    bound = any(tenant.regions is not None for tenant in config.tenants)
    bound = bound or any(pool.tenants is not None for pool in config.pools)
    if bound and config.picker.enabled and config.picker.tries == 1:
        yield (
            "picker.tries: is 1, and a gateway that retries on its own account leaves tenants' regions and "
            "reserved pools; set it to the gateway's retries and one"
        )


def _forgotten(config: Config) -> Iterator[str]:
    """Quotas that a restart begins anew."""
    if config.sharing is not None or (config.state.enabled and config.state.dir is not None):
        return
    if not any(map(_limits, _quotas(config))):
        return
    if config.state.enabled:
        yield (
            "state.dir: is not set, and 'steersman serve' begins quotas and budgets anew at a restart; "
            "set it ('up' has a folder of its own)"
        )
    else:
        yield "state.enabled: is false, and quotas and budgets begin anew when the service restarts"


def _quotas(config: Config) -> list[Quota]:
    """Every quota of the file: of tenants, of their models and of their keys."""
    return [
        quota
        for tenant in config.tenants
        for quota in (
            tenant.quota,
            *tenant.model_quotas.values(),
            *(key.quota for key in tenant.keys if key.quota is not None),
        )
    ]


def _limits(quota: Quota) -> bool:
    shaped = ("burst", "borrow")
    return any(value is not None for name, value in quota if name not in shaped)
