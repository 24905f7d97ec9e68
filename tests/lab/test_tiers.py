"""The campaign of an edge with a centre: its cells, its report, its store."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.lab.campaign import CampaignRun, Played, play
from extproc.lab.campaign.streams import arrivals_of
from extproc.lab.campaign.tiers import FAR, NEAR, NEVER, layouts, main, placed_line, plan, report
from extproc.lab.report import Cell, figures
from extproc.lab.workload import Arrival
from extproc.sim.served import SLO_8B, Served
from extproc.sim.world import parse_fleet

NOWHERE = Path("/nonexistent")
TWO = f"{NEAR},way=40,{FAR}"


def judged(fleet: str, attained: int, *, seed: int = 1, load: float = 0.9, there: float = 0.0) -> Played:
    """A result of 100 requests, some in time and the others failed."""
    rows = []
    for at in range(100):
        arrival = Arrival(at * 1_000_000_000, "t", 100, 2, None)
        ok, first = at < attained, arrival.at_ns + 100_000_000
        rows.append(
            Served(
                arrival,
                "ok" if ok else "failed",
                "a",
                arrival.at_ns,
                first if ok else -1,
                arrival.at_ns + 110_000_000,
                0,
            )
        )
    case = CampaignRun(
        stream="poisson", fleet=fleet, load=load, strategy="steer", seed=seed, load_of=f"{NEAR},{FAR}"
    )
    found = figures(rows, slo=SLO_8B, cost_per_hour=parse_fleet(fleet).prices())
    cell = Cell(case.workload, load, "steer", seed, found)
    placed = {"simple": 30, "complex": 70}
    return Played(case=case, cell=cell, ttft_ms=(1.0,), requests_per_s=1.0, placed=placed, there=there)


def test_every_fleet_costs_the_same_an_hour_and_is_asked_the_same() -> None:
    """One rent for edge alone, centre alone and both; the same arrivals at one load and seed."""
    rents = {sum(parse_fleet(each.fleet).prices().values()) for each in layouts(quick=False)}
    assert rents == {18.0}
    cases = plan(limit=20, seeds=(1,), loads=(0.9,))
    asked = {tuple(arrivals_of(case, NOWHERE)[0].arrivals) for case in cases}
    assert len(asked) == 1
    assert len({case.fleet for case in cases}) == len(cases)


def test_the_whole_plan_has_three_ways_and_two_troubles() -> None:
    """With three seeds, a lower load where something is wrong, and none twice."""
    cases = plan()
    assert len(set(cases)) == len(cases) == 14 * 3
    assert {case.load for case in cases if "cut_s" in case.fleet} == {0.9}
    ways = {each.way for each in layouts(quick=False)}
    assert ways == {"", "way=5", "way=40", "way=150", "way=40:cut_s=15", "way=40:others=0.4"}


def test_the_report_has_a_line_for_each_fleet_over_seeds() -> None:
    """Means and ranges, who failed, the share of the centre, and what a thousand in time cost."""
    text = report([judged(TWO, 90, there=0.5), judged(TWO, 94, seed=2, there=0.7)], left=1)
    line = next(line for line in text.splitlines() if line.startswith("| 0.9"))
    # 18 USD an hour for 99.11 s: .4956, for 90 and for 94.
    assert line == (
        "| 0.9 | edge and centre | 18 | 40 | 92.0 (90.0-94.0) | 100 / 100 | 60 | 0.0 | 8.0 | 5.389 |"
    )
    assert "Left out, the time given was over: 1 runs." in text


def test_nobody_in_time_has_no_price() -> None:
    """A line all the same."""
    text = report([judged(f"{NEAR},way=40{NEVER},{FAR}", 0)])
    assert "| 0.9 | nothing goes | 18 | 40 | 0.0 | – | 0 | 0.0 | 100.0 | – |" in text


def test_reasons_are_told_the_most_frequent_first() -> None:
    """With the centre's share."""
    told = placed_line(judged(TWO, 90, there=0.5))
    assert told == "0.9 steer, seed 1: 50% answered by the centre; complex 70%, simple 30%"


def test_played_cells_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run plays nothing anew and writes the same report."""
    arguments = ["--quick", "--out", str(tmp_path), "--workers", "1", "--limit", "30", "--stream", "poisson"]
    assert main(arguments) == 0
    first = (tmp_path / "report.md").read_bytes()
    count = len(layouts(quick=True))
    assert f"{count}/{count}" in capsys.readouterr().err
    assert first.count(b"| 0.9 |") + first.count(b"| 1.2 |") == count
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "report.md").read_bytes() == first


def test_an_unknown_stream_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit):
        main(["--stream", "lunar"])
    assert "no trace 'lunar'" in capsys.readouterr().err


def test_a_case_of_two_sites_says_who_answered() -> None:
    """Its reasons are of all requests, and some were answered by the centre."""
    played = play(
        CampaignRun(stream="poisson", fleet="8b-tiers", load=0.6, strategy="steer", seed=1, limit=60), NOWHERE
    )
    assert sum(played.placed.values()) == 60
    assert 0.0 < played.there < 1.0
