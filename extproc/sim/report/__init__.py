"""From simulated requests to figures, tables and plots."""

from extproc.sim.report.cells import METRICS, Cell, MeanInterval, StrategyRow, interval, rows
from extproc.sim.report.figures import Figures, Spread, figures
from extproc.sim.report.plots import plots
from extproc.sim.report.served import SLO_8B, SLO_70B, Served, Slo, met, tpot_ms, ttft_ms
from extproc.sim.report.text import markdown, table, to_json

__all__ = [
    "METRICS",
    "SLO_8B",
    "SLO_70B",
    "Cell",
    "Figures",
    "MeanInterval",
    "Served",
    "Slo",
    "Spread",
    "StrategyRow",
    "figures",
    "interval",
    "markdown",
    "met",
    "plots",
    "rows",
    "table",
    "to_json",
    "tpot_ms",
    "ttft_ms",
]
