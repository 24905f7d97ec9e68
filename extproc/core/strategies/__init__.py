"""The strategies: one policy a file, one registry.

A strategy ranks candidates; it filters nothing (placement.py does). Most keep nothing but their parameters;
those of the peers (hyphenated names) have an index of their own, so a pool builds its own instance.

What another distribution adds (config/plugins.py) is registered here by the name of its entry point. It
needs nothing but what this module exports.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast, forecast, forecasts
from extproc.core.outcome import LATER_MS
from extproc.core.strategies.base import Ranking, Scored, Strategy, lowest
from extproc.core.strategies.cost import LeastCost
from extproc.core.strategies.latency import LeastLatency
from extproc.core.strategies.least_request import LeastRequest
from extproc.core.strategies.least_work import LeastWork
from extproc.core.strategies.parameter import Value, bounded, checked, parameters_of
from extproc.core.strategies.peers import (
    AibrixPrefix,
    DynamoKv,
    LlmdDefault,
    LlmdTokenLoad,
    SglangCacheAware,
    StickyLeastLoaded,
)
from extproc.core.strategies.power_of_two import PowerOfTwo
from extproc.core.strategies.prefix import LongestPrefix
from extproc.core.strategies.queue import LeastStart
from extproc.core.strategies.random_choice import RandomChoice
from extproc.core.strategies.round_robin import RoundRobin
from extproc.core.strategies.steer import Steer
from extproc.core.strategies.weighted_round_robin import WeightedRoundRobin
from extproc.core.work import NOW, SchedulingContext, Work

OWN: tuple[Strategy, ...] = (
    Steer(),
    RoundRobin(),
    WeightedRoundRobin(),
    RandomChoice(),
    LeastRequest(),
    PowerOfTwo(),
    LeastWork(),
    LeastLatency(),
    LeastCost(),
    LeastStart(),
    LongestPrefix(),
)
PEERS: tuple[Strategy, ...] = (
    LlmdDefault(),
    LlmdTokenLoad(),
    SglangCacheAware(),
    AibrixPrefix(),
    DynamoKv(),
    StickyLeastLoaded(),
)
#: One of each, with its defaults, by name: to look up and to build from.
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in OWN + PEERS}

#: What a decision falls back on when its own strategy fails: in flight by our ledger needs no input.
FALLBACK: Strategy = STRATEGIES["least_request"]

_DEFAULTS: Mapping[str, Value] = MappingProxyType({})

__all__ = [
    "FALLBACK",
    "LATER_MS",
    "NOW",
    "OWN",
    "PEERS",
    "STRATEGIES",
    "Endpoint",
    "Forecast",
    "Ranking",
    "SchedulingContext",
    "Scored",
    "Strategy",
    "Work",
    "bounded",
    "build",
    "forecast",
    "forecasts",
    "lowest",
    "parameters",
    "register",
]


def build(name: str, params: Mapping[str, Value] = _DEFAULTS) -> Strategy:
    """A new instance of a strategy, with nothing kept from any other.

    ValueError for a name or a parameter that is not known, a value of another type or one out of range.
    """
    prototype = _named(name)
    given: dict[str, Any] = checked(prototype, name, params)
    return type(prototype)(**given)


def register(name: str, strategy: object) -> None:
    """Adds another distribution's strategy; ValueError for what is none."""
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise ValueError(f"{strategy!r} is no class that derives from extproc.core.strategies.Strategy")
    if getattr(strategy, "name", None) != name:
        raise ValueError(f"its class says that its name is {getattr(strategy, 'name', None)!r}")
    prototype = strategy()
    for each, (kind, _) in parameters_of(prototype).items():
        if kind not in (int, float, bool, str):
            raise ValueError(f"its parameter {each!r} is a {kind.__name__}, not a number, a switch or a text")
    STRATEGIES[name] = prototype


def parameters(name: str) -> dict[str, tuple[type, Value]]:
    """Type and default of each of a strategy's parameters, by name; ValueError for an unknown strategy."""
    return parameters_of(_named(name))


def _named(name: str) -> Strategy:
    found = STRATEGIES.get(name)
    if found is None:
        raise ValueError(f"no strategy {name!r}; there are: {', '.join(sorted(STRATEGIES))}")
    return found
