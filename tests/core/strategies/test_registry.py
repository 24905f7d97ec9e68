from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.strategies import FALLBACK, OWN, PEERS, STRATEGIES, Work, build, lowest, parameters

Fleet = Callable[..., list[Endpoint]]
WORK = Work(input_tokens=100, output_tokens=10, prefix=(1,))


def test_the_registry() -> None:
    """Every policy is found by its name; the peers' names are hyphenated, ours are not."""
    assert sorted(strategy.name for strategy in OWN) == [
        "cost",
        "latency",
        "least_request",
        "least_work",
        "power_of_two",
        "prefix",
        "queue",
        "random",
        "round_robin",
        "steer",
        "weighted_round_robin",
    ]
    assert sorted(strategy.name for strategy in PEERS) == [
        "aibrix-prefix",
        "dynamo-kv",
        "llmd-default",
        "llmd-token-load",
        "sglang-cache-aware",
        "sticky-least-loaded",
    ]
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())
    assert len(STRATEGIES) == len(OWN) + len(PEERS)
    assert FALLBACK is STRATEGIES["least_request"]


def test_a_strategy_is_built_with_its_parameters() -> None:
    """What is given replaces the default, a whole number where a number is asked for included."""
    built: Any = build("latency", {"choices": 0, "overload_ratio": 2})
    assert (built.choices, built.overload_ratio, built.seen_share) == (0, 2.0, 0.3)
    assert isinstance(built.overload_ratio, float)
    assert build("latency") == STRATEGIES["latency"]


def test_parameters_are_listed_with_type_and_default() -> None:
    """Fields are parameters; what a strategy keeps is none."""
    assert parameters("prefix") == {
        "imbalance_tokens": (int, 16_384),
        "imbalance_ratio": (float, 1.5),
        "cached_min": (int, 64),
        "sessions": (bool, True),
    }
    assert parameters("least_work") == {}
    assert "index" not in parameters("llmd-default")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cheapest", {}, "no strategy 'cheapest'; there are: aibrix-prefix, cost, "),
        ("queue", {"dept": 1}, "strategy 'queue' has no parameter 'dept'; it has: depth, reserve"),
        ("least_work", {"depth": 1}, "strategy 'least_work' has no parameter 'depth'; it has: none"),
        ("dynamo-kv", {"index": 1}, "strategy 'dynamo-kv' has no parameter 'index'"),
        ("queue", {"depth": 1.5}, "queue.depth is a whole number, not 1.5"),
        ("queue", {"depth": True}, "queue.depth is a whole number, not True"),
        ("queue", {"reserve": "0.1"}, "queue.reserve is a number, not '0.1'"),
        ("queue", {"reserve": 0.95}, "queue.reserve is at least 0 and at most 0.9, not 0.95"),
        ("queue", {"reserve": float("nan")}, "queue.reserve is at least 0 and at most 0.9, not nan"),
        ("queue", {"depth": 0}, "queue.depth is at least 1 and at most 1000, not 0"),
        ("prefix", {"sessions": 1}, "prefix.sessions is true or false, not 1"),
        ("steer", {"queue_tokens": -1}, "steer.queue_tokens is at least 0, not -1"),
    ],
)
def test_a_wrong_parameter_is_told(name: str, params: dict[str, Any], message: str) -> None:
    """Which strategy, which parameter, and what it could have been."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        build(name, params)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [strategy.name for strategy in PEERS if hasattr(strategy, "index")])
def test_each_build_begins_with_nothing(name: str, fleet: Fleet) -> None:
    """Two pools with the same policy do not share what it keeps; who leaves is forgotten."""
    endpoints = fleet(2)
    one: Any = build(name)
    one.picked(endpoints, endpoints[0], WORK, at=None)
    assert one.index.blocks("10.0.0.0:80") == 1
    other: Any = build(name)
    assert other.index.blocks("10.0.0.0:80") == 0
    one.forget("10.0.0.0:80")
    assert one.index.blocks("10.0.0.0:80") == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lowest_breaks_ties_by_the_least_recently_picked(count: int, fleet: Fleet) -> None:
    """Equal scores go to whoever waited longest, whether one or more are wanted."""
    endpoints = fleet(4)
    for endpoint, picked in zip(endpoints, (9, 3, 5, 1), strict=True):
        endpoint.picked = picked
    assert lowest(endpoints, [1.0, 1.0, 1.0, 2.0], count) == [1, 2, 0][:count]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_one_candidate(strategy: str, fleet: Fleet) -> None:
    """A pool of one works with every policy."""
    ranking = STRATEGIES[strategy].rank(fleet(1), WORK, count=1, rng=Random(1))
    assert (len(ranking.scores), list(ranking.best)) == (1, [0])
