"""The strategies: one policy a file, one registry.

A strategy ranks candidates; it filters nothing (decide.py does). Most keep nothing but their parameters;
those of the peers (hyphenated names) have an index of their own, so a pool builds its own instance.

Hooks that a strategy may have, beyond `rank`:

    picked(endpoints, endpoint, work, *, at)  a request was placed: move what the strategy keeps
    opens(endpoints, *, at)                   late binding: those that could take anything at all now
    order                                     its order in the fair queue, None for the queue's own
    forget(address)                           an endpoint left, or lost its cache
    explain(endpoint, work, *, at)            every term of the score, by name; all strategies have it
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from extproc.core.strategies.base import Ranking, Strategy, lowest
from extproc.core.strategies.cost import LeastCost
from extproc.core.strategies.latency import LeastLatency
from extproc.core.strategies.least_request import LeastRequest
from extproc.core.strategies.least_work import LeastWork
from extproc.core.strategies.parameter import Value, checked, parameters_of
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
    "NOW",
    "OWN",
    "PEERS",
    "STRATEGIES",
    "Ranking",
    "SchedulingContext",
    "Strategy",
    "Work",
    "build",
    "lowest",
    "parameters",
]


def build(name: str, params: Mapping[str, Value] = _DEFAULTS) -> Strategy:
    """A new instance of a strategy, with nothing kept from any other.

    ValueError for a name or a parameter that is not known, a value of another type or one out of range.
    """
    prototype = _named(name)
    given: dict[str, Any] = checked(prototype, name, params)
    return type(prototype)(**given)


def parameters(name: str) -> dict[str, tuple[type, Value]]:
    """Type and default of each of a strategy's parameters, by name; ValueError for an unknown strategy."""
    return parameters_of(_named(name))


def _named(name: str) -> Strategy:
    found = STRATEGIES.get(name)
    if found is None:
        raise ValueError(f"no strategy {name!r}; there are: {', '.join(sorted(STRATEGIES))}")
    return found
