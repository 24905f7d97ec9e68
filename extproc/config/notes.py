"""What is no mistake in a configuration, and may surprise all the same: said by `steersman check`."""

from __future__ import annotations

from extproc.config.model import Config, Quota


def notes_of(config: Config) -> list[str]:
    """One sentence each."""
    return _forgotten(config)


def _forgotten(config: Config) -> list[str]:
    """Quotas that a restart begins anew."""
    if config.sharing is not None or (config.state.enabled and config.state.dir is not None):
        return []
    if not any(map(_limits, _quotas(config))):
        return []
    if not config.state.enabled:
        return ["state.enabled is false: quotas and budgets begin anew when the service restarts"]
    return [
        "state.dir is not set: 'steersman serve' begins quotas and budgets anew at a restart ('up' does not)"
    ]


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
