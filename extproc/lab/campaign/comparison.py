"""What the commands of two comparisons have in common (`make sim-unlike`, `make sim-tiers`): options, files.

Owns neither cells nor reports. What has been played is kept, as `make sim` keeps it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from extproc.lab.campaign.__main__ import teller
from extproc.lab.campaign.case import CampaignRun, Played
from extproc.lab.campaign.play import ResultStore, play_all
from extproc.lab.campaign.streams import traces_folder
from extproc.lab.report import to_json


def add_options(parser: argparse.ArgumentParser, *, out: Path) -> None:
    """Those of every comparison; `out` is where its files go by default."""
    parser.add_argument("--out", type=Path, default=out, help=f"report and cells/ (default {out})")
    parser.add_argument("--loads", help=".5,.9 or 0.5..1.1:0.2")
    parser.add_argument("--seeds", help="1..3 or 1,2")
    parser.add_argument("--limit", type=int, default=0, help="arrivals a cell")
    parser.add_argument("--workers", type=int, help="processes (default one a core)")
    parser.add_argument("--budget-s", type=float, default=0.0, help="start no cell after so many seconds")


def compare(
    given: argparse.Namespace,
    cases: Sequence[CampaignRun],
    report: Callable[[Sequence[Played], int], str],
    *,
    cells: Callable[[Sequence[Played]], Iterable[Played]] = lambda results: results,
) -> None:
    """Play, and write `report` of what was played and how many were left, with its `cells` beside it."""
    out: Path = given.out
    results, left = play_all(
        cases,
        traces_folder(),
        store=ResultStore(out / "cells"),
        workers=given.workers,
        budget_s=given.budget_s,
        progress=teller(),
    )
    if not results:
        print("nothing was played in the time given", file=sys.stderr)
        return
    path = out / "report.md"
    path.write_text(report(results, len(left)))
    (out / "cells.json").write_text(to_json(one.cell for one in cells(results)))
    print(path)
