"""A study's results as pictures: attainment against load, TTFT's distribution, all cells at once.

Owns the looks. Needs matplotlib (the extra `lab`), imported when a plot is made. SVG bytes depend on the
data and on matplotlib's version alone: ids are salted, dates left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from extproc.lab.report.cells import ORACLE, Cell, StrategyRow, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours (tell apart also by the colour-blind), then greys; markers differ besides.
COLOURS: Final = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"),
    *("#56B4E9", "#7A7A00", "#7F3C8D", "#888888", "#444444"),
)
_MARKERS: Final = "osD^vP*Xhp"
_CDF_POINTS_MAX: Final = 500
# Keys are `Any`: matplotlib types them as a literal of every setting that its version has.
STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "steersman",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def plots(
    folder: str | Path,
    cells: Iterable[Cell],
    *,
    ttft_ms: Mapping[str, Sequence[float]] | None = None,
    ttft_slo_ms: float | None = None,
    emphasis: str | None = None,
) -> list[Path]:
    """Writes each plot as PNG and SVG into `folder` (made if missing); the paths written.

    `ttft_ms` is each strategy's first-token times for the distribution (not drawn without), with its
    bound `ttft_slo_ms`. `emphasis` names the strategy drawn boldest; one named "oracle" is dashed.
    `ValueError` without cells.
    """
    import matplotlib as mpl

    held = rows(cells)
    if not held:
        raise ValueError("no cells: there is nothing to plot")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    strategies = list(dict.fromkeys(row.strategy for row in held))
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        drawn = {
            "attainment-by-load": _by_load(held, strategies, emphasis),
            "cells": _heat_map(held, strategies),
        }
        if ttft_ms:
            drawn["ttft"] = _ttft(ttft_ms, strategies, ttft_slo_ms, emphasis)
        for name, figure in drawn.items():
            for suffix in ("png", "svg"):
                path = folder / f"{name}.{suffix}"
                metadata = {"Software": None} if suffix == "png" else {"Date": None, "Creator": "steersman"}
                figure.savefig(path, dpi=144, metadata=metadata, bbox_inches="tight")
                written.append(path)
    return written


def _line(strategy: str, strategies: Sequence[str], emphasis: str | None) -> dict[str, Any]:
    if strategy == ORACLE:
        return {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 2.5}
    at = strategies.index(strategy) if strategy in strategies else 0
    bold = strategy == emphasis
    return {
        "color": COLOURS[at % len(COLOURS)],
        "linewidth": 2.4 if bold else 1.3,
        "zorder": 4 if bold else 3,
    }


def _by_load(held: list[StrategyRow], strategies: list[str], emphasis: str | None) -> Figure:
    """One panel a workload, one legend for all."""
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(row.workload for row in held))
    across = 2 if len(workloads) in (2, 4) else min(len(workloads), 3)
    down = ceil(len(workloads) / across)
    figure = Figure(figsize=(max(4.2 * across, 5.5), 3.2 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for workload, axes in zip(workloads, panels, strict=False):
        own = [row for row in held if row.workload == workload]
        for strategy in strategies:
            _attainment_line(
                axes, [row for row in own if row.strategy == strategy], _line(strategy, strategies, emphasis)
            )
        axes.set_title(workload)
        axes.set_xlabel("load (1 = the fleet's capacity)")
        axes.set_xticks(sorted({row.load for row in own}))
        axes.set_ylim(top=101.5)
    for axes in list(figure.axes)[len(workloads) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5))
    figure.supylabel("attainment, % of all requests", fontsize=9)
    figure.suptitle("Simulated; bands are 95 % intervals over seeds", fontsize=8, color="#555555")
    return figure


def _attainment_line(axes: Axes, own: list[StrategyRow], style: dict[str, Any]) -> None:
    points = [(row.load, one) for row in own if (one := row.values["attainment"]) is not None]
    if not points:
        return
    strategy = own[0].strategy
    marker = "" if strategy == ORACLE else _MARKERS[COLOURS.index(style["color"])]
    loads = [load for load, _ in points]
    axes.plot(
        loads, [100 * one.mean for _, one in points], marker=marker, markersize=4.5, label=strategy, **style
    )
    if any(one.half for _, one in points):
        axes.fill_between(
            loads,
            [100 * max(one.mean - (one.half or 0), 0) for _, one in points],
            [100 * min(one.mean + (one.half or 0), 1) for _, one in points],
            color=style["color"],
            alpha=0.1,
            linewidth=0,
        )


def _ttft(
    ttft_ms: Mapping[str, Sequence[float]],
    strategies: list[str],
    slo_ms: float | None,
    emphasis: str | None,
) -> Figure:
    """Cumulative shares on a logarithmic axis, thinned to `_CDF_POINTS_MAX` points a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for strategy, values in ttft_ms.items():
        ordered = sorted(max(value, 0.1) for value in values)  # the axis has no zero
        if not ordered:
            continue
        last = len(ordered) - 1
        count = min(len(ordered), _CDF_POINTS_MAX)
        at = sorted({round(point * last / max(count - 1, 1)) for point in range(count)})
        axes.plot(
            [ordered[one] for one in at],
            [100 * (one + 1) / len(ordered) for one in at],
            label=strategy,
            **_line(strategy, strategies, emphasis),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    if slo_ms is not None:
        axes.axvline(slo_ms, color="#555555", linestyle=":", linewidth=1)
        axes.annotate(
            f"bound {slo_ms:,.0f} ms",
            (slo_ms, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#555555",
        )
    axes.set_xlabel("time to first token, ms (answered requests)")
    axes.set_ylabel("share of answered, %")
    axes.set_ylim(0, 101.5)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.set_title("Simulated", loc="left", fontsize=8, color="#555555")
    return figure


def _heat_map(held: list[StrategyRow], strategies: list[str]) -> Figure:
    """Strategies down, workloads at their loads across, attainment in each cell."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((row.workload, row.load) for row in held))
    by_place = {(row.strategy, row.workload, row.load): row.values["attainment"] for row in held}
    grid = [
        [100 * one.mean if (one := by_place.get((strategy, *place))) else float("nan") for place in places]
        for strategy in strategies
    ]
    figure = Figure(figsize=(0.62 * len(places) + 3.4, 0.38 * len(strategies) + 1.9), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(len(strategies)), strategies)
    axes.set_xticks(range(len(places)), [f"{load:g}" for _, load in places])
    axes.set_xlabel("load")
    axes.tick_params(length=0)
    for down, line in enumerate(grid):
        for across, value in enumerate(line):
            if value == value:  # not a number: the strategy did not run there
                ink = "black" if value > 60 else "white"
                axes.text(across, down, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
    _workload_heads(axes, [workload for workload, _ in places])
    figure.colorbar(image, ax=axes, label="attainment, % (simulated)", shrink=0.9)
    return figure


def _workload_heads(axes: Axes, workloads: list[str]) -> None:
    """Names above their columns, a line between neighbours."""
    for workload in dict.fromkeys(workloads):
        first = workloads.index(workload)
        count = workloads.count(workload)
        axes.text(first + (count - 1) / 2, -0.65, workload, ha="center", va="bottom", fontsize=9)
        if first:
            axes.axvline(first - 0.5, color="white", linewidth=3)
