"""A study's results as text: a table for the terminal, JSON for machines, Markdown for people.

Owns the looks. The same cells make the same bytes, whatever machine and day.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final, TextIO

from extproc.lab.report.cells import ORACLE, Cell, MeanInterval, StrategyRow, rows

DECIMALS: Final = 6  # of every number in JSON
_COLUMN_GAP: Final = 3  # a rich column's padding and divider
SIMULATED: Final = "simulated; timings from splitwise-sim / vidur"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    metric: str
    show: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ms(value: float) -> str:
    return f"{value:,.0f}"


def _count(value: float) -> str:
    return f"{value:.4g}"


def _plain(value: float) -> str:
    return f"{value:.2f}"


_COLUMNS: Final = (
    _Column("att %", "attainment", _percent),
    _Column("goodput/s", "goodput_rps", _plain),
    _Column("TTFT p50 ms", "ttft_p50_ms", _ms),
    _Column("TTFT p99 ms", "ttft_p99_ms", _ms),
    _Column("TPOT p50 ms", "tpot_p50_ms", _ms),
    _Column("TPOT p99 ms", "tpot_p99_ms", _ms),
    _Column("shed %", "shed_share", _percent),
    _Column("shed idle", "shed_idle", _count),
    _Column("failed %", "failed_share", _percent),
    _Column("hit %", "hit_share", _percent),
    _Column("Jain", "fairness_jain", _plain),
    _Column("least tenant %", "attainment_least", _percent),
    _Column("shed prompt ×", "shed_prompt_ratio", _plain),
    _Column("TTFT error %", "ttft_error", _percent),
    _Column("change known s", "change_known_s", _plain),
    _Column("busy %", "utilisation", _percent),
    _Column("cost/1k", "cost_per_1k_attained", _plain),
)


def table(cells: Iterable[Cell], *, file: TextIO | None = None) -> None:
    """Writes one line per workload, load and strategy to `file` (None: standard output).

    A terminal gets a rich table of as many columns as fit, anything else aligned plain text. Columns
    that nobody measured are left out.
    """
    file = file or sys.stdout
    titles, lines = _tabulate(rows(cells))
    if not file.isatty():
        for line in _aligned(titles, lines):
            file.write(line + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file)
    # Headings wrap, at spaces; cells keep their width, and a narrow terminal loses the last columns.
    widths = [
        max(*map(len, title.split()), *(len(line[at]) for line in lines), 1)
        for at, title in enumerate(titles)
    ]
    kept = len(widths)
    while kept > 3 and sum(width + _COLUMN_GAP for width in widths[:kept]) > console.width:
        kept -= 1
    left_out = f"; for {', '.join(titles[kept:])} widen the terminal" if kept < len(widths) else ""
    shown = Table(box=SIMPLE_HEAD, caption=SIMULATED + left_out, pad_edge=False)
    for at, title in enumerate(titles[:kept]):
        shown.add_column(title, justify="left" if at in (0, 2) else "right", min_width=widths[at])
    for at, cells_shown in enumerate(lines):
        if at and cells_shown[:2] != lines[at - 1][:2]:
            shown.add_section()
        shown.add_row(*(Text(one) for one in cells_shown[:kept]))
    console.print(shown)


def to_json(cells: Iterable[Cell]) -> str:
    """All cells and their means over seeds; sorted keys, `DECIMALS` decimals, null for NaN."""
    held = sorted(cells, key=lambda cell: (cell.workload, cell.load, cell.strategy, cell.seed))
    document = {
        "label": SIMULATED,
        "cells": [asdict(cell) for cell in held],
        "rows": [asdict(row) for row in rows(held)],
    }
    return json.dumps(_fixed(document), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(
    cells: Iterable[Cell],
    *,
    title: str = "Simulated strategies",
    facts: Mapping[str, str] | None = None,
    figures: Sequence[str] = (),
) -> str:
    """A report: attainment by load, then every figure, one section a workload.

    `facts` are lines of context (fleet, bounds, command), `figures` paths of plots to show.
    """
    held = rows(cells)
    parts = [f"# {title}", "", f"Every figure here is {SIMULATED}.", ""]
    parts += [f"- {name}: {value}" for name, value in (facts or {}).items()]
    parts += [""] if facts else []
    for path in figures:
        parts += [f"![{path.rsplit('/', 1)[-1].rsplit('.', 1)[0].replace('-', ' ')}]({path})", ""]
    for workload in dict.fromkeys(row.workload for row in held):
        own = [row for row in held if row.workload == workload]
        parts += [
            f"## {workload}",
            "",
            "Attainment, % of all requests (± half of the 95 % interval over seeds):",
            "",
        ]
        parts += [*_attainment(own), "", *_markdown_rows(*_tabulate(own, workload=False)), ""]
    return "\n".join(parts)


def _attainment(held: list[StrategyRow]) -> list[str]:
    """Strategies down, loads across; the best of each load in bold, the oracle aside: nobody can run it."""
    loads = sorted({row.load for row in held})
    by_place = {(row.strategy, row.load): row.values["attainment"] for row in held}
    best = {
        load: max(
            (
                one.mean
                for (strategy, at), one in by_place.items()
                if at == load and strategy != ORACLE and one is not None
            ),
            default=None,
        )
        for load in loads
    }
    lines = []
    for strategy in dict.fromkeys(row.strategy for row in held):
        line = [strategy]
        for load in loads:
            one = by_place.get((strategy, load))
            text = _interval(one, _percent)
            line.append(
                f"**{text}**" if one is not None and strategy != ORACLE and one.mean == best[load] else text
            )
        lines.append(line)
    return _markdown_rows(["strategy", *(f"load {load:g}" for load in loads)], lines, left=1)


def _tabulate(held: list[StrategyRow], *, workload: bool = True) -> tuple[list[str], list[list[str]]]:
    columns = [column for column in _COLUMNS if any(row.values[column.metric] is not None for row in held)]
    titles = [*(["workload"] if workload else []), "load", "strategy", *(column.title for column in columns)]
    lines = [
        [
            *([row.workload] if workload else []),
            f"{row.load:g}",
            row.strategy,
            *(
                _interval(row.values[column.metric], column.show, half=column.metric == "attainment")
                for column in columns
            ),
        ]
        for row in held
    ]
    return titles, lines


def _interval(one: MeanInterval | None, show: Callable[[float], str], *, half: bool = True) -> str:
    if one is None:
        return "–"
    return show(one.mean) + (f" ±{show(one.half)}" if half and one.half is not None else "")


def _aligned(titles: list[str], lines: list[list[str]]) -> list[str]:
    words = {0, 2}
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    return [
        "  ".join(
            one.ljust(width) if at in words else one.rjust(width)
            for at, (one, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [titles, *lines]
    ] + [SIMULATED]


def _markdown_rows(titles: list[str], lines: list[list[str]], *, left: int = 2) -> list[str]:
    rule = ["---" if at < left else "---:" for at in range(len(titles))]
    return [
        "| " + " | ".join(one.replace("|", "\\|") for one in line) + " |" for line in [titles, rule, *lines]
    ]


def _fixed(value: Any) -> Any:
    """Numbers to fixed decimals, so that the last bits of a sum do not show."""
    if isinstance(value, float):
        return round(value, DECIMALS) + 0.0 if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _fixed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_fixed(one) for one in value]
    return value
