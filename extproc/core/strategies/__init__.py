"""The strategies: one policy a file, one registry.

A strategy ranks candidates; it filters nothing (decide.py does) and keeps nothing (the endpoints'
books do), so any number of pools may share one.
"""

from __future__ import annotations

from extproc.core.strategies.base import Ranking, Strategy, Work, lowest
from extproc.core.strategies.least_request import LeastRequest
from extproc.core.strategies.least_work import LeastWork
from extproc.core.strategies.power_of_two import PowerOfTwo
from extproc.core.strategies.random_choice import RandomChoice
from extproc.core.strategies.round_robin import RoundRobin

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (RoundRobin(), RandomChoice(), LeastRequest(), PowerOfTwo(), LeastWork())
}

#: What a decision falls back on when its own strategy fails: in flight by our ledger needs no input.
FALLBACK: Strategy = STRATEGIES["least_request"]

__all__ = ["FALLBACK", "STRATEGIES", "Ranking", "Strategy", "Work", "lowest"]
