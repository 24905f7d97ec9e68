"""A request between its arrival and its end, as a simulated world follows it. A value that is written."""

from __future__ import annotations

from extproc.core.outcome import Reservation
from extproc.sim.arrival import Arrival


class SimFlight:
    """A request between its decision and its end."""

    __slots__ = (
        "addresses",
        "arrival",
        "at",
        "attempts",
        "cached",
        "decided_ns",
        "first_ns",
        "idle",
        "index",
        "reservation",
        "room",
    )

    def __init__(self, index: int, arrival: Arrival) -> None:
        self.index = index
        self.arrival = arrival
        self.reservation: Reservation | None = None
        self.decided_ns = self.first_ns = -1
        self.cached = 0
        #: Where it may be tried, how often it was, and where it is.
        self.addresses: tuple[str, ...] = ()
        self.attempts = 0
        self.at = ""
        self.idle = self.room = False
