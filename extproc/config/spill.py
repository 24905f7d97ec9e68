"""Spill-over in the file: when requests go to another pool, such as a provider's, and for how much."""

from __future__ import annotations

from pydantic import Field

from extproc.config.section import Section
from extproc.config.sites import TiersConfig
from extproc.config.types import ModelName, Name

#: More than anybody pays in an hour.
BUDGET_MAX = 1e9


class SpillConfig(Section):
    """Requests that this pool cannot serve in time go to another one, of tenants that allow it
    (`tenants[].spill`)."""

    to: Name
    """The pool that they go to. It has no `spill` of its own."""
    models: dict[ModelName, ModelName] = Field(default={})
    """What its models are called there; the same when left out."""
    wait_ms: float | None = Field(default=2_000.0, ge=0.0, le=600_000.0)
    """When a request would begin later than this here; null never spills for load, only while no replica of
    this pool is ready."""
    attained_min: float | None = Field(default=None, gt=0.0, le=1.0)
    """Also when a smaller share than this of the pool's requests of the last minute (20 at least) met their
    class's targets; not looked at when left out."""
    budget_per_hour: float | None = Field(default=None, gt=0.0, le=BUDGET_MAX)
    """What spilled requests may cost in any hour, by the other pool's `price`; no bound when left out.
    Several services have equal shares of it."""
    after_failure: bool = False
    """Whether a request that all replicas tried here refuse or fail is tried there, as the last of its tries.
    What it can cost there is kept free in the budgets for each request that is served here, until its end."""
    output_tokens_max: int = Field(default=4_096, ge=1, le=1_000_000)
    """What a request counts as before its end that sets no limit on its output."""
    tiers: TiersConfig = TiersConfig()
    """Where the other pool is a site's (`remote`) and this one's `site.tier` is edge: when a request goes, in
    place of the times above, and of every tenant (docs/sites.md)."""


class TenantSpill(Section):
    """A tenant whose requests, and with them its prompts, may go to other pools."""

    budget_per_hour: float | None = Field(default=None, gt=0.0, le=BUDGET_MAX)
    """What its spilled requests of one pool may cost in any hour; only the pool's bound when left out."""


class RateLimitsConfig(Section):
    """What a provider lets our account do. Requests are not spilled there beyond it."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    """Requests in any minute; not bounded when left out. Several services have equal shares."""
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    """Tokens in any minute, input and output; a spilled request counts as the most that it can be."""
