"""Experiments in the file: strategies compared on live traffic, and strategies that only watch.

`steersman experiment start` writes such a section and `stop` takes it out again; the guardrail writes
`stopped` and `ended`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from extproc.config.section import Section
from extproc.config.types import Name, Parameters, StrategyName

#: Arms of one experiment, and experiments in a file.
ARMS_MAX, EXPERIMENTS_MAX = 8, 64

Reason = Annotated[str, Field(min_length=1, max_length=500)]


class ArmConfig(Section):
    """One of the strategies that are compared."""

    strategy: StrategyName
    """How its requests' replicas are chosen."""
    parameters: Parameters = Field(default_factory=dict)
    """Its strategy's parameters where they are not the pool's."""
    share: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Its share of the traffic; an equal part of what the others leave when left out."""
    stopped: Reason | None = None
    """Why it takes no more requests; written by the guardrail. Its traffic goes to the first arm."""


class GuardrailConfig(Section):
    """When an arm is stopped."""

    worse_by: float = Field(default=0.05, ge=0.0, le=1.0)
    """It seems worse than the first by more than this share of requests, in attainment or in errors, and is
    worse for certain. At 1 none is ever stopped."""


class ExperimentShadow(Section):
    """A strategy that is asked and not heeded."""

    strategy: StrategyName
    """What is asked."""
    parameters: Parameters = Field(default_factory=dict)
    """Its parameters where they are not the pool's."""
    share: float = Field(default=0.1, gt=0.0, le=1.0)
    """The share of placed requests for which it is asked: what it costs."""


class ExperimentConfig(Section):
    """Strategies side by side on some pools. Tenants with a strategy of their own are left out."""

    pools: list[Name] = Field(min_length=1, max_length=64)
    """Where it runs; a pool is in one experiment at the most."""
    arms: dict[Name, ArmConfig] = Field(default_factory=dict, max_length=ARMS_MAX)
    """What is compared, two or more; the first is the control."""
    split: Literal["request", "session", "tenant"] = "request"
    """What is drawn for an arm: single requests, whole sessions (a session_id or user, else how the
    conversation begins) or whole tenants. Sessions and tenants count once each."""
    shadow: ExperimentShadow | None = None
    """A strategy beside them that only watches; none when left out."""
    guardrail: GuardrailConfig | None = GuardrailConfig()
    """When a losing arm is stopped; null never does."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1.0)
    """The chance that all of the experiment's intervals hold, however often they are looked at."""
    starts: AwareDatetime | None = None
    """When it begins; at once when left out."""
    ends: AwareDatetime | None = None
    """When it ends; when it is stopped when left out."""
    requests_max: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """It ends when so many requests were counted, by one service since its start."""
    unit_requests: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests by which a session (20 when left out) or a tenant (500) has counted."""
    ended: Reason | None = None
    """Why it is over; written by the service when requests_max are reached."""

    @property
    def shares(self) -> dict[str, float]:
        """Every arm's share. ValueError where they do not sum to 1."""
        from extproc.core.experiment import shares_of  # late: most files have none

        return shares_of({name: arm.share for name, arm in self.arms.items()})
