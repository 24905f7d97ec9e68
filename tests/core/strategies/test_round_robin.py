from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

SchedulerOf = Callable[[int, str], Any]


def test_round_robin_rotates(scheduler: SchedulerOf) -> None:
    """Each in turn, over and over."""
    order = scheduler(4, "round_robin").serves(12)
    assert order == order[:4] * 3
    assert len(set(order[:4])) == 4


def test_round_robin_stays_even_while_endpoints_leave_and_return(scheduler: SchedulerOf) -> None:
    """One that was away takes up its turn; it is not sent what it missed."""
    scene = scheduler(4, "round_robin")
    away = scene.endpoints[2]
    scene.serves(6)
    away.ready = False
    without = Counter(scene.serves(9))
    assert set(without.values()) == {3}
    assert away.address not in without
    away.ready = True
    back = scene.serves(12)
    assert back[0] == away.address
    assert set(Counter(back).values()) == {3}


@pytest.mark.parametrize(
    "strategy", ["least_request", "least_work", "round_robin", "weighted_round_robin", "prefix", "cost"]
)
def test_an_idle_fleet_is_used_evenly(strategy: str, scheduler: SchedulerOf) -> None:
    """Ties do not all go to the first."""
    assert set(Counter(scheduler(5, strategy).serves(50)).values()) == {10}
