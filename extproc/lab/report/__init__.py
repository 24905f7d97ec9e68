"""From simulated requests to figures, tables and plots."""

from extproc.lab.report.cells import METRICS, Cell, MeanInterval, StrategyRow, interval, rows
from extproc.lab.report.figures import Figures, Spread, figures
from extproc.lab.report.plots import plots
from extproc.lab.report.text import markdown, table, to_json
from extproc.sim.served import SLO_8B, SLO_70B, Served, SloBounds, tpot_ms, ttft_ms

__all__ = [
    "METRICS",
    "SLO_8B",
    "SLO_70B",
    "Cell",
    "Figures",
    "MeanInterval",
    "Served",
    "SloBounds",
    "Spread",
    "StrategyRow",
    "figures",
    "interval",
    "markdown",
    "plots",
    "rows",
    "table",
    "to_json",
    "tpot_ms",
    "ttft_ms",
]
