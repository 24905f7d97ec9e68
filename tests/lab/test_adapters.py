"""Placements of LoRA adapters on simulated replicas: who loads how often, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from extproc.lab.adapters import PLACEMENTS, AdapterCase, AdapterRow, main, mean, played, traffic

CASE = AdapterCase(adapters=12, places=4, replicas=4, requests=300, load=0.6)


@cache
def row(name: str, case: AdapterCase = CASE, seed: int = 1) -> AdapterRow:
    placement = next(each for each in PLACEMENTS if each.name == name)
    return played(case, placement, seed)


def test_ours_loads_far_less_than_spreading_and_serves_more() -> None:
    """Spreading loads several times as often and misses more; a home for ever misses no fewer and drops
    no fewer."""
    ours = row("steer")
    assert ours.requests == CASE.requests
    for other in ("round robin", "least request", "steer, blind"):
        assert row(other).loads >= 2 * ours.loads
        assert row(other).attained < ours.attained
    sticky = row("sticky home")
    assert ours.attained >= sticky.attained
    assert ours.drops <= sticky.drops


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("steer", 0.3),
        ("steer", 1.2),
        ("steer, told", 0.3),
        ("steer, told", 1.2),
        ("steer, by calls", 0.3),
        ("steer, by calls", 0.6),
        ("steer, by calls", 1.2),
    ],
)
def test_no_storm_of_evictions(name: str, load: float) -> None:
    """With places for all, each is dropped less than once in the mean, also above what the fleet bears."""
    found = row(name, AdapterCase(adapters=12, places=4, replicas=4, requests=300, load=load))
    assert found.loads <= 2.5 * CASE.adapters
    assert found.drops <= CASE.adapters


@pytest.mark.parametrize("load", [0.6, 1.2])
def test_loads_by_calls_attain_what_engines_do_that_load_by_themselves(load: float) -> None:
    """In the mean of three seeds, with no more loads, below and above what the fleet bears: who waits where
    all are full gains nothing by a copy, and no engine loads by itself as well."""
    case = replace(CASE, load=load)
    called, by_itself = (
        mean([row(name, case, seed) for seed in (1, 2, 3)]) for name in ("steer, by calls", "steer")
    )
    # Seeds differ by more than two points above what the fleet bears.
    assert called.attained >= by_itself.attained - 0.02
    assert called.loads <= by_itself.loads


def test_a_call_that_stops_nobody_costs_less() -> None:
    """The other placements are not touched by it: their loads are the engine's own."""
    beside = replace(CASE, beside=True)
    assert row("steer, by calls", beside).attained > row("steer, by calls").attained
    assert row("steer", beside) == row("steer")


def test_the_same_seed_gives_the_same_rows() -> None:
    """Traffic and play are the seed's alone; another seed has other conversations."""
    assert played(CASE, PLACEMENTS[4], 1) == row("steer")
    assert traffic(CASE, 1) == traffic(CASE, 1) != traffic(CASE, 2)


def test_the_command_prints_a_row_for_each_placement(capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of its settings."""
    main(["--requests", "40", "--seeds", "1", "--adapters", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [each.name for each in PLACEMENTS]
