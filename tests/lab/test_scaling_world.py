"""Replicas by stage, traffic, the peers' formulas and the oracle, all on clocks of steps."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from extproc.lab.scaling.oracle import at_attainment, frontier, schedule
from extproc.lab.scaling.peers import (
    FixedReplicas,
    HorizontalPodAutoscaler,
    IntervalPlanner,
    KnativePodAutoscaler,
)
from extproc.lab.scaling.rates import RateCurve, read_weeks, synthetic
from extproc.lab.scaling.replicas import ReplicaStages, Seen
from extproc.lab.scaling.service import KNOWN, ServiceCurve
from extproc.lab.scaling.traffic import STEP_S, WorkModel, counted, listed, made_up, mean_work_s
from extproc.lab.scaling.weeks import DRAIN_S, WeeksTraffic, play, turns
from extproc.sim.arrival import WorkloadError
from extproc.sim.timing import hardware_named

CURVE = ServiceCurve(((0.0, 1.0, 0.0), (0.5, 1.0, 5.0), (1.0, 0.9, 10.0), (2.0, 0.4, 30.0)))


def stages(first: int, *, load_steps: int = 3, drain_steps: int = 2) -> ReplicaStages:
    return ReplicaStages(
        load_steps=np.array([load_steps]), first=np.array([first]), most=8, drain_steps=drain_steps
    )


def seen(step: int, **given: float) -> Seen:
    values = {
        name: np.array([float(given.get(name, 0.0))])
        for name in ("requests", "ended", "attained", "load", "utilization")
    }
    return Seen(
        step=step,
        ready=np.array([int(given.get("ready", 1))]),
        wanted=np.array([int(given.get("wanted", given.get("ready", 1)))]),
        concurrency=np.array([float(given.get("concurrency", 0.0))]),
        **values,
    )


def test_a_replica_is_ready_a_load_time_after_it_was_wanted() -> None:
    """Two are ready, four are wanted from step 1 on: four are ready at step 4, and were paid for."""
    world = stages(2)
    ready = [int(world.step(step, np.array([4.0 if step else 2.0]))[0]) for step in range(6)]
    assert ready == [2, 2, 2, 4, 4, 4]
    assert world.paid[0] == 2 + 5 * 4


def test_a_wish_that_is_taken_back_before_it_loaded_brings_nothing() -> None:
    """Every two steps more and fewer: with a load time of three the third one never comes."""
    world = stages(2)
    ready = [int(world.step(step, np.array([3.0 if step % 4 < 2 else 2.0]))[0]) for step in range(20)]
    assert set(ready) == {2}


def test_who_leaves_while_ready_is_paid_until_it_is_empty() -> None:
    """Three to one: two leave, and cost two steps each beside."""
    world = stages(3)
    assert int(world.step(0, np.array([1.0]))[0]) == 1
    assert world.paid[0] == 1 + 2 * 2


def test_the_curve_of_service_only_worsens_with_load_and_none_attain_without_a_replica() -> None:
    """All known curves; past the last point what can be served is shared out."""
    for curve in KNOWN.values():
        shares = curve.attainment(np.linspace(0, 6, 200), np.ones(200))
        assert (np.diff(shares) <= 1e-12).all()
        assert 0 < shares[-1] < shares[0] == 1.0
    assert CURVE.attainment(np.array([1.0, 0.0]), np.zeros(2)).tolist() == [0.0, 1.0]
    assert CURVE.attainment(np.array([4.0]), np.ones(1))[0] == pytest.approx(0.2)
    assert CURVE.full == pytest.approx(0.75, abs=1e-3)
    assert CURVE.concurrency(np.array([2.0]), np.array([2.0]))[0] == pytest.approx(20.0)


def test_the_hpa_follows_its_formula_its_tolerance_and_its_window_downwards() -> None:
    """ceil(replicas · value / target) each 15 s; nothing within a tenth; down only after 300 s."""
    hpa = HorizontalPodAutoscaler(np.array([0.5]))
    wanted = [float(hpa.wanted(seen(step, ready=4, utilization=0.53))[0]) for step in range(10)]
    assert set(wanted) == {4.0}
    wanted = [float(hpa.wanted(seen(step, ready=4, utilization=0.9))[0]) for step in range(12, 19)]
    assert wanted[-1] == 8.0  # ceil(4 · 1.8), and twice as many or four more at most
    low = [float(hpa.wanted(seen(step, ready=8, utilization=0.25))[0]) for step in range(19, 96)]
    assert low[30] == 8.0
    assert low[-1] == 4.0


def test_the_hpa_counts_pods_that_load_as_idle_and_does_not_pile_up() -> None:
    """While four of eight load, a value of .6 over a target of .5 asks for no more: .3 over all."""
    hpa = HorizontalPodAutoscaler(np.array([0.5]))
    hpa.wanted(seen(0, ready=4, wanted=8))
    assert all(hpa.wanted(seen(step, ready=4, wanted=8, utilization=0.6))[0] == 8.0 for step in range(1, 40))


def test_knative_panics_upwards_at_once_and_stays_for_its_stable_window() -> None:
    """Concurrency for two replicas, then for eight: eight at once, kept for 60 s, then down by half."""
    kpa = KnativePodAutoscaler(np.array([2 / 3]), CURVE)  # half of full: five requests a replica
    calm = [kpa.wanted(seen(step, ready=2, concurrency=9.0))[0] for step in range(14)]
    assert calm[-1] == 2.0
    assert kpa.wanted(seen(14, ready=2, concurrency=39.0))[0] == 8.0
    after = [kpa.wanted(seen(step, ready=8, wanted=8, concurrency=9.0))[0] for step in range(15, 40)]
    assert after[5] == 8.0
    assert after[-1] == 4.0


def test_the_planner_of_one_interval_goes_by_the_last_mean_and_arima_by_its_slope() -> None:
    """A load that grows by one an interval: the last value is behind, the autoregression is not."""
    every = round(IntervalPlanner.INTERVAL_S / STEP_S)
    last, sloped = (IntervalPlanner(np.array([1.0]), lags=lags) for lags in (0, 2))
    for step in range(20 * every + 1):
        level = float((step - 1) // every + 1) if step else 0.0
        one = float(last.wanted(seen(step, load=level))[0])
        two = float(sloped.wanted(seen(step, load=level))[0])
    assert one == 20.0
    assert two == 21.0


def cost(ready: tuple[int, ...], requests: np.ndarray, felt: np.ndarray, price: float, up: float) -> float:
    down = DRAIN_S / STEP_S
    change = np.diff(np.array(ready))
    missed = (requests * (1 - CURVE.attainment(felt, np.array(ready, dtype=float)))).sum() / STEP_S
    return float(
        sum(ready) + up * change[change > 0].sum() - down * change[change < 0].sum() + price * missed
    )


def test_the_oracle_is_the_cheapest_of_all_schedules() -> None:
    """Six steps, up to three replicas: no schedule of the 729 costs less, at each of three prices."""
    requests = np.array([5.0, 40.0, 60.0, 60.0, 10.0, 5.0])
    felt = np.array([0.3, 1.2, 2.4, 2.0, 0.6, 0.2])
    prices = np.array([0.2, 1.0, 8.0])
    found = schedule(requests, felt, CURVE, load_s=10.0, most=3, prices=prices)
    for lane, price in enumerate(prices):
        least = min(cost(each, requests, felt, price, 2.0) for each in product((1, 2, 3), repeat=6))
        assert cost(tuple(found[:, lane].tolist()), requests, felt, price, 2.0) == pytest.approx(least)


def test_the_oracles_frontier_costs_more_for_more() -> None:
    """Over a ramp: hours ascend with attainment, and a longer load time never costs less."""
    load = np.concatenate([np.full(60, 1.0), np.linspace(1, 4, 60), np.full(60, 4.0)])
    requests = load * 20
    short = frontier(requests, load, CURVE, load_s=5.0, most=10)
    long = frontier(requests, load, CURVE, load_s=300.0, most=10)
    assert all(one.hours <= two.hours + 1e-9 for one, two in pairwise(short))
    assert at_attainment(long, 0.98)[0] >= at_attainment(short, 0.98)[0] > 0


def test_lanes_are_played_side_by_side_as_alone() -> None:
    """Two settings of the HPA on two seeds: each lane's outcome is what it is alone."""
    clients, hardware = made_up(), hardware_named("a100-tp4/llama-2-70b")
    work = WorkModel(hardware)
    curve = synthetic("ramp").scaled(4.0 / mean_work_s(clients, work)).head(3_600)
    weeks = WeeksTraffic.of(tuple(counted(clients, curve, work, seed=seed) for seed in (1, 2)), CURVE)
    load_s = np.array([5.0, 60.0])
    both, _ = play(HorizontalPodAutoscaler(np.array([0.6, 0.8])), weeks, np.array([0, 1]), load_s)
    for lane, target in enumerate((0.6, 0.8)):
        alone, _ = play(
            HorizontalPodAutoscaler(np.array([target])),
            weeks,
            np.array([lane]),
            load_s[lane : lane + 1],
        )
        assert alone[0] == both[lane]


