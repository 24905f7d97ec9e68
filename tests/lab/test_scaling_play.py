"""Scaling played: request by request, by the shipped planner, kept on disk, judged and reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extproc.lab.scaling.__main__ import main
from extproc.lab.scaling.cases import HARDWARE_NAME, ScalingCase, ScalingStore, cases, curve_of, work_model
from extproc.lab.scaling.check import fidelity
from extproc.lab.scaling.measure import binned
from extproc.lab.scaling.oracle import OraclePoint
from extproc.lab.scaling.ours import PlannedLane, ShippedPlanner, kind_of
from extproc.lab.scaling.play import CaseResult, ScalingRow, play_case
from extproc.lab.scaling.rates import RateCurve
from extproc.lab.scaling.report import hours_at, judged, markdown_report, one_setting
from extproc.lab.scaling.requests import play_requests
from extproc.lab.scaling.service import KNOWN
from extproc.lab.scaling.traffic import counted, listed, made_up, mean_work_s
from extproc.lab.scaling.weeks import LaneOutcome, WeeksTraffic, play
from extproc.sim.timing import hardware_named
from extproc.sim.world import parse_fleet

CHAT = KNOWN["made-up chat"]


class Growing:
    """One replica, and from a step on three."""

    name, lanes = "growing", 1

    def wanted(self, seen: object) -> np.ndarray:
        return np.array([3.0 if seen.step >= 12 else 1.0])  # type: ignore[attr-defined]


def test_replicas_join_the_scheduler_when_they_have_loaded_and_leave_it_at_once() -> None:
    """Five minutes with too much for one replica: what is ready follows, and nearly all attain in the end."""
    clients, work = made_up(), work_model()
    rate = 1.6 / mean_work_s(clients, work)
    workload = listed(clients, RateCurve("flat", 300.0, np.array([rate])), seed=1, start_s=0, duration_s=300)
    steps = play_requests(
        workload,
        parse_fleet(f"4*{HARDWARE_NAME}"),
        Growing(),
        work=work,
        load_steps=6,
        first=1,
        duration_s=300.0,
        seed=1,
    )
    assert steps.ready[:17].max() == 1
    assert (steps.ready[18:] == 3).all()
    # Paid from the start of loading on.
    assert (steps.paid[12:18] >= 3).all()
    assert steps.requests.sum() == len(workload.arrivals)
    early = steps.attained[6:18].sum() / steps.requests[6:18].sum()
    late = steps.attained[30:].sum() / steps.requests[30:].sum()
    assert early < late
    assert late > 0.9


def test_the_shipped_planner_follows_a_ramp_and_two_lanes_do_not_meet() -> None:
    """Load rises fivefold in an hour: more replicas are wanted, most requests attain, and beside a second
    lane all is as alone."""
    case = ScalingCase(name="ramp", seed=1)
    curve, clients = curve_of(case)
    part = RateCurve("ramp", curve.window_s, curve.rates[120:300])
    traffic = counted(clients, part, work_model(), seed=1)
    weeks = WeeksTraffic.of((traffic,), CHAT)
    lane = PlannedLane(traffic=traffic, load_s=60.0, target=0.98, interval_s=30.0, full=CHAT.full)
    kind = kind_of(hardware_named(HARDWARE_NAME))
    alone, wanted = play(
        ShippedPlanner([lane], kind, most=24), weeks, np.zeros(1, dtype=np.int64), np.array([60.0])
    )
    assert wanted[-1, 0] > 2 * wanted[0, 0]
    assert alone[0].attainment > 0.9
    two, _ = play(
        ShippedPlanner([lane, lane], kind, most=24),
        weeks,
        np.zeros(2, dtype=np.int64),
        np.array([60.0, 60.0]),
    )
    assert two == [alone[0], alone[0]]


def test_a_case_is_kept_and_not_played_again(tmp_path: Path) -> None:
    """The second time gives the same, and writes nothing; a damaged file is played anew."""
    store = ScalingStore(tmp_path)
    case = ScalingCase(name="ramp", seed=1, days=1 / 48, load_times_s=(60.0,))
    first = play_case(case, store)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4  # traffic, oracle, peers, ours
    assert play_case(case, store) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    broken = next(path for path in files if path.suffix == ".json")
    broken.write_text("{half")
    assert play_case(case, store) == first
    report = markdown_report([first], [], notes=["a note"])
    assert "| ramp | 60 |" in report
    assert "- a note" in report


def row(scaler: str, setting: float, attainment: float, hours: float, *, usual: bool = True) -> ScalingRow:
    outcome = LaneOutcome(attainment=attainment, hours=hours, turns=6.0, starts=3.0, worst=0.9)
    return ScalingRow(scaler=scaler, setting=setting, usual=usual, load_s=60.0, outcome=outcome)


def test_a_peers_hours_are_read_between_its_settings_and_dear_ones_are_left_out() -> None:
    """Settings at .96, .98 and 1.0; one that costs more and attains less counts for nothing."""
    rows = [
        row("hpa", 1, 0.96, 80),
        row("hpa", 2, 0.98, 100),
        row("hpa", 3, 1.0, 200),
        row("hpa", 4, 0.97, 150),
    ]
    assert hours_at("hpa", rows, 0.99) == pytest.approx(150.0)
    assert hours_at("hpa", rows, 0.97) == pytest.approx(90.0)
    assert hours_at("hpa", rows[:2], 0.99) is None
    assert hours_at("kpa", rows, 0.9) is None


def test_a_cell_is_judged_by_the_aims() -> None:
    """Two seeds: 1.2 times the oracle's hours and 20 % below the best peer; only hours are missed."""
    oracle = (OraclePoint(1.0, 0.9, 40.0, 4.0), OraclePoint(2.0, 0.99, 112.5, 8.0))
    results = [
        CaseResult(
            case=ScalingCase(name="ramp", seed=seed, load_times_s=(60.0,)),
            rows=(
                row("steersman", 0.98, 0.98, 126.0),
                row("hpa", 0.7, 0.985, 157.5),
                row("kpa", 0.7, 0.9, 50.0),
            ),
            oracle=(oracle,),
        )
        for seed in (1, 2)
    ]
    (cell,) = judged(results)
    assert cell.to_oracle.mean == pytest.approx(126 / (40 + 72.5 * 8 / 9))
    assert cell.best_peer == ("hpa", pytest.approx(0.2))
    assert cell.less["kpa"] is None
    assert cell.missed == ["hours"]
    assert "never reaches it" in markdown_report(results, [])


