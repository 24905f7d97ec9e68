"""Fair queueing: who waits while replicas are full, who goes next, and who is turned away."""

from __future__ import annotations

from extproc.core.fairness.held import NEVER_NS, Bounds, Cost, Held, Shed, Work
from extproc.core.fairness.order import EarliestDeadline, FeasibleFirst, FirstCome, Order
from extproc.core.fairness.queue import TRIES_MAX, FairQueue, Waits

__all__ = [
    "NEVER_NS",
    "TRIES_MAX",
    "Bounds",
    "Cost",
    "EarliestDeadline",
    "FairQueue",
    "FeasibleFirst",
    "FirstCome",
    "Held",
    "Order",
    "Shed",
    "Waits",
    "Work",
]
