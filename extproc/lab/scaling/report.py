"""From rows to the tables of `make sim-scaling`.

Owns what is compared with what. Shares are of all requests; hours are of cards, paid from a replica's start
until it is empty; intervals are over seeds (Student's t, 95 %).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.lab.report import MeanInterval, interval
from extproc.lab.scaling.cases import CARDS, HARDWARE_NAME
from extproc.lab.scaling.check import FidelityRow
from extproc.lab.scaling.oracle import at_attainment
from extproc.lab.scaling.peers import FixedReplicas
from extproc.lab.scaling.play import TARGET, CaseResult, ScalingRow

#: The aims: hours by the oracle's, turns by the oracle's, hours less than the best peer's.
HOURS_MOST, TURNS_MOST, LESS_LEAST = 1.10, 1.5, 0.15
#: An attainment that is the target in a table counts as it.
ROUNDED: Final = 5e-4
OURS: Final = "steersman"
_OURS_HEAD: Final = (
    "| workload | load s | attained % | worst 10 min % | hours | /oracle | same | turns | oracle's "
    "| best peer, in hindsight | less % | misses |"
)
_HEAD: Final = (
    "Everything here is simulated: {cards} cards a replica ({hardware}), timings from splitwise-sim. "
    "`hours` are GPU-hours, paid from a replica's start until it is empty; `/oracle` divides them by those "
    "of an oracle that knows what comes and has the same load time, at {target:.0%} attainment and (`same`) "
    "at the attainment that was reached. `turns` are changes of direction a day. `less` is how much less "
    "than a peer we paid at the attainment that we reached, the peer's setting chosen in hindsight for that. "
    "Means of {seeds} seeds, ± half of the 95 % interval."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One workload and load time over seeds."""

    workload: str
    load_s: float
    attainment: MeanInterval
    hours: MeanInterval
    to_oracle: MeanInterval
    to_oracle_same: MeanInterval
    turns: MeanInterval
    oracle_turns: MeanInterval
    worst: MeanInterval
    #: By peer: how much less we paid at our attainment, None where no setting of it reaches that.
    less: dict[str, MeanInterval | None]
    #: By peer with its usual setting: attainment, hours by the oracle's, turns.
    usual: dict[str, tuple[MeanInterval, MeanInterval, MeanInterval]]

    @property
    def best_peer(self) -> tuple[str, float] | None:
        """The peer that would have paid least at our attainment, and how much less we paid (a share)."""
        known = [(found.mean, name) for name, found in self.less.items() if found is not None]
        return (min(known)[1], min(known)[0]) if known else None

    @property
    def missed(self) -> list[str]:
        """The aims that this cell misses, in words."""
        found = []
        if self.attainment.mean < TARGET - ROUNDED:
            found.append("attainment")
        if self.to_oracle.mean > HOURS_MOST + 5e-3:
            found.append("hours")
        if self.turns.mean > TURNS_MOST * max(self.oracle_turns.mean, 1.0):
            found.append("turns")
        best = self.best_peer
        if best is not None and best[1] < LESS_LEAST:
            found.append("15 % below peers")
        return found


def judged(results: Sequence[CaseResult]) -> list[Judged]:
    """Every workload and load time that was played, in order."""
    keys = dict.fromkeys(
        (result.case.name, load_s) for result in results for load_s in result.case.load_times_s
    )
    return [
        _judge(name, load_s, [result for result in results if result.case.name == name])
        for name, load_s in sorted(keys)
    ]


