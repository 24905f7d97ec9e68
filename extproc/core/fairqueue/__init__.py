"""Fair queueing: who waits while replicas are full, who goes next, and who is turned away."""

from __future__ import annotations

from extproc.core.fairqueue.order import EarliestDeadline, FeasibleFirst, Order
from extproc.core.fairqueue.queue import TRIES_MAX, FairQueue, Waits
from extproc.core.fairqueue.queued import NEVER_NS, Cost, QueueBounds, QueuedRequest, Shed, Tokens

__all__ = [
    "NEVER_NS",
    "TRIES_MAX",
    "Cost",
    "EarliestDeadline",
    "FairQueue",
    "FeasibleFirst",
    "Order",
    "QueueBounds",
    "QueuedRequest",
    "Shed",
    "Tokens",
    "Waits",
]
