"""Fleets as a picture: attainment against cost, or against replicas where no price is known.

Needs matplotlib (the extra `lab`), imported when a plot is made. Looks are `lab.report.plots`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from extproc.lab.capacity.figures import FleetFigures
from extproc.lab.report.cells import MeanInterval
from extproc.lab.report.plots import COLOURS, STYLE


def plot_fleets(path: Path, rows: Sequence[FleetFigures], *, target: float | None = None) -> Path:
    """Writes the picture (PNG, SVG or PDF, by the name's end); the path. ValueError for another end."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path.name!r} ends in none of .png, .svg, .pdf")
    if not rows:
        raise ValueError("no fleets: there is nothing to plot")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    priced = all(row.cost_per_hour is not None for row in rows)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(kinds):
            own = sorted(
                (
                    (_across(row, priced=priced), 100 * row.attainment, row)
                    for row in rows
                    if row.kind == kind
                ),
                key=lambda point: point[:2],
            )
            halves = [100 * ((each.half if each else None) or 0.0) for each in _attained(own)]
            shares = [y for _, y, _ in own]
            axes.errorbar(
                [x for x, _, _ in own],
                shares,
                # No share is below nothing or above all.
                yerr=[
                    [min(half, y) for half, y in zip(halves, shares, strict=True)],
                    [min(half, 100.0 - y) for half, y in zip(halves, shares, strict=True)],
                ],
                marker="o",
                markersize=4.5,
                capsize=2,
                label=kind,
                color=COLOURS[number % len(COLOURS)],
            )
            for x, y, row in own:
                axes.annotate(
                    f"{row.replicas}", (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7
                )
        if target is not None:
            axes.axhline(100 * target, color="#555555", linestyle=":", linewidth=1)
        axes.set_xlabel("cost an hour" if priced else "replicas")
        axes.set_ylabel("within targets, % of all requests")
        figure.legend(loc="outside lower center", ncols=2)
        axes.set_title(
            "Simulated; numbers are replicas, bars 95 % intervals over seeds", loc="left", fontsize=8
        )
        metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(path.suffix)
        figure.savefig(path, dpi=144, metadata=metadata, bbox_inches="tight")
    return path


def _attained(own: Sequence[tuple[float, float, FleetFigures]]) -> list[MeanInterval | None]:
    return [row.values["attainment"] for _, _, row in own]


def _across(row: FleetFigures, *, priced: bool) -> float:
    return row.cost_per_hour if priced and row.cost_per_hour is not None else float(row.replicas)
