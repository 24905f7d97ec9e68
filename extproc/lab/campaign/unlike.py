"""`make sim-unlike`: every strategy on engines that are not as modelled.

Owns which cells that is, and the report that says where the default is behind, what it shed while a replica
was idle, and how wrong its predictions were. What has been played is kept, as `make sim` keeps it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Final

from extproc.extras import one_line
from extproc.lab.campaign.case import CampaignRun, CaseError, Played, check_strategy, load_values, seed_values
from extproc.lab.campaign.comparison import add_options, compare
from extproc.lab.campaign.judge import chosen
from extproc.lab.campaign.plan import OURS, RIVALS, SEEDS, STRATEGIES, permits_of
from extproc.lab.report import METRICS, Figures
from extproc.lab.report.text import SIMULATED
from extproc.sim.world import ORACLE
from extproc.sim.world.fleets import UNLIKE

OUT: Final = Path("out/sim-unlike")
#: As modelled, to compare with; then those that are not.
FLEETS: Final = ("8b", "8b-straggler", *UNLIKE)
STREAM: Final = "sessions"
LOADS: Final = (0.5, 0.7, 0.9, 1.1)
LIMIT: Final = 2_000
#: The oracle knows timings, not how an engine admits: it bounds nothing here.
NAMES: Final = tuple(name for name in STRATEGIES if name != ORACLE)
QUICK_LOADS: Final = (0.7, 0.9)
QUICK_NAMES: Final = (
    *(OURS, "least_work", "least_request", "prefix"),
    *("llmd-token-load", "sglang-cache-aware", "sticky-least-loaded", "envoy-least-request"),
)
QUICK_LIMIT, QUICK_REPLICAS = 500, 4
_HEAD: Final = (
    "| fleet | load | steer | our best other | best peer | ahead by | TTFT p50 / p99 ms | hit | shed % "
    "| idle | room |"
)
#: Behind by more than this, a cell is marked.
BEHIND_POINTS: Final = 2.0


def plan(
    *,
    quick: bool,
    fleets: Sequence[str] = FLEETS,
    loads: Sequence[float] = (),
    seeds: Sequence[int] = (),
    strategies: Sequence[str] = (),
    limit: int = 0,
) -> list[CampaignRun]:
    """The cells, a seed through all of them before the next; what is not given is the campaign's own."""
    names = strategies or (QUICK_NAMES if quick else NAMES)
    return [
        CampaignRun(
            stream=STREAM,
            fleet=fleet,
            load=load,
            strategy=name,
            seed=seed,
            limit=limit or (QUICK_LIMIT if quick else LIMIT),
            replicas=QUICK_REPLICAS if quick else 0,
            permits=permits,
        )
        for seed in seeds or (SEEDS[:1] if quick else SEEDS)
        for fleet in fleets
        for load in loads or (QUICK_LOADS if quick else LOADS)
        for name in names
        # Fleets that say their engines' permits keep them; elsewhere peers get the kinder of two engines.
        for permits in ((0,) if quick or "permits=" in UNLIKE.get(fleet, "") else permits_of(name))
    ]


def report(results: Sequence[Played], *, left: int = 0) -> str:
    """Markdown: the cells, the predictions, where the default is behind."""
    held: dict[tuple[str, float], dict[str, list[Played]]] = {}
    for one in chosen(results):
        case = replace(one.case, permits=0)
        held.setdefault((case.fleet, case.load), {}).setdefault(case.strategy, []).append(one)
    cells = [_cell(fleet, load, found) for (fleet, load), found in held.items() if OURS in found]
    behind = [cell for cell in cells if cell[1]]
    first = [found for (_, _), found in held.items() if OURS in found]
    idle = sum(one.cell.figures.shed_idle for found in first for one in found[OURS])
    room = sum(one.cell.figures.shed_room for found in first for one in found[OURS])
    lines = [
        "# Engines that are not as modelled",
        "",
        f"Every figure here is {SIMULATED}.",
        "Attainment in % of all requests, mean over seeds and their range.",
        "TTFT, hits and what was shed are the default's. *Idle*: requests that it shed while a replica that",
        "would have taken them had nothing to do. *Room*: while one would have begun their prefill at once.",
        f"**Marked** cells are more than {BEHIND_POINTS:g} points behind the best.",
        "",
        f"Cells: {len(cells)}; marked {len(behind)}; shed while a replica was idle {idle}, had room {room}.",
        *([f"Left out, the time given was over: {left} runs."] if left else []),
        "",
        _HEAD,
        "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(text for text, _ in cells),
        "",
        "## Predictions",
        "",
        "Median relative error of the default's first tokens, from dispatch; and how long after a change of",
        "speed what it predicts of a prompt and a step was within 20 % of the truth, mean of those replicas.",
        "",
        "| fleet | load | TTFT error % | change known after s | never known |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {fleet} | {load:g} | {_mean(found[OURS], METRICS['ttft_error'], 100.0)} "
            f"| {_mean(found[OURS], METRICS['change_known_s'])} "
            f"| {sum(one.cell.figures.change_unknown for one in found[OURS]) if _changes(fleet) else '–'} |"
            for (fleet, load), found in held.items()
            if OURS in found
        ),
        "",
    ]
    return "\n".join(lines)


