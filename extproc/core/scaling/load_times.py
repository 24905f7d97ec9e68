"""How long replicas take from their beginning to their first readiness, by pool, hardware and cold or warm.

Owns the measuring and the quantiles. Three tell of loads: agents (a replica's state), the service's own looks
at health pages, and whoever starts replicas itself (`loaded`). What was ready when it was first seen has
shown no load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import isfinite
from typing import Final, NamedTuple

from extproc.core.scaling.values import LoadTime, ReplicaStage

#: Loads that are kept of each pool, hardware and cold or warm: the newest count.
KEPT_MAX: Final = 32
#: So many say as much as the file alone does.
PRIOR_LOADS: Final = 2
#: A load is within these seconds, or is no load: a start within a moment is a replica that was there.
SECONDS_MIN: Final = 0.2
SECONDS_MAX: Final = 7_200.0
#: Where nobody said that it loads, what is ready sooner after it was first heard of was there before.
UNSAID_MIN_S: Final = 3.0
#: Kinds of hardware that are told apart in all pools together.
KEYS_MAX: Final = 1_024
#: Replicas whose loading is watched at once.
WATCHED_MAX: Final = 10_000

NS: Final = 1_000_000_000


class LoadKey(NamedTuple):
    """Of what a load was: `cold` where weights were not there yet, None where nobody says."""

    pool: str
    hardware: str
    cold: bool | None


class LoadTimes:
    """All pools' load times."""

    def __init__(self) -> None:
        self._kept: dict[LoadKey, deque[float]] = {}
        #: Since when a replica starts or loads, by pool and address, and whether somebody said that it loads.
        self._began: dict[tuple[str, str], tuple[int, bool]] = {}
        #: Those that were told of by whoever started them: looks count nothing there.
        self._told: set[tuple[str, str]] = set()

    def loaded(self, pool: str, hardware: str, seconds: float, cold: bool | None = None) -> None:
        """A replica was ready so many seconds after it was begun; what is no load is left out."""
        if not (isfinite(seconds) and SECONDS_MIN <= seconds <= SECONDS_MAX):
            return
        key = LoadKey(pool, hardware, cold)
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= KEYS_MAX:
                return
            kept = self._kept[key] = deque(maxlen=KEPT_MAX)
        kept.append(seconds)

    def saw(self, pool: str, address: str, stage: ReplicaStage, hardware: str, *, now_ns: int) -> None:
        """A replica is at a stage; called as often as is looked."""
        at = (pool, address)
        if stage in ("starting", "loading"):
            if at in self._began or len(self._began) < WATCHED_MAX:
                began_ns, said = self._began.get(at, (now_ns, False))
                self._began[at] = began_ns, said or stage == "loading"
        elif stage == "ready":
            began_ns, said = self._began.pop(at, (now_ns, False))
            seconds = (now_ns - began_ns) / NS
            if at not in self._told and (said or seconds >= UNSAID_MIN_S):
                self.loaded(pool, hardware, seconds)
        else:
            self._began.pop(at, None)

    def launched(self, pool: str, address: str) -> None:
        """Whoever starts this one tells of its loads itself, with `loaded`."""
        if len(self._told) < WATCHED_MAX:
            self._told.add((pool, address))

    def only(self, addresses: Iterable[tuple[str, str]]) -> None:
        """The replicas that there are: others are forgotten."""
        there = set(addresses)
        self._began = {at: since for at, since in self._began.items() if at in there}
        self._told &= there

    def of(self, pool: str, *, prior_s: float, hardware: str | None = None) -> LoadTime:
        """A pool's load time, of one kind of hardware where it is named; `prior_s` is the file's.

        While few were measured, the file's counts as PRIOR_LOADS of them.
        """
        measured = sorted(
            seconds
            for key, kept in self._kept.items()
            if key.pool == pool and hardware in (None, key.hardware)
            for seconds in kept
        )
        if not measured:
            return LoadTime(p50_s=prior_s, p90_s=prior_s)
        among = measured if len(measured) > PRIOR_LOADS else sorted([*measured, prior_s])
        # The nearest rank from above: with few loads the slowest of them is provided for.
        return LoadTime(
            p50_s=among[(len(among) - 1) // 2],
            p90_s=among[min(len(among) - 1, int(0.9 * len(among)))],
            measured=len(measured),
        )

    def rows(self) -> list[tuple[LoadKey, LoadTime]]:
        """Each kind's, for people: sorted."""
        return [
            (key, self.of_key(key))
            for key in sorted(self._kept, key=lambda key: (key[0], key[1], str(key[2])))
        ]

    def of_key(self, key: LoadKey) -> LoadTime:
        """One kind's alone; zeros where nothing was measured."""
        kept = sorted(self._kept.get(key, ()))
        if not kept:
            return LoadTime(p50_s=0.0, p90_s=0.0)
        last = len(kept) - 1
        return LoadTime(
            p50_s=kept[last // 2], p90_s=kept[min(last, int(0.9 * len(kept)))], measured=len(kept)
        )

    def kept(self) -> list[tuple[str, str, bool | None, list[float]]]:
        """For a file: pool, hardware, cold, seconds."""
        return [(*key, list(kept)) for key, kept in self._kept.items()]
