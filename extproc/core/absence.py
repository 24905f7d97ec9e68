"""What our own absence does to what we judge by its age: nothing, until there was time to hear again.

A service that stalls finds every agent silent, for their reports lie unread, or come late by as long. Its
telemetry does not age further until the agents had time to be heard. Pure: the time comes as `now_ns`.
"""

from __future__ import annotations

#: A step that comes so much later than it was due means that we were away.
AWAY_NS = 500_000_000
#: So long nobody's silence counts after that: an agent gives its stream up after 3 s at the most.
HEARING_NS = 3_000_000_000
#: So long silence counts again at the least, also where we are late all the time.
JUDGING_NS = HEARING_NS


class Absence:
    """As of when ages are judged."""

    __slots__ = ("_as_of_ns", "_judging_ns", "_until_ns", "count")

    def __init__(self) -> None:
        #: Absences that were made allowance for.
        self.count = 0
        self._as_of_ns = self._until_ns = self._judging_ns = 0

    def away(self, *, since_ns: int, now_ns: int) -> None:
        """We are back from an absence: what is silent is as old as when we left, for a while."""
        if now_ns - since_ns >= AWAY_NS and now_ns >= self._judging_ns:
            self._as_of_ns, self._until_ns = since_ns, now_ns + HEARING_NS
            self._judging_ns = self._until_ns + JUDGING_NS
            self.count += 1

    def as_of_ns(self, *, now_ns: int) -> int:
        """The time for ages: the present one, or while we hear again when we left."""
        return self._as_of_ns if now_ns < self._until_ns else now_ns
