"""An order of the fair queue to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.core.fairqueue import NEVER_NS, QueuedRequest


@dataclass(frozen=True, slots=True)
class FirstCome:
    """By arrival, nobody is ever lost. For comparison: in a central queue worse than no queue."""

    name: str = "first_come"

    def key(self, held: QueuedRequest) -> float:
        return held.arrived_ns

    def lost_ns(self, held: QueuedRequest) -> int:
        return NEVER_NS

    def last_ns(self, held: QueuedRequest) -> int:
        return held.shed_at_ns
