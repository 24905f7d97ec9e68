"""The section of Prometheus' metrics: how many label values there may be."""

from __future__ import annotations

from pydantic import Field

from extproc.config.section import Section


class MetricsConfig(Section):
    """Bounds of the metrics at the admin port's /metrics. What is over them is summed as 'other', or left out
    where a sum says nothing."""

    tenants_max: int = Field(default=100, ge=1, le=10_000)
    """Tenants with series of their own. With more tenants than this, half of the places go to those that come
    first and half to those that weigh most. A name that was given stays until the service restarts, so a
    lower number holds for new names alone."""
    endpoints_max: int = Field(default=1_000, ge=0, le=10_000)
    """Endpoints with series of their own (with their GPUs); the others are in their pool's sums alone."""
