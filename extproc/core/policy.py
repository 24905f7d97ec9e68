"""What the configuration says of use: bounds, service classes, quotas, weights and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.core.accounts import Accounts, Price
from extproc.core.fairqueue import QueueBounds
from extproc.core.families import NONE, Family
from extproc.core.slo import ClassSpec
from extproc.core.spill.values import NO_RULES, RateLimits, SpillRule

__all__ = ["ClassSpec", "Policy", "SchedulerLimits", "SchedulerSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The scheduler's named bounds (config: limits)."""

    reservation_ttl_ns: int = 60 * 1_000_000_000
    reservations_max: int = 100_000
    settled_remembered_max: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the configuration says of tenants' use: classes (the first served first), quotas, prices."""

    classes: tuple[ClassSpec, ...] = (ClassSpec(),)
    bounds: QueueBounds = field(default_factory=QueueBounds)
    accounts: Accounts = field(default_factory=Accounts)
    weights: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)

    def rank(self, service_class: str) -> int:
        """A class's place, 0 first; an unknown one is the last."""
        for i, each in enumerate(self.classes):
            if each.name == service_class:
                return i
        return len(self.classes) - 1

    def weight(self, tenant: str) -> float:
        """A tenant's weight in the fair queue."""
        return self.weights.get(tenant, 1.0)

    def price(self, pool: str) -> Price:
        """What a pool's tokens cost."""
        return self.prices.get(pool, FREE)


FREE = Price()


@dataclass(slots=True, kw_only=True)
class SchedulerSettings:
    """What the configuration says now. One object for all who go by it: a reload changes what is in it."""

    default_model: str
    limits: SchedulerLimits
    policy: Policy
    #: By name, what clients may ask for instead of a model.
    families: Mapping[str, Family] = field(default_factory=lambda: NONE)
    #: By pool, where its requests may go; and what a pool's provider lets our account do.
    spills: Mapping[str, SpillRule] = field(default_factory=lambda: NO_RULES)
    rate_limits: Mapping[str, RateLimits] = field(default_factory=dict)
    #: How many gateways may send a request on, one after the other.
    hops_max: int = 1
    #: Where we are; endpoints elsewhere carry their pool's handicap.
    zone: str = ""

    def take(self, other: SchedulerSettings) -> None:
        """What another says, but for where we are: that never changes."""
        self.default_model, self.limits = other.default_model, other.limits
        self.policy, self.families = other.policy, other.families
        self.spills, self.rate_limits = other.spills, other.rate_limits
        self.hops_max = other.hops_max
