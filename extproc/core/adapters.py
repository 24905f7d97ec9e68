"""LoRA adapters: which of them a replica has loaded, and what loading another one there would cost.

Owns each replica's books of its adapters. An engine loads one when its first request comes, and drops the
least recently used when its places are taken; or it knows those alone that it was told of by calls
(`by_call`, adapter_calls.py). What engines tell of the adapters that they have is the truth; where they tell
only of those at work, the rest is reckoned here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

#: One that was used within this time will be asked for again: dropping it costs a load as well.
WARM_NS = 30 * 1_000_000_000

#: How many adapters a pool loads at once where its file does not say.
TOGETHER_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAdapters:
    """The models of a pool that are adapters of its base; a replica holds `loaded_max` of them at once, and
    loads one in `load_ms`. `by_call`: engines load and drop none by themselves, the gateway tells them to."""

    names: frozenset[str]
    loaded_max: int
    load_ms: float
    by_call: bool = False


class AdapterCounts:
    """What became of a pool's adapters since the start, by name: requests placed, loads, drops for others."""

    __slots__ = ("drops", "loads", "requests")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.loads: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()


class LoadedAdapters:
    """The adapters of one replica, as far as they are known. `loads` counts those that it had to load, and
    `served` are those that its engine answers for by name (None: it does not say)."""

    __slots__ = ("_at_work", "_running", "_used", "counts", "loads", "of", "served")

    def __init__(self, of: PoolAdapters, counts: AdapterCounts | None = None) -> None:
        self.of = of
        self.counts = AdapterCounts() if counts is None else counts
        self.loads = 0
        self.served: frozenset[str] | None = None
        #: When each was used last, the least recently used first.
        self._used: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        #: Those that had requests when its agent last spoke, whosever they were.
        self._at_work: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        return name in self._used

    def __len__(self) -> int:
        return len(self._used)

    @property
    def names(self) -> list[str]:
        """Those that are loaded, the least recently used first."""
        return list(self._used)

    def begins(self, name: str, *, now_ns: int) -> None:
        """A request for a model is placed there; nothing where that is no adapter."""
        if name in self.of.names:
            self.counts.requests[name] += 1
            self._running[name] += 1
            if name in self._used:
                self._touch(name, now_ns)
            elif not self.of.by_call:
                self._loads(name)
                self._touch(name, now_ns)

    def ends(self, name: str, *, now_ns: int) -> None:
        """It is over."""
        left = self._running[name] - 1
        if left > 0:
            self._running[name] = left
        else:
            del self._running[name]
        if name in self._used:
            self._touch(name, now_ns)

    def heard(
        self,
        at_work: Iterable[str],
        *,
        loaded: Iterable[str] | None = None,
        served: Iterable[str] | None = None,
        now_ns: int,
    ) -> None:
        """The engine says that these are at work; and, where it says so, all that are loaded or served.

        Where calls load them the gateway looks for itself, and sooner than an agent (`registered`).
        """
        self._at_work = self.of.names.intersection(at_work)
        if not self.of.by_call:
            self.served = None if served is None else frozenset(served)
            if loaded is not None:
                self._are(loaded, now_ns)
        for name in at_work:
            if name in self._used or (name in self._at_work and loaded is None and not self.of.by_call):
                self._touch(name, now_ns)

    def emptied(self) -> None:
        """Another process of the engine: nothing is loaded, and what it answers for is not known."""
        self._used.clear()
        self._at_work, self.served = frozenset(), None

    def answers(self, model: str) -> bool:
        """Whether its engine answers for a model, as far as it says."""
        if model not in self.of.names:
            return True
        return model in self._used if self.of.by_call else self.served is None or model in self.served

    def starts(self, name: str, *, now_ns: int) -> bool:
        """Whether its engine would begin a request for it now, as far as adapters go."""
        return name not in self.of.names or self.cost_ms(name, now_ns=now_ns) is not None

    def cost_ms(self, name: str, *, now_ns: int) -> float | None:
        """What it costs to serve a request for an adapter there; None where it cannot be served now."""
        if name in self._used:
            return 0.0
        return None if self.of.by_call else self.load_cost_ms(now_ns=now_ns)

    def load_cost_ms(self, *, now_ns: int) -> float | None:
        """What it costs that the engine loads another; None where no place can be made."""
        load_ms = self.of.load_ms
        if len(self._used) < self.of.loaded_max:
            return load_ms
        victim = next(self.droppable(now_ns=now_ns), None)
        return None if victim is None else 2 * load_ms if self.warm(victim, now_ns=now_ns) else load_ms

    def warm(self, name: str, *, now_ns: int) -> bool:
        """Whether one that is loaded was used a moment ago."""
        return now_ns - self._used[name] <= WARM_NS

    def droppable(self, *, now_ns: int, alone: bool = True) -> Iterator[str]:
        """Those without a request, the least recently used first.

        Beside other services (not `alone`) they are cold as well, and without requests by their agent's word.
        """
        for name in self._used:
            idle = not self._running[name] and not (self.of.by_call and name in self._at_work)
            if idle and (alone or not self.warm(name, now_ns=now_ns)):
                yield name

    # What calls to the engine lead to.

    def came(self, name: str, *, now_ns: int) -> None:
        """A call has loaded it."""
        self._loads(name)
        self._used.pop(name, None)
        self._used[name] = now_ns

    def goes(self, name: str) -> None:
        """A call is about to drop it: no request goes there for it from now on."""
        if self._used.pop(name, None) is not None:
            self.counts.drops[name] += 1

    def registered(self, names: Iterable[str], *, now_ns: int) -> None:
        """All that its engine answers for, as a look of ours has just found."""
        self.served = frozenset(names)
        self._are(self.served, now_ns)

    def doubted(self) -> None:
        """A call failed: what it has is known again when it was looked at."""
        self.served = None

    def _are(self, names: Iterable[str], now_ns: int) -> None:
        """These are loaded, and no others but those that were placed there since."""
        told = dict.fromkeys(name for name in names if name in self.of.names)
        keeps = {name: at for name, at in self._used.items() if name in told or self._running[name]}
        # Nobody knows when they were used: they are the first to go.
        cold_ns = now_ns - WARM_NS - 1
        self._used = {**{name: cold_ns for name in told if name not in keeps}, **keeps}

    def _loads(self, name: str) -> None:
        self.loads += 1
        self.counts.loads[name] += 1

    def _touch(self, name: str, now_ns: int) -> None:
        self._used.pop(name, None)
        self._used[name] = now_ns
        while len(self._used) > self.of.loaded_max and not self.of.by_call:
            # Those at work cannot be dropped: an engine has them, whatever it said that it holds.
            least = next((each for each in self._used if not self._running[each] and each != name), None)
            if least is None:
                break
            del self._used[least]
            self.counts.drops[least] += 1