def test_a_fixed_number_is_paid_all_the_time() -> None:
    """Six replicas for an hour are six replica-hours, and never turn."""
    weeks = WeeksTraffic(np.full((720, 1), 10.0), np.full((720, 1), 1.0), np.full((720, 1), 1.0), CURVE)
    found, _ = play(
        FixedReplicas(np.array([6.0])), weeks, np.array([0]), np.array([60.0]), first=np.array([6])
    )
    assert found[0].hours == pytest.approx(6.0)
    assert (found[0].turns, found[0].starts, found[0].attainment) == (0, 0, 1.0)


def test_a_turn_is_a_change_of_direction() -> None:
    """Up, up, down, up: two turns."""
    assert turns(np.array([1, 2, 2, 3, 3, 2, 4])) == 2


def test_what_is_counted_is_what_is_listed() -> None:
    """The same seed: as many requests in each interval, and the same again when drawn again."""
    clients, work = made_up(), WorkModel(hardware_named("a100-tp4/llama-2-70b"))
    curve = RateCurve("flat", 600.0, np.array([3.0, 6.0, 6.0]))
    counts = counted(clients, curve, work, seed=7)
    whole = listed(clients, curve, seed=7, start_s=0.0, duration_s=1_800.0)
    by_step = np.bincount([int(one.at_ns / 1e9 / STEP_S) for one in whole.arrivals], minlength=360)
    assert counts.requests.tolist() == by_step.tolist()
    assert 0.9 < counts.requests.sum() / (600 * 15) < 1.1
    later = listed(clients, curve, seed=7, start_s=600.0, duration_s=600.0)
    assert len(later.arrivals) == by_step[120:240].sum()
    assert counted(clients, curve, work, seed=8).requests.tolist() != by_step.tolist()


