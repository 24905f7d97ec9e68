"""What the configuration says of use: bounds, service classes, quotas, weights and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from extproc.core.accounts import Accounts, Price
from extproc.core.fairqueue import QueueBounds
from extproc.core.slo import ClassSpec

__all__ = ["ClassSpec", "DeskLimits", "Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskLimits:
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
