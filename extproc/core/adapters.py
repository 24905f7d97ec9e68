"""LoRA adapters: which of them a replica has loaded, and what loading another one there would cost.

Owns each replica's books of its adapters. Engines load one when its first request comes, and drop the least
recently used when their places are taken; what they report are those at work, so the rest is reckoned here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

#: One that was used within this time will be asked for again: dropping it costs a load as well.
WARM_NS = 30 * 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAdapters:
    """The models of a pool that are adapters of its base; a replica holds `loaded_max` of them at once, and
    loads one in `load_ms`."""

    names: frozenset[str]
    loaded_max: int
    load_ms: float


class LoadedAdapters:
    """The adapters of one replica, as far as they are known. `loads` counts those that it had to load."""

    __slots__ = ("_running", "_used", "loads", "of")

    def __init__(self, of: PoolAdapters) -> None:
        self.of = of
        self.loads = 0
        #: When each was used last, the least recently used first.
        self._used: dict[str, int] = {}
        self._running: Counter[str] = Counter()

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
            self.loads += name not in self._used
            self._running[name] += 1
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

    def heard(self, names: Iterable[str], *, now_ns: int) -> None:
        """The engine says that these are at work."""
        for name in names:
            if name in self.of.names:
                self._touch(name, now_ns)

    def emptied(self) -> None:
        """Another process of the engine: nothing is loaded."""
        self._used.clear()

    def cost_ms(self, name: str, *, now_ns: int) -> float | None:
        """What it costs to serve a request for an adapter there; None where no place can be made for it."""
        if name in self._used:
            return 0.0
        load_ms = self.of.load_ms
        if len(self._used) < self.of.loaded_max:
            return load_ms
        for other, used_ns in self._used.items():
            if not self._running[other]:
                return load_ms if now_ns - used_ns > WARM_NS else 2 * load_ms
        return None

    def _touch(self, name: str, now_ns: int) -> None:
        self._used.pop(name, None)
        self._used[name] = now_ns
        while len(self._used) > self.of.loaded_max:
            # Those at work cannot be dropped: an engine has them, whatever it said that it holds.
            least = next((each for each in self._used if not self._running[each] and each != name), None)
            if least is None:
                break
            del self._used[least]
