"""Label values, bounded: who has series of its own, and who is summed as `other`.

A series must never go backwards while the process lives, so a name that was given is never taken back, and
what was counted as `other` stays there: a tenant that gets its name later begins at 0. Hence the places
must go to the right ones at once, or be kept for them (`Tenants`).
"""

from __future__ import annotations

from collections.abc import Iterable

#: The sum of all that have no series of their own. A tenant of this name is part of it.
OTHER = "other"
#: Whose request it was is not known. No tenant can be called so.
NOBODY = "(none)"

#: Unnamed tenants whose weight is followed, for each place; and at the most.
CANDIDATES_PER_PLACE, CANDIDATES_MAX = 4, 2_048
#: No tenant is named for less weight than this.
PROMOTE_WEIGHT_MIN = 50.0
#: Past weights are halved when they have come to so much: who weighs now counts, not who once did.
WEIGHT_MAX = 100_000.0


class Labels:
    """The first `most` names have their own value, whatever comes later is `other`."""

    __slots__ = ("_known", "most")

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self.most = most
        self._known: dict[str, None] = dict.fromkeys(known)

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str) -> str:
        """The label value of a name."""
        if name in self._known:
            return name
        if name == OTHER or len(self._known) >= self.most:
            return OTHER
        self._known[name] = None
        return name


class Tenants:
    """At most `most` tenants have a name; `expected` is how many tenants there are.

    Where there are no more tenants than places, each has one. Else half of the places go to who comes first,
    and half are kept for who turns out to be heavy: whose weight is at least 1/(2 · most) of what all unnamed
    tenants weigh together.
    """

    def __init__(self, most: int, *, expected: int) -> None:
        self.most = most
        self.expected = expected
        #: In the order in which they were named.
        self.named: dict[str, None] = {}
        self._heavy = Heavy(min(CANDIDATES_PER_PLACE * most, CANDIDATES_MAX))

    def apply(self, most: int, *, expected: int) -> None:
        """Other bounds hold from now on; who has a name keeps it."""
        if most != self.most:
            self._heavy = Heavy(min(CANDIDATES_PER_PLACE * most, CANDIDATES_MAX))
        self.most, self.expected = most, expected

    def of(self, name: str, *, weight: float = 1.0) -> str:
        """A tenant's label value; `weight` (a request is 1) counts where it has no name yet."""
        if name in self.named:
            return name
        if not name:
            return NOBODY
        if self.met(name):
            return name
        if name == OTHER or len(self.named) >= self.most or not self._is_heavy(name, weight):
            return OTHER
        self.named[name] = None
        return name

    def met(self, name: str) -> bool:
        """A tenant asks, whatever for: it is named if there is a place for who comes first; whether it is."""
        if name in self.named:
            return True
        first = self.most if self.expected <= self.most else (self.most + 1) // 2
        if len(self.named) >= first or name in ("", OTHER):
            return False
        self.named[name] = None
        return True

    def _is_heavy(self, name: str, weight: float) -> bool:
        heavy = self._heavy
        own = heavy.add(name, weight)
        if own < PROMOTE_WEIGHT_MIN or own * 2 * self.most < heavy.total:
            return False
        heavy.forget(name)
        return True


class Heavy:
    """Who weighs most among many, with bounded memory: counts that are never too high.

    When the table is full its median is taken off every count and what is left of nothing is forgotten, so
    that an addition costs O(1) over time and a count is too low by 2 · total / most at the worst (Anderson et
    al., "A High-Performance Algorithm for Identifying Frequent Items in Data Streams", IMC 2017).
    """

    __slots__ = ("_counts", "most", "total")

    def __init__(self, most: int) -> None:
        self.most = most
        #: What everybody weighs that is not forgotten on purpose.
        self.total = 0.0
        self._counts: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, name: str, weight: float) -> float:
        """Take a weight; what the name weighs at the least."""
        counts = self._counts
        if name not in counts and len(counts) >= self.most:
            self._purge()
        self.total += weight
        own = counts[name] = counts.get(name, 0.0) + weight
        if self.total > WEIGHT_MAX:
            self.total /= 2.0
            for each in counts:
                counts[each] /= 2.0
        return own

    def forget(self, name: str) -> None:
        """It is no longer looked for."""
        self.total -= self._counts.pop(name, 0.0)

    def _purge(self) -> None:
        counts = self._counts
        median = sorted(counts.values())[len(counts) // 2]
        for name in [name for name, count in counts.items() if count <= median]:
            del counts[name]
        for name in counts:
            counts[name] -= median