def _judge(name: str, load_s: float, results: Sequence[CaseResult]) -> Judged:
    own, oracles, rows = [], [], []
    for result in results:
        at = result.case.load_times_s.index(load_s)
        here = [row for row in result.rows if row.load_s == load_s]
        own.append(next(row for row in here if row.scaler == OURS))
        oracles.append(list(result.oracle[at]))
        rows.append(here)
    at_target = [at_attainment(points, TARGET) for points in oracles]
    same = [
        at_attainment(points, row.outcome.attainment)[0] for points, row in zip(oracles, own, strict=True)
    ]
    peers = list(dict.fromkeys(row.scaler for row in rows[0] if row.scaler != OURS))
    return Judged(
        workload=name,
        load_s=load_s,
        attainment=_mean(row.outcome.attainment for row in own),
        hours=_mean(CARDS * row.outcome.hours for row in own),
        to_oracle=_mean(row.outcome.hours / hours for row, (hours, _) in zip(own, at_target, strict=True)),
        to_oracle_same=_mean(row.outcome.hours / hours for row, hours in zip(own, same, strict=True)),
        turns=_mean(row.outcome.turns for row in own),
        oracle_turns=_mean(turns for _, turns in at_target),
        worst=_mean(row.outcome.worst for row in own),
        less={peer: _less(peer, own, rows) for peer in peers},
        usual={
            peer: _usual([_usual_row(peer, here) for here in rows], [hours for hours, _ in at_target])
            for peer in peers
        },
    )


def _usual_row(peer: str, rows: Iterable[ScalingRow]) -> ScalingRow:
    return next(row for row in rows if row.scaler == peer and row.usual)


def _usual(
    rows: Sequence[ScalingRow], oracle: Sequence[float]
) -> tuple[MeanInterval, MeanInterval, MeanInterval]:
    return (
        _mean(row.outcome.attainment for row in rows),
        _mean(row.outcome.hours / hours for row, hours in zip(rows, oracle, strict=True)),
        _mean(row.outcome.turns for row in rows),
    )


def hours_at(peer: str, rows: Iterable[ScalingRow], share: float) -> float | None:
    """What a peer pays at an attainment, straight between its settings; None where none reaches it."""
    points = sorted((row.outcome.attainment, row.outcome.hours) for row in rows if row.scaler == peer)
    if not points or points[-1][0] < share - 1e-9:
        return None
    # Of settings that attain alike the cheapest counts: hours ascend with attainment on what is left.
    cheapest: list[tuple[float, float]] = []
    for attained, hours in reversed(points):
        if not cheapest or hours < cheapest[-1][1]:
            cheapest.append((attained, hours))
    cheapest.reverse()
    return float(np.interp(share, [point[0] for point in cheapest], [point[1] for point in cheapest]))


def _less(peer: str, own: Sequence[ScalingRow], rows: Sequence[Sequence[ScalingRow]]) -> MeanInterval | None:
    shares = []
    for row, here in zip(own, rows, strict=True):
        hours = hours_at(peer, here, row.outcome.attainment)
        if hours is None:
            return None
        shares.append(1.0 - row.outcome.hours / hours)
    return _mean(shares)