def _changes(fleet: str) -> bool:
    return "change=" in UNLIKE.get(fleet, fleet)


def _cell(fleet: str, load: float, found: dict[str, list[Played]]) -> tuple[str, bool]:
    """A line of the table, and whether the default is behind there."""
    means = {name: fmean(one.cell.figures.attainment for one in own) for name, own in found.items()}
    others = {name: mean for name, mean in means.items() if name != OURS}
    own = max((name for name in others if name not in RIVALS), key=lambda name: others[name], default=None)
    peer = max((name for name in others if name in RIVALS), key=lambda name: others[name], default=None)
    ahead = 100.0 * (means[OURS] - max(others.values(), default=means[OURS]))
    mark = round(ahead, 1) < -BEHIND_POINTS
    ours = found[OURS]

    def best(name: str | None) -> str:
        return "–" if name is None else f"{name} {_share(found[name])}"

    by = f"**{ahead:+.1f}**" if mark else f"{ahead:+.1f}"
    line = (
        f"| {fleet} | {load:g} | {_share(ours)} | {best(own)} | {best(peer)} | {by} "
        f"| {_mean(ours, METRICS['ttft_p50_ms'])} / {_mean(ours, METRICS['ttft_p99_ms'])} "
        f"| {_mean(ours, METRICS['hit_share'], decimals=2)} "
        f"| {_mean(ours, METRICS['shed_share'], 100.0, decimals=1)} "
        f"| {sum(one.cell.figures.shed_idle for one in ours)} "
        f"| {sum(one.cell.figures.shed_room for one in ours)} |"
    )
    return line, mark


def _share(own: Sequence[Played]) -> str:
    shares = [100.0 * one.cell.figures.attainment for one in own]
    spread = f" ({min(shares):.1f}-{max(shares):.1f})" if len(shares) > 1 else ""
    return f"{fmean(shares):.1f}{spread}"


def _mean(
    own: Sequence[Played], of: Callable[[Figures], float | None], times: float = 1.0, *, decimals: int = 0
) -> str:
    values = [times * value for one in own if (value := of(one.cell.figures)) is not None]
    if not values:
        return "–"
    mean = fmean(values)
    return f"{mean:,.{decimals or (1 if abs(mean) < 10 else 0)}f}"


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m extproc.lab.campaign.unlike", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, two loads, eight strategies, 500 requests"
    )
    add_options(parser, out=OUT)
    parser.add_argument("--fleets", help="a,b,c (default all)")
    parser.add_argument("--strategies", help="a,b,c (default all)")
    given = parser.parse_args(arguments)
    fleets = tuple(given.fleets.split(",")) if given.fleets else FLEETS
    strategies = tuple(given.strategies.split(",")) if given.strategies else ()
    try:
        for name in strategies:
            check_strategy(name, {})
        if unknown := sorted(set(fleets) - set(FLEETS)):
            raise CaseError(f"no such fleets: {', '.join(unknown)}; there are {', '.join(FLEETS)}")
        cases = plan(
            quick=given.quick,
            fleets=fleets,
            loads=load_values(given.loads) if given.loads else (),
            seeds=seed_values(given.seeds) if given.seeds else (),
            strategies=strategies,
            limit=given.limit,
        )
    except CaseError as error:
        parser.error(str(error))
    compare(given, cases, lambda results, left: report(results, left=left), cells=chosen)
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
