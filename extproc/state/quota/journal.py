"""What Redis has yet to hear of reservations: in order, once for each, bounded.

Owns what becomes of two operations on the same reservation before either was sent. Everything here may be
sent twice without harm: the scripts know ids and attempts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Literal

from extproc.core.quota.values import NO_UNITS, Account, Units
from extproc.state.quota.lease import LeasedReservation, told

#: Operations kept while Redis is away; above it the oldest go, and are counted.
JOURNAL_MAX = 50_000

How = Literal["enter", "settle", "cancel", "renew"]


@dataclass(slots=True)
class Op:
    """One operation; `entry` is None for a reservation of another service."""

    how: How
    id: str
    account: Account
    entry: LeasedReservation | None
    units: Units = NO_UNITS

    @property
    def key(self) -> tuple[str, str]:
        """An id may be cancelled and reserved again: another attempt."""
        return (self.id, self.entry.attempt if self.entry else "")


class Journal:
    """Operations by reservation and attempt, the oldest first."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self._ops: OrderedDict[tuple[str, str], Op] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ops)

    def put(self, op: Op) -> None:
        """Add; what is settled or cancelled need not be entered first."""
        pending = self._ops.get(op.key)
        if pending is not None and op.how in ("renew", "enter"):
            if pending.how == "renew" == op.how:
                pending.units = op.units
            return
        self._ops[op.key] = op
        if len(self._ops) > JOURNAL_MAX:
            self._drop()

    def waits(self, op: Op) -> bool:
        """Whether more of the same attempt than that it runs has yet to be said."""
        pending = self._ops.get(op.key)
        return pending is not None and pending.how != "renew"

    def _drop(self) -> None:
        _, op = self._ops.popitem(last=False)
        self.counts["journal_dropped"] += 1
        if op.entry is not None:
            told(op.entry)

    def take(self, most: int) -> list[Op]:
        """Remove the oldest."""
        return [self._ops.popitem(last=False)[1] for _ in range(min(most, len(self._ops)))]

    def put_back(self, ops: list[Op]) -> None:
        """They were perhaps not heard: first again, unless a later one says it all."""
        for op in reversed(ops):
            if op.key not in self._ops or self._ops[op.key].how == "renew":
                self._ops[op.key] = op
                self._ops.move_to_end(op.key, last=False)
        while len(self._ops) > JOURNAL_MAX:
            self._drop()
