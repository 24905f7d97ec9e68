"""`python -m extproc.lab.campaign`: play a campaign and write its report (`make sim`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import monotonic

from extproc.extras import need, one_line
from extproc.lab.campaign.account import write_report
from extproc.lab.campaign.case import CaseError, Played, check_strategy, seed_values
from extproc.lab.campaign.plan import SEEDS, STRATEGIES, full_plan, quick_plan
from extproc.lab.campaign.play import Progress, ResultStore, play_all
from extproc.lab.campaign.search import next_cases
from extproc.lab.campaign.streams import TRACES, stood_in, traces_folder

OUT = Path("out/sim")
#: Bisections of the search for a rate; .2 wide at first, so more are never needed.
ROUNDS_MAX = 12


def campaign(
    *,
    out: Path = OUT,
    traces: Path | None = None,
    quick: bool = False,
    seeds: tuple[int, ...] = SEEDS,
    strategies: tuple[str, ...] = STRATEGIES,
    workers: int | None = None,
    budget_s: float = 0.0,
    limit: int = 0,
) -> Path:
    """Plays what is not in `out/cells` yet, in time `budget_s` (0: no bound), and writes `out/report.md`."""
    need("lab", by="the campaign's report")
    folder = traces_folder(traces)
    stand_ins = [f"{name} by {made}" for name in TRACES if (made := stood_in(name, folder))]
    said = f"{folder} lacks some, made-up stand-ins: {', '.join(stand_ins)}" if stand_ins else "public"
    print(f"traces: {said}", file=sys.stderr, flush=True)
    store = ResultStore(out / "cells")
    began = monotonic()

    def left_s() -> float:
        """Never 0, which would be no bound."""
        return max(1e-3, budget_s - (monotonic() - began)) if budget_s else 0.0

    plan = (quick_plan if quick else full_plan)(seeds=seeds, strategies=strategies, limit=limit)
    show = teller()
    results, left = play_all(plan, folder, store=store, workers=workers, budget_s=left_s(), progress=show)
    for _ in range(ROUNDS_MAX):
        more = next_cases(results, seeds=seeds, limit=limit) if not left else []
        if not more:
            break
        found, left = play_all(more, folder, store=store, workers=workers, budget_s=left_s(), progress=show)
        results += found
    return write_report(out, results, left_out=left, traces=said)


def teller() -> Progress:
    """Says each cell on stderr as it ends."""
    began = monotonic()

    def tell(played: Played, done: int, of: int, stored: bool) -> None:
        if stored:
            return
        cell = played.cell
        print(
            f"{done}/{of} {cell.workload} {cell.load:g} {cell.strategy} seed {cell.seed}: "
            f"{100 * cell.figures.attainment:.1f} % ({monotonic() - began:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    return tell


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m extproc.lab.campaign", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the cells that the targets name")
    parser.add_argument("--out", type=Path, default=OUT, help="report, plots and cells/ (default out/sim)")
    parser.add_argument("--traces", type=Path, help="folder of the public traces (default $TRACES)")
    parser.add_argument("--seeds", default="1..3", help="1..3 or 1,2")
    parser.add_argument("--strategies", help="a,b,c (default all)")
    parser.add_argument("--workers", type=int, help="processes (default one a core)")
    parser.add_argument("--budget-s", type=float, default=0.0, help="start no cell after so many seconds")
    parser.add_argument("--limit", type=int, default=0, help="arrivals a cell (default the whole trace)")
    given = parser.parse_args(arguments)
    strategies = tuple(given.strategies.split(",")) if given.strategies else STRATEGIES
    try:
        for name in strategies:
            check_strategy(name, {})
        seeds = seed_values(given.seeds)
    except CaseError as error:
        parser.error(str(error))
    path = campaign(
        out=given.out,
        traces=given.traces,
        quick=given.quick,
        seeds=seeds,
        strategies=strategies,
        workers=given.workers,
        budget_s=given.budget_s,
        limit=given.limit,
    )
    print(path)
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
