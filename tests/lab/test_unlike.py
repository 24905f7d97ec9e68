"""The campaign over engines that are not as modelled: its cells, its report, its store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from extproc.lab.campaign import CampaignRun, Played
from extproc.lab.campaign.plan import RIVALS
from extproc.lab.campaign.streams import arrivals_of
from extproc.lab.campaign.unlike import FLEETS, NAMES, main, plan, report
from extproc.lab.report import Cell, figures
from extproc.lab.workload import Arrival
from extproc.sim.served import SLO_8B, Served
from extproc.sim.world.fleets import UNLIKE

CASE = CampaignRun(stream="sessions", fleet="8b-blind", load=0.7, strategy="steer", seed=1)


def judged(strategy: str, attained: int, *, seed: int = 1, fleet: str = "8b-blind", idle: int = 0) -> Played:
    """A result of 100 requests, some of them turned away while a replica was idle."""
    rows = []
    for at in range(100):
        arrival = Arrival(at * 1_000_000_000, "t", 100, 2, None)
        first = arrival.at_ns + 100_000_000
        if at < attained:
            rows.append(Served(arrival, "ok", "a", arrival.at_ns, first, first + 1, 0, expected_ms=110.0))
        else:
            rows.append(Served(arrival, "shed", "", -1, -1, first, 0, while_idle=at < attained + idle))
    case = replace(CASE, strategy=strategy, seed=seed, fleet=fleet)
    known_s = {"a": 4.5, "b": None} if "step" in fleet else None
    cell = Cell(case.workload, case.load, strategy, seed, figures(rows, slo=SLO_8B, change_known_s=known_s))
    return Played(case=case, cell=cell, ttft_ms=(1.0,), requests_per_s=1.0)


def test_a_cell_far_behind_is_marked_and_idle_sheds_are_counted() -> None:
    """Means and ranges over seeds; the best of ours and of the peers are named."""
    text = report(
        [
            judged("steer", 90, idle=2),
            judged("steer", 94, seed=2),
            judged("least_work", 95),
            judged("least_work", 97, seed=2),
            judged("llmd-default", 80),
            judged("envoy-least-request", 93),
        ]
    )
    assert "Cells: 1; marked 1; shed while a replica was idle 2, had room 0." in text
    line = next(line for line in text.splitlines() if line.startswith("| 8b-blind"))
    assert "| 92.0 (90.0-94.0) | least_work 96.0 (95.0-97.0) | envoy-least-request 93.0 | **-4.0** |" in line
    assert line.endswith("| 8.0 | 2 | 0 |")


def test_a_cell_within_two_points_is_not_marked() -> None:
    """Two points is within."""
    text = report([judged("steer", 90), judged("least_work", 92)])
    assert "| -2.0 |" in text
    assert "marked 0" in text


def test_predictions_and_changes_are_told() -> None:
    """The error in per cent, and when a change was known, where there is one."""
    text = report([judged("steer", 90), judged("steer", 90, fleet="8b-step-slower")])
    assert "| 8b-blind | 0.7 | 10 | – | – |" in text
    assert "| 8b-step-slower | 0.7 | 10 | 4.5 | 1 |" in text


def test_the_whole_plan_has_every_strategy_on_every_engine() -> None:
    """At four loads with three seeds; peers behind two engines where the fleet says nothing of its own."""
    cases = plan(quick=False)
    assert {(one.fleet, one.strategy, one.load, one.seed) for one in cases} == {
        (fleet, name, load, seed)
        for fleet in FLEETS
        for name in NAMES
        for load in (0.5, 0.7, 0.9, 1.1)
        for seed in (1, 2, 3)
    }
    assert set(UNLIKE) < set(FLEETS)
    both = {one.permits for one in cases if one.fleet == "8b" and one.strategy in RIVALS}
    own = {one.permits for one in cases if one.fleet == "8b-batch1"}
    assert len(both) == 2
    assert own == {0}


def test_played_cells_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run plays nothing anew and writes the same report."""
    arguments = ["--quick", "--out", str(tmp_path), "--workers", "1", "--limit", "30", "--loads", ".5"]
    arguments += ["--fleets", "8b,8b-parallel2", "--strategies", "steer,round_robin"]
    assert main(arguments) == 0
    first = (tmp_path / "report.md").read_bytes()
    assert "4/4" in capsys.readouterr().err
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "report.md").read_bytes() == first
    assert (tmp_path / "cells.json").is_file()


def test_load_counts_on_the_hits_of_a_blind_placement() -> None:
    """Many replicas find less than one that is asked everything, and none where there is no cache."""

    def rate(fleet: str) -> float:
        case = replace(CASE, fleet=fleet, limit=400)
        return arrivals_of(case, Path("/nonexistent"))[1]

    one, eight = rate("1*a100-80g/llama-3-8b"), rate("8*a100-80g/llama-3-8b")
    assert rate("8*a100-80g/llama-3-8b:cache=0") < 0.9 * eight < 0.9 * 8 * one * 0.9


def test_an_unknown_fleet_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit):
        main(["--fleets", "8b-lunar"])
    assert "no such fleets: 8b-lunar" in capsys.readouterr().err
