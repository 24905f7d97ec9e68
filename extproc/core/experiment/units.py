"""Tenants or sessions as the units of an experiment: each counts once, by the mean of its requests.

Where a unit is drawn for an arm as a whole, its requests are no independent draws: a hundred requests of one
tenant say hardly more than one of what the arm does to tenants. So a unit's requests are gathered until there
are `requests_max` of them, or it was quiet for a while, and then their mean is one value. What the unit asks
for after that is in the plain figures and in no interval.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from extproc.core.experiment.results import ArmResults
from extproc.core.slo import Sample

#: A unit that was quiet for this long counts with what it has.
QUIET_NS = 600 * 1_000_000_000
#: Units gathering at once; above it the one that was quiet longest counts with what it has.
GATHERING_MAX = 10_000
#: Units known to have counted; one that was forgotten counts once more if it comes again.
COUNTED_MAX = 200_000


@dataclass(slots=True)
class _Unit:
    arm: ArmResults
    last_ns: int
    requests: int = 0
    attained: int = 0
    judged: int = 0
    errors: int = 0
    ended: int = 0
    ttft_ms: float = 0.0
    timed: int = 0


class Units:
    """All units of one experiment."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._gathering: OrderedDict[int, _Unit] = OrderedDict()
        self._counted: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._gathering)

    def add(self, unit: int, arm: ArmResults, sample: Sample, *, now_ns: int) -> None:
        """A unit's request has ended."""
        if unit in self._counted:
            return
        each = self._gathering.get(unit)
        if each is None:
            each = self._gathering[unit] = _Unit(arm, now_ns)
            if len(self._gathering) > GATHERING_MAX:
                self._count(next(iter(self._gathering)))
        else:
            self._gathering.move_to_end(unit)
        each.last_ns = now_ns
        each.requests += 1
        if sample.attained is not None:
            each.judged += 1
            each.attained += sample.attained
        if sample.error is not None:
            each.ended += 1
            each.errors += sample.error
        if sample.ttft_ms is not None:
            each.timed += 1
            each.ttft_ms += sample.ttft_ms
        if each.requests >= self._requests_max:
            self._count(unit)

    def step(self, *, now_ns: int, quiet_ns: int = QUIET_NS) -> None:
        """Count who has been quiet."""
        while self._gathering:
            unit, each = next(iter(self._gathering.items()))
            if now_ns - each.last_ns < quiet_ns:
                return
            self._count(unit)

    def _count(self, unit: int) -> None:
        each = self._gathering.pop(unit)
        self._counted[unit] = None
        if len(self._counted) > COUNTED_MAX:
            self._counted.popitem(last=False)
        each.arm.test(
            each.attained / each.judged if each.judged else None,
            each.errors / each.ended if each.ended else None,
            each.ttft_ms / each.timed if each.timed else None,
        )
