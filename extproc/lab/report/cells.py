"""Runs side by side: cells, and their means over seeds with confidence intervals.

Owns what a study's table is made of. Pure; renders nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Final

from extproc.lab.report.figures import Figures, Spread

ORACLE: Final = "oracle"  # the strategy that sees true lengths and states: a bound, not a rival

# Student's t, two-sided 95 %, by degrees of freedom 1..30; beyond, the last (slightly wide).
_T95: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a strategy on a workload at a load, from a seed."""

    workload: str
    load: float
    strategy: str
    seed: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean over `runs` seeds and half the width of its 95 % interval (None for a single run)."""

    mean: float
    half: float | None
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyRow:
    """One strategy on one workload at one load, over seeds: `values` by metric, None where unmeasured."""

    workload: str
    load: float
    strategy: str
    seeds: tuple[int, ...]
    values: Mapping[str, MeanInterval | None]


def _at(name: str, point: str) -> Callable[[Figures], float | None]:
    def read(figures: Figures) -> float | None:
        held: Spread | None = getattr(figures, name)
        return None if held is None else float(getattr(held, point))

    return read


METRICS: Final[Mapping[str, Callable[[Figures], float | None]]] = {
    "attainment": lambda figures: figures.attainment,
    "goodput_rps": lambda figures: figures.goodput_rps,
    "ttft_p50_ms": _at("ttft_ms", "p50"),
    "ttft_p90_ms": _at("ttft_ms", "p90"),
    "ttft_p99_ms": _at("ttft_ms", "p99"),
    "ttft_mean_ms": _at("ttft_ms", "mean"),
    "tpot_p50_ms": _at("tpot_ms", "p50"),
    "tpot_p99_ms": _at("tpot_ms", "p99"),
    "e2e_p50_ms": _at("e2e_ms", "p50"),
    "e2e_p99_ms": _at("e2e_ms", "p99"),
    "shed_share": lambda figures: (figures.shed + figures.refused) / figures.requests,
    "failed_share": lambda figures: figures.failed / figures.requests,
    "shed_prompt_ratio": lambda figures: figures.shed_prompt_ratio,
    "shed_idle": lambda figures: float(figures.shed_idle),
    "shed_room": lambda figures: float(figures.shed_room),
    "ttft_error": lambda figures: figures.ttft_error,
    "change_known_s": lambda figures: figures.change_known_s,
    "hit_share": lambda figures: figures.hit_share,
    "fairness_jain": lambda figures: figures.fairness_jain,
    "attainment_least": lambda figures: figures.attainment_least,
    "service_gap_tokens_per_s": lambda figures: figures.service_gap_tokens_per_s,
    "utilisation": lambda figures: figures.utilisation_mean,
    "cost_per_1k_attained": lambda figures: figures.cost_per_1k_attained,
}


def interval(values: Sequence[float]) -> MeanInterval:
    """The mean and its Student's t interval at 95 %; `ValueError` for no values.

    Seeds are independent runs, so the interval is over runs, not over requests, which queues correlate.
    """
    if not values:
        raise ValueError("no runs: there is no mean")
    half = None
    if len(values) > 1:
        half = _T95[min(len(values) - 1, len(_T95)) - 1] * stdev(values) / sqrt(len(values))
    return MeanInterval(fmean(values), half, len(values))


def rows(cells: Iterable[Cell]) -> list[StrategyRow]:
    """Cells gathered over seeds: workloads and strategies in order of appearance, loads ascending."""
    gathered: dict[tuple[str, float, str], list[Cell]] = {}
    workloads: dict[str, int] = {}
    strategies: dict[str, int] = {}
    for cell in cells:
        workloads.setdefault(cell.workload, len(workloads))
        strategies.setdefault(cell.strategy, len(strategies))
        gathered.setdefault((cell.workload, cell.load, cell.strategy), []).append(cell)
    ordered = sorted(gathered, key=lambda key: (workloads[key[0]], key[1], strategies[key[2]]))
    return [
        StrategyRow(
            workload=workload,
            load=load,
            strategy=strategy,
            seeds=tuple(sorted(cell.seed for cell in gathered[workload, load, strategy])),
            values={name: _over(read, gathered[workload, load, strategy]) for name, read in METRICS.items()},
        )
        for workload, load, strategy in ordered
    ]


def _over(read: Callable[[Figures], float | None], cells: list[Cell]) -> MeanInterval | None:
    values = [value for value in (read(cell.figures) for cell in cells) if value is not None]
    return interval(values) if values else None
