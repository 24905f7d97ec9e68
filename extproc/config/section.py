"""What every section of the file is, and the sections that pools and classes share."""

from __future__ import annotations

import os
from typing import Final

# Pydantic looks for plugins in every distribution that is installed, at each start; nobody has one for us.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from pydantic import BaseModel, ConfigDict, Field

#: Of a setting of pools or of the gateway: the service's alone, so that a reload may change it. What is not
#: marked is Envoy's as well.
RELOADABLE: Final = object()


def reloadable(section: type[BaseModel]) -> frozenset[str]:
    """The settings of a section that are so marked."""
    return frozenset(name for name, field in section.model_fields.items() if RELOADABLE in field.metadata)


class Section(BaseModel):
    """A section of the file: unknown keys are mistakes, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class CircuitBreakers(Section):
    """Envoy's limits for one upstream cluster."""

    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Connections open at once."""
    max_pending_requests: int = Field(default=1024, ge=1, le=1_000_000)
    """Requests that wait for a connection."""
    max_requests: int = Field(default=4096, ge=1, le=1_000_000)
    """Requests in flight at once."""
    max_retries: int = Field(default=64, ge=0, le=1_000_000)
    """Retries in flight at once."""


class OutlierDetection(Section):
    """When Envoy itself sets an endpoint aside."""

    consecutive_5xx: int = Field(default=5, ge=1, le=1000)
    """Server errors in a row before an endpoint is ejected."""
    base_ejection_ms: int = Field(default=5_000, ge=100, le=3_600_000)
    """How long the first ejection lasts; later ones grow by the same."""
    max_ejection_percent: int = Field(default=50, ge=0, le=100)
    """The share of a pool that may be ejected at once."""