def _mean(values: Iterable[float]) -> MeanInterval:
    return interval(list(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class OneSetting:
    """A scaler with one setting for every workload, load time and seed. `enough`: in how many of the `cells`
    (a workload and a load time) the target attains; `to_oracle` and `attainment` are means of the cells'."""

    scaler: str
    setting: float
    cells: int
    enough: int
    attainment: float
    to_oracle: float


def one_setting(results: Sequence[CaseResult]) -> list[OneSetting]:
    """Ours first, then each peer with the one setting that would have been best for it over all cells: the
    cheapest with which the target attains in as many cells as with ours, else in as many as with any.

    A setting chosen anew for each cell knows what came there; one for all is what users can have.
    Numbers of replicas are left out: they are of one workload.
    """
    found: dict[tuple[str, float], dict[tuple[str, float], list[tuple[float, float]]]] = {}
    for result in results:
        oracle_at = {
            load_s: at_attainment(list(points), TARGET)[0]
            for load_s, points in zip(result.case.load_times_s, result.oracle, strict=True)
        }
        for row in result.rows:
            cell = (result.case.name, row.load_s)
            ratio = row.outcome.hours / oracle_at[row.load_s]
            by_cell = found.setdefault((row.scaler, row.setting), {})
            by_cell.setdefault(cell, []).append((row.outcome.attainment, ratio))
    most = max(len(by_cell) for by_cell in found.values())
    settings = [
        _over_cells(scaler, setting, list(by_cell.values()))
        for (scaler, setting), by_cell in found.items()
        if len(by_cell) == most and scaler != FixedReplicas.name
    ]
    ours = next(each for each in settings if each.scaler == OURS)
    best = [ours]
    for peer in dict.fromkeys(each.scaler for each in settings if each.scaler != OURS):
        own = [each for each in settings if each.scaler == peer]
        least = min(ours.enough, max(each.enough for each in own))
        best.append(min((each for each in own if each.enough >= least), key=lambda each: each.to_oracle))
    return best


def _over_cells(scaler: str, setting: float, cells: Sequence[Sequence[tuple[float, float]]]) -> OneSetting:
    means = [np.mean(np.array(seeds), axis=0) for seeds in cells]
    return OneSetting(
        scaler=scaler,
        setting=setting,
        cells=len(cells),
        enough=sum(float(mean[0]) >= TARGET - ROUNDED for mean in means),
        attainment=float(np.mean([mean[0] for mean in means])),
        to_oracle=float(np.mean([mean[1] for mean in means])),
    )


def said(found: MeanInterval, form: str = ".2f", factor: float = 1.0) -> str:
    """A mean and its half interval."""
    text = format(found.mean * factor, form)
    return text if found.half is None else f"{text} ± {format(found.half * factor, form)}"


def markdown_report(
    results: Sequence[CaseResult], check: Sequence[FidelityRow], *, notes: Sequence[str] = ()
) -> str:
    """The whole report."""
    cells = judged(results)
    seeds = len({result.case.seed for result in results})
    lines = ["# Scaling, simulated", ""]
    lines += [_HEAD.format(cards=CARDS, hardware=HARDWARE_NAME, target=TARGET, seeds=seeds), ""]
    lines += [*(f"- {note}" for note in notes), ""]
    lines += [
        "## Ours",
        "",
        _OURS_HEAD,
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for cell in cells:
        best = cell.best_peer
        lines.append(
            f"| {cell.workload} | {cell.load_s:g} | {said(cell.attainment, '.2f', 100)} "
            f"| {said(cell.worst, '.0f', 100)} | {said(cell.hours, '.0f')} | {said(cell.to_oracle)} "
            f"| {said(cell.to_oracle_same)} | {said(cell.turns, '.0f')} | {said(cell.oracle_turns, '.0f')} "
            f"| {best[0] if best else 'none reaches it'} | {f'{100 * best[1]:.0f}' if best else ''} "
            f"| {', '.join(cell.missed) or 'none'} |"
        )
    lines += [
        "",
        "## Peers with their usual settings",
        "",
        "| workload | load s | scaler | attained % | /oracle | turns | we paid less at our attainment % |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for cell in cells:
        for peer, (attained, ratio, turns) in cell.usual.items():
            less = cell.less[peer]
            lines.append(
                f"| {cell.workload} | {cell.load_s:g} | {peer} | {said(attained, '.2f', 100)} "
                f"| {said(ratio)} | {said(turns, '.0f')} "
                f"| {said(less, '.0f', 100) if less is not None else 'never reaches it'} |"
            )
    lines += [
        "",
        "## One setting for all of it",
        "",
        "Each peer has the setting that would have been best over all cells, ours the one it comes with.",
        "",
        "| scaler | setting | cells in which the target attains | attained % | /oracle | we paid less % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    settings = one_setting(results)
    lines += [
        f"| {each.scaler} | {each.setting:g} | {each.enough} of {each.cells} | {100 * each.attainment:.2f} "
        f"| {each.to_oracle:.2f} | {100 * (1.0 - settings[0].to_oracle / each.to_oracle):.0f} |"
        for each in settings
    ]
    if check:
        lines += [
            "",
            "## The fast model against the requests",
            "",
            "| scaler | requests | attained, by request % | by model % | hours by request | by model |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row.scaler} | {row.requests} | {100 * row.by_request:.2f} | {100 * row.by_model:.2f} "
            f"| {CARDS * row.hours_by_request:.1f} | {CARDS * row.hours_by_model:.1f} |"
            for row in check
        ]
    return "\n".join([*lines, ""])