def test_a_peer_has_one_setting_for_all_cells_the_cheapest_that_is_enough() -> None:
    """.7 is enough in both cells, .9 is cheaper and enough in one; ours is enough in both, then in one."""
    oracle = (OraclePoint(1.0, 0.9, 90.0, 4.0), OraclePoint(2.0, 0.98, 100.0, 8.0))

    def result(name: str, ours: float, cheap: float) -> CaseResult:
        return CaseResult(
            case=ScalingCase(name=name, seed=1, load_times_s=(60.0,)),
            rows=(
                row("HPA", 0.7, 0.99, 140.0),
                row("HPA", 0.9, cheap, 105.0, usual=False),
                row("fixed at peak", 12.0, 1.0, 300.0),
                row("steersman", 0.98, ours, 110.0),
            ),
            oracle=(oracle,),
        )

    own, hpa = one_setting([result("ramp", 0.981, 0.982), result("step", 0.98, 0.95)])
    assert (own.scaler, own.enough, own.cells, own.to_oracle) == ("steersman", 2, 2, pytest.approx(1.1))
    assert (hpa.setting, hpa.enough, hpa.to_oracle) == (0.7, 2, pytest.approx(1.4))
    own, hpa = one_setting([result("ramp", 0.981, 0.982), result("step", 0.97, 0.95)])
    assert (own.enough, hpa.setting, hpa.attainment) == (1, 0.9, pytest.approx(0.966))


def test_points_of_a_curve_only_worsen() -> None:
    """Steps of three bins, the middle one by chance better than the first: it is drawn level."""
    loads = np.repeat([0.1, 0.4, 0.6], 4)
    came, good = np.full(12, 10.0), np.repeat([9.0, 10.0, 5.0], 4)
    curve = binned(loads, came, good, np.repeat([2.0, 1.0, 6.0], 4))
    assert [point[1] for point in curve.points] == [1.0, 0.9, 0.9, 0.5]
    assert [point[2] for point in curve.points] == [0.0, 2.0, 2.0, 6.0]


@pytest.mark.soak
def test_the_fast_model_is_near_the_requests() -> None:
    """A quarter of an hour of the ramp at a small scale: attainment by the model within 6 points of the
    scheduler's, replica-hours within 15 %."""
    for found in fidelity(CHAT, lasts_s=900.0, replicas=5.0):
        assert found.requests > 500
        assert abs(found.by_request - found.by_model) < 0.06, found
        assert found.hours_by_model == pytest.approx(found.hours_by_request, rel=0.15), found


def test_cases_are_a_seed_through_all_workloads_before_the_next(tmp_path: Path) -> None:
    """Two seeds, one pair of files, one curve; days are of what is longer than a day."""
    found = cases(
        pairs=[(tmp_path / "w.csv", tmp_path / "d.jsonl")], synthetics=["ramp"], seeds=(1, 2), days=3
    )
    assert [(case.name, case.seed, case.days) for case in found] == [
        ("w", 1, 3),
        ("ramp", 1, 0.0),
        ("w", 2, 3),
        ("ramp", 2, 0.0),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--weeks", "w.csv"],
        ["--synthetic", "nothing"],
        ["--load-times", "0"],
        ["--load-times", "x"],
        ["--seeds", "x"],
    ],
)
def test_bad_usage_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a line, before anything is played."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
