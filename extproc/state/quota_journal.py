"""What Redis has yet to hear of reservations: in order, once for each, bounded.

Owns what becomes of two operations on the same reservation before either was sent. Everything here may be
sent twice without harm: the scripts know ids and attempts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from extproc.core.quota.values import Account
from extproc.state.quota_lease import LeasedReservation, Units, told

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
    units: Units = (0, 0, 0, 0, 0)

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


def ending(op: Op) -> dict[str, Any]:
    """The operation for quota_settle.lua."""
    entry = op.entry
    taken = entry.taken if entry else None
    buckets: list[list[Any]] = []
    at = 0
    for name, limits in op.account.scopes:
        for bucket in limits.buckets:
            field, unit_cost = f"{name}/{bucket.name}", bucket.window_ns / bucket.limit
            if taken is not None and taken.borrowed >> at & 1:
                field, unit_cost = field + "~", bucket.window_ns / bucket.extra
            paid = entry.costs[at] if entry is not None and entry.paid else 0
            buckets.append([field, paid, bucket.unit, unit_cost])
            at += 1
    return {
        "how": op.how,
        "id": op.id,
        "attempt": entry.attempt if entry else "",
        "epoch": entry.epoch if entry else "",
        "own": entry is not None,
        "c": [name for name, limits in op.account.scopes if limits.concurrent is not None]
        if entry is not None and entry.unheard
        else [],
        "a": list(op.units),
        "b": buckets,
    }
