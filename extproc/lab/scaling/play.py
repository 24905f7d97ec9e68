"""Plays cases: the oracle, the peers with several settings each, and the shipped planner.

Owns which settings that is and what a row of the results is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from extproc.lab.scaling.cases import HARDWARE_NAME, ScalingCase, ScalingStore, clients_of
from extproc.lab.scaling.measure import measure
from extproc.lab.scaling.oracle import OraclePoint, frontier
from extproc.lab.scaling.ours import PlannedLane, ShippedPlanner, kind_of
from extproc.lab.scaling.peers import (
    FixedReplicas,
    HorizontalPodAutoscaler,
    IntervalPlanner,
    KnativePodAutoscaler,
)
from extproc.lab.scaling.rates import Series
from extproc.lab.scaling.replicas import Scaler
from extproc.lab.scaling.service import KNOWN, ServiceCurve
from extproc.lab.scaling.traffic import STEP_S, CountedTraffic
from extproc.lab.scaling.weeks import REPLICAS_MAX, LaneOutcome, WeeksTraffic, play
from extproc.lab.workers import worker_pool
from extproc.sim.timing import hardware_named

#: What is aimed at, of all requests.
TARGET: Final = 0.98
#: A planner's interval by load time: as often as it can matter, and no oftener.
INTERVALS_S: Final = {5.0: 10.0, 60.0: 20.0, 300.0: 30.0}

Maker = Callable[[Series, ServiceCurve], Scaler]
#: Peers, their settings (shares of a replica's full load), and the one that their users have: HPA 70 %,
#: Knative's target-utilization 70 %; the planner of one interval goes by what was profiled, .8 here.
PEERS: Final[tuple[tuple[Maker, tuple[float, ...], float], ...]] = (
    (lambda shares, _: HorizontalPodAutoscaler(shares), (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95), 0.7),
    (KnativePodAutoscaler, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.7),
    (lambda shares, _: IntervalPlanner(shares, lags=0), (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.8),
    (lambda shares, _: IntervalPlanner(shares, lags=4), (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.8),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRow:
    """One lane's result. `usual`: the setting that is compared as it is; the others are played beside it."""

    scaler: str
    setting: float
    usual: bool
    load_s: float
    outcome: LaneOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A case's rows, and the oracle's schedules by load time, in the case's order of them."""

    case: ScalingCase
    rows: tuple[ScalingRow, ...]
    oracle: tuple[tuple[OraclePoint, ...], ...]


def play_case(case: ScalingCase, store: ScalingStore) -> CaseResult:
    """All of a case; what the store has is not played again."""
    kept: list[CountedTraffic] = []

    def traffic() -> CountedTraffic:
        if not kept:
            kept.append(store.traffic(case))
        return kept[0]

    curve = curve_for(case, store)

    oracle = tuple(
        store.part(
            case,
            f"oracle {load_s:g}",
            tuple[OraclePoint, ...],
            lambda load_s=load_s: _oracle(traffic(), curve, load_s),  # type: ignore[misc]
        )
        for load_s in case.load_times_s
    )
    rows = list(
        store.part(
            case,
            "peers",
            tuple[ScalingRow, ...],
            lambda: _peers(traffic(), curve, np.array(case.load_times_s)),
        )
    )
    for load_s in case.load_times_s:
        rows += store.part(
            case,
            f"ours {load_s:g}",
            tuple[ScalingRow, ...],
            lambda load_s=load_s: (ours(traffic(), curve, load_s),),  # type: ignore[misc]
        )
    return CaseResult(case=case, rows=tuple(rows), oracle=oracle)


def curve_for(case: ScalingCase, store: ScalingStore) -> ServiceCurve:
    """What is known of the case's clients, else measured once and kept."""
    clients = clients_of(case.day)
    known = KNOWN.get(clients.name)
    if known is not None:
        return known
    alone = ScalingCase(name="curve", seed=0, day=case.day)
    return store.part(alone, "curve", ServiceCurve, lambda: measure(clients))


def _oracle(traffic: CountedTraffic, curve: ServiceCurve, load_s: float) -> tuple[OraclePoint, ...]:
    weeks = WeeksTraffic.of((traffic,), curve)
    found = frontier(weeks.requests[:, 0], weeks.felt[:, 0], curve, load_s=load_s, most=REPLICAS_MAX)
    return tuple(found)


def at_peak(traffic: CountedTraffic, curve: ServiceCurve) -> float:
    """Replicas with which even the worst ten minutes are within the aim, in the mean of them."""
    window = round(600 / STEP_S)
    whole = max(window, len(traffic.load) // window * window)
    means = traffic.load[:whole].reshape(-1, min(window, len(traffic.load))).mean(1)
    return float(np.ceil(means.max() / curve.load_at(TARGET)))


def _peers(traffic: CountedTraffic, curve: ServiceCurve, load_times_s: Series) -> tuple[ScalingRow, ...]:
    weeks = WeeksTraffic.of((traffic,), curve)
    peak = at_peak(traffic, curve)
    every: list[tuple[Maker, tuple[float, ...], float]] = [
        *PEERS,
        (lambda counts, _: FixedReplicas(counts), (peak,), peak),
    ]
    rows = []
    for make, settings, usual in every:
        each = np.tile(np.array(settings), len(load_times_s))
        load_s = np.repeat(load_times_s, len(settings))
        scaler = make(each, curve)
        first = np.full(len(each), round(peak)) if isinstance(scaler, FixedReplicas) else None
        found, _ = play(scaler, weeks, np.zeros(len(each), dtype=np.int64), load_s, first=first)
        rows += [
            ScalingRow(
                scaler=scaler.name, setting=setting, usual=setting == usual, load_s=at, outcome=outcome
            )
            for setting, at, outcome in zip(each.tolist(), load_s.tolist(), found, strict=True)
        ]
    return tuple(rows)


def ours(
    traffic: CountedTraffic, curve: ServiceCurve, load_s: float, *, target: float = TARGET
) -> ScalingRow:
    """The shipped planner on one lane."""
    lane = PlannedLane(
        traffic=traffic,
        load_s=load_s,
        target=target,
        interval_s=INTERVALS_S.get(load_s, 20.0),
        full=curve.full,
    )
    scaler = ShippedPlanner([lane], kind_of(hardware_named(HARDWARE_NAME)), most=REPLICAS_MAX)
    weeks = WeeksTraffic.of((traffic,), curve)
    found, _ = play(scaler, weeks, np.zeros(1, dtype=np.int64), np.array([load_s]))
    return ScalingRow(scaler=scaler.name, setting=target, usual=True, load_s=load_s, outcome=found[0])


def play_all_cases(
    wanted: Sequence[ScalingCase], folder: Path, *, workers: int, told: Callable[[CaseResult], None]
) -> list[CaseResult]:
    """Every case, in processes of their own where there are several workers; `told` hears of each."""
    results = []
    if workers <= 1:
        store = ScalingStore(folder)
        for case in wanted:
            results.append(play_case(case, store))
            told(results[-1])
        return results
    with worker_pool(workers) as pool:
        for result in pool.imap(_task, [(case, folder) for case in wanted]):
            results.append(result)
            told(result)
    return results


def _task(task: tuple[ScalingCase, Path]) -> CaseResult:
    case, folder = task
    return play_case(case, ScalingStore(folder))
