"""The cheapest fleet that attains a target: for each kind of replica the fewest, then the cheapest kind.

Owns the search. More replicas are taken to attain no less, so the fewest is found by doubling and halving;
all kinds go on together, so that processes have something to do. A kind of which the most replicas are not
enough is told as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from extproc.lab.capacity.choice import FleetChoice
from extproc.lab.capacity.figures import FleetFigures
from extproc.lab.capacity.plays import FleetPlays


@dataclass(frozen=True, slots=True)
class FewestReplicas:
    """Of one kind the fewest that attain the target, and one fewer; `enough` None: the most do not."""

    kind: FleetChoice
    enough: FleetFigures | None
    #: The most that are not enough; None where one replica is.
    short: FleetFigures | None

    @property
    def cost_per_hour(self) -> float | None:
        """Of the fewest; None where none are enough, or no price is known."""
        return self.enough.cost_per_hour if self.enough is not None else None


class _Search:
    """Where one kind's search stands: `low` is not enough, `high` is; 0 where not known yet."""

    def __init__(self, kind: FleetChoice, begin: int, most: int) -> None:
        self.kind, self.most = kind, most
        self.low = self.high = 0
        self.next = min(max(begin, 1), most)
        self.over = False

    @property
    def choice(self) -> FleetChoice:
        return replace(self.kind, replicas=self.next)

    def take(self, *, enough: bool) -> None:
        if enough:
            self.high = self.next
        else:
            self.low = self.next
        if self.high:
            self.over = self.high - self.low <= 1
            self.next = (self.low + self.high) // 2
        else:
            self.over = self.low >= self.most
            self.next = min(self.most, self.low * 2)


def fewest(
    plays: FleetPlays, kinds: Sequence[FleetChoice], *, target: float, most: int
) -> list[FewestReplicas]:
    """For each kind the fewest of at most `most` replicas that attain `target` (0..1). Raises LogError."""
    begin = len(plays.scene.machines)
    searches = [_Search(kind, begin, most) for kind in kinds]
    while left := [each for each in searches if not each.over]:
        for search, found in zip(left, plays.figures([each.choice for each in left]), strict=True):
            search.take(enough=found.attainment >= target)
    return [
        FewestReplicas(
            each.kind,
            _at(plays, each.kind, each.high),
            _at(plays, each.kind, each.low),
        )
        for each in searches
    ]


def _at(plays: FleetPlays, kind: FleetChoice, replicas: int) -> FleetFigures | None:
    return plays.figures([replace(kind, replicas=replicas)])[0] if replicas else None


def cheapest(found: Sequence[FewestReplicas]) -> FewestReplicas | None:
    """By cost where every price is known, else by cards, then by replicas; None where no kind is enough."""
    able = [each for each in found if each.enough is not None]
    priced = all(each.cost_per_hour is not None for each in able)

    def key(each: FewestReplicas) -> tuple[float, int, int]:
        assert each.enough is not None
        cost = each.cost_per_hour if priced and each.cost_per_hour is not None else 0.0
        return cost, each.enough.gpus, each.enough.replicas

    return min(able, key=key, default=None)
