"""What may be varied of a strategy: its numbers and switches, and within which range it is searched.

Owns the search ranges. A parameter's own range (`bounded`) always holds; of one that has none, or a wide one,
a stretch around its default is searched. Texts are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from types import MappingProxyType
from typing import Any, Final, cast

from extproc.core.strategies import STRATEGIES, build, parameters
from extproc.core.strategies.parameter import ANY, Value

#: How far around a default it is looked, as a factor, where nobody says.
STRETCH: Final = 8.0
#: A default of 0 is searched up to this.
FROM_ZERO_MAX: Final = 1.0
#: Ranges of what has no bounds of its own, or wider ones than make sense.
RANGES: Final[Mapping[tuple[str, str], tuple[float, float]]] = MappingProxyType(
    {
        # Below a hundred tokens no prompt is ever taken behind another; a prefill step has 4,096.
        ("steer", "queue_tokens"): (128, 16_384),
        ("steer", "kv_share"): (0.6, 1.0),
        ("steer", "affinity_ms"): (0.0, 200.0),
    }
)


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter: a number from `low` to `high` (whole, or on a log scale, where so), or a switch."""

    name: str
    default: Value
    low: float = 0.0
    high: float = 1.0
    whole: bool = False
    log: bool = False
    switch: bool = False


def space(strategy: str) -> list[Axis]:
    """What can be searched of a strategy; ValueError for an unknown one, empty for one without parameters."""
    known = parameters(strategy)
    prototype = cast(Any, STRATEGIES[strategy])
    bounds = {each.name: each.metadata.get("range", ANY) for each in fields(prototype) if each.init}
    axes = []
    for name, (kind, default) in known.items():
        if kind is bool:
            axes.append(Axis(name, default, switch=True))
        elif kind in (int, float):
            axes.append(_axis(strategy, name, float(default), *bounds[name], whole=kind is int))
    return axes


def checked(strategy: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values, once their strategy has taken them; ValueError where it does not."""
    build(strategy, values)
    return dict(values)


def _axis(strategy: str, name: str, default: float, low: float, high: float, *, whole: bool) -> Axis:
    wanted = RANGES.get((strategy, name))
    if wanted is None:
        # A share, a ratio: its own range is what there is to search.
        narrow = high < inf and high <= max(STRETCH * abs(default), 2.0)
        around = (default / STRETCH, default * STRETCH) if default > 0 else (0.0, FROM_ZERO_MAX)
        wanted = (low, high) if narrow else around
    low, high = max(low, wanted[0]), min(high, wanted[1])
    if whole:
        low, high = float(int(low)), float(max(int(low) + 1, round(high)))
    given: Value = int(default) if whole else default
    return Axis(name, given, low, high, whole=whole, log=low > 0 and high / low >= STRETCH)
