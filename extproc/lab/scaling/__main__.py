"""`python -m extproc.lab.scaling`: scaling over days and weeks, and its report (`make sim-scaling`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

from extproc.extras import need, one_line

OUT: Final = Path("out/sim-scaling")
#: Two weeks, all load times and all curves take about 11 minutes of CPU a seed; four days about a third.
DAYS: Final = 4.0
QUICK_DAYS: Final = 0.25


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage or a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m extproc.lab.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six hours of the first weeks, and a ramp")
    parser.add_argument("--weeks", type=Path, nargs="+", help="weeks' files instead of the public ones")
    parser.add_argument("--day", type=Path, nargs="+", help="their clients' day files, in the same order")
    parser.add_argument("--traces", type=Path, help="folder of the public traces (default $TRACES)")
    parser.add_argument("--synthetic", help="curves made up: a,b (default all; '' for none)")
    parser.add_argument(
        "--days", type=float, help=f"so many days of each week's file (default {DAYS:g}; 0: all of it)"
    )
    parser.add_argument("--seeds", default="1..3", help="1..3 or 1,2")
    parser.add_argument("--load-times", default="5,60,300", help="seconds, a,b")
    parser.add_argument("--keep-gaps", action="store_true", help="take windows of nearly zero as they are")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with requests")
    parser.add_argument("--out", type=Path, default=OUT, help=f"report.md and cells/ (default {OUT})")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    given = parser.parse_args(arguments)
    need("lab", by="the simulation of scaling")
    return _run(given, parser.error)


def _run(given: argparse.Namespace, refuse: Callable[[str], object]) -> int:
    # Behind the check for the extra: these need numpy.
    from extproc.lab.campaign.case import CaseError, seed_values
    from extproc.lab.campaign.streams import traces_folder
    from extproc.lab.scaling.cases import TRACE_PAIRS, ScalingStore, cases
    from extproc.lab.scaling.check import FidelityRow, fidelity
    from extproc.lab.scaling.play import CaseResult, play_all_cases
    from extproc.lab.scaling.rates import SYNTHETIC_CURVES
    from extproc.lab.scaling.report import markdown_report
    from extproc.lab.scaling.service import KNOWN
    from extproc.sim.arrival import WorkloadError

    notes = []
    if bool(given.weeks) != bool(given.day) or len(given.weeks or ()) != len(given.day or ()):
        refuse("--weeks and --day go together: a day's clients for each weeks' file")
    pairs = list(zip(given.weeks or (), given.day or (), strict=True))
    if not pairs:
        folder = traces_folder(given.traces)
        pairs = [
            (folder / weeks, folder / day)
            for weeks, day in TRACE_PAIRS
            if (folder / weeks).is_file() and (folder / day).is_file()
        ]
        if not pairs:
            notes.append(f"{folder} has none of the weeks: made-up curves alone.")
    names = (
        list(SYNTHETIC_CURVES) if given.synthetic is None else [n for n in given.synthetic.split(",") if n]
    )
    if unknown := [name for name in names if name not in SYNTHETIC_CURVES]:
        refuse(f"no curve {unknown[0]!r}; there are {', '.join(SYNTHETIC_CURVES)}")
    try:
        seeds = seed_values(given.seeds)
        load_times_s = tuple(float(one) for one in given.load_times.split(","))
    except (CaseError, ValueError) as error:
        refuse(str(error))
        return 2
    if not all(0 < one <= 7_200 for one in load_times_s):
        refuse("--load-times are seconds above 0 and at most 7200")
    days = DAYS if given.days is None else given.days
    if given.quick:
        pairs, names = pairs[:1], ["ramp"] if given.synthetic is None else names
        seeds, load_times_s, days = seeds[:1], load_times_s[1:2] or load_times_s, given.days or QUICK_DAYS
        notes.append("Quick: one seed, a part of the time, no comparison with requests.")
    began = monotonic()

    def told(result: CaseResult) -> None:
        print(f"{result.case.name} seed {result.case.seed} ({monotonic() - began:.0f} s)", file=sys.stderr)

    wanted = cases(
        pairs=pairs,
        synthetics=names,
        seeds=seeds,
        days=days,
        fill=not given.keep_gaps,
        load_times_s=load_times_s,
    )
    notes.append(f"Weeks: {days:g} days of each file." if days else "Weeks: the whole of each file.")
    cells = given.out / "cells"
    try:
        results = play_all_cases(wanted, cells, workers=min(given.workers, len(wanted)), told=told)
        check: list[FidelityRow] = []
        if not (given.no_check or given.quick):
            check = ScalingStore(cells).part(
                wanted[0], "ours check", list[FidelityRow], partial(fidelity, KNOWN["made-up chat"], seed=1)
            )
    except WorkloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = given.out / "report.md"
    path.write_text(markdown_report(results, check, notes=notes), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    print(f"{path} ({monotonic() - began:.0f} s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