def test_gaps_of_the_weeks_are_filled_or_kept(tmp_path: Path) -> None:
    """Zeros between neighbours are drawn straight between them; with `fill` false they stay."""
    path = tmp_path / "weeks.csv"
    path.write_text(
        "# from somewhere\nt_s,rate,clients_active,largest_client_rate\n0,10,1,1\n600,0,0,0\n1200,20,1,1\n"
    )
    filled = read_weeks(path)
    assert filled.rates.tolist() == [10.0, 15.0, 20.0]
    assert (filled.filled, filled.duration_s) == (1, 1_800.0)
    assert read_weeks(path, fill=False).rates.tolist() == [10.0, 0.0, 20.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,1\n600,-2\n", r"weeks\.csv:2: must be t_s,rate"),
        ("0,1\n600,nan\n", r"weeks\.csv:2: must be t_s,rate"),
        ("0,1\nnonsense\n", r"weeks\.csv:2: must be t_s,rate"),
        ("0,1\n600,1\n1900,1\n", "600 s apart"),
        ("0,1\n", "at least two rows"),
        ("0,0\n600,0\n", "nothing but zeros"),
    ],
)
def test_weeks_that_cannot_be_used_are_refused_with_file_line_and_mend(
    tmp_path: Path, text: str, said: str
) -> None:
    """One mistake each."""
    path = tmp_path / "weeks.csv"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=said):
        read_weeks(path)


def test_weeks_that_are_not_there_or_damaged_are_named(tmp_path: Path) -> None:
    """The path and the reason."""
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_weeks(tmp_path / "none.csv")
    path = tmp_path / "half.csv.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00half")
    with pytest.raises(WorkloadError, match="damaged"):
        read_weeks(path)
