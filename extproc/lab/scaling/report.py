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
from extproc.lab.scaling.play import TARGET, CaseResult, ScalingRow

#: The aims: hours by the oracle's, turns by the oracle's, hours less than the best peer's.
HOURS_MOST, TURNS_MOST, LESS_LEAST = 1.10, 1.5, 0.15
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
        if self.attainment.mean < TARGET - 5e-4:
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
