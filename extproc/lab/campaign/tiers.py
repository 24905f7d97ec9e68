"""`make sim-tiers`: an edge with a centre behind it, beside an edge alone and a centre alone, at one rent.

Owns which cells that is, and the report. What has been played is kept, as `make sim` keeps it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from extproc.extras import one_line
from extproc.lab.campaign.case import CampaignRun, CaseError, Played, load_values, seed_values
from extproc.lab.campaign.comparison import add_options, compare
from extproc.lab.campaign.plan import OURS, SEEDS
from extproc.lab.campaign.streams import check_stream
from extproc.lab.report.text import SIMULATED
from extproc.sim.world import parse_fleet

OUT: Final = Path("out/sim-tiers")
STREAM: Final = "azure-conversation"
#: Load where nothing is wrong, of edge and centre together: below it all are in time. And where something is.
LOAD, TROUBLED_LOAD = 1.2, 0.9
LIMIT, QUICK_LIMIT = 2_000, 1_000
#: Cards at the edge and in the centre. Nine of the first cost an hour what two and four of them cost.
NEAR, FAR, NEAR_ALONE = "2*a100-80g/llama-3-8b", "4*h100-80g/llama-3-8b", "9*a100-80g/llama-3-8b"
#: Round trips, and what may be wrong with one of them.
WAYS: Final = ("way=5", "way=40", "way=150")
TROUBLED: Final = {"way=40:cut_s=15": "cut for 15 s", "way=40:others=0.4": "other sites ask .4 as much"}
#: Rules that do not look: nothing goes, or all goes that the centre has room for.
NEVER, ALWAYS = ":hops_max=0", ":prompt_tokens_simple=0:prompt_tokens_complex=0"


@dataclass(frozen=True, slots=True)
class Layout:
    """A fleet of the comparison: how it is called, its short form, and of which way."""

    name: str
    fleet: str
    way: str

    @property
    def load(self) -> float:
        """The load that it is played at."""
        return TROUBLED_LOAD if self.way in TROUBLED else LOAD


def layouts(*, quick: bool) -> list[Layout]:
    """The fleets, all of one rent; the last two kinds have the replicas of the second, and do not look."""
    ways = WAYS[1:2] if quick else WAYS
    found = [Layout("edge alone", NEAR_ALONE, "")]
    for way in (*ways, *TROUBLED):
        found.append(Layout("edge and centre", f"{NEAR},{way},{FAR}", way))
        found.append(Layout("centre alone", f"{way},{FAR},{NEAR}", way))
        if way == WAYS[1] or "others" in way:
            found.append(Layout("all goes", f"{NEAR},{way}{ALWAYS},{FAR}", way))
    found.append(Layout("nothing goes", f"{NEAR},{WAYS[1]}{NEVER},{FAR}", WAYS[1]))
    return found


def plan(
    *,
    quick: bool = False,
    stream: str = STREAM,
    loads: Sequence[float] = (),
    seeds: Sequence[int] = (),
    limit: int = 0,
) -> list[CampaignRun]:
    """The cells, a seed through all of them before the next."""
    return [
        CampaignRun(
            stream=stream,
            fleet=each.fleet,
            load=load,
            strategy=OURS,
            seed=seed,
            limit=limit or (QUICK_LIMIT if quick else LIMIT),
            load_of=f"{NEAR},{FAR}",
        )
        for seed in seeds or (SEEDS[:1] if quick else SEEDS)
        for each in layouts(quick=quick)
        for load in loads or (each.load,)
    ]


def report(results: Sequence[Played], *, left: int = 0) -> str:
    """Markdown: a line for each layout and load, over seeds."""
    names = {each.fleet: each for each in layouts(quick=False)}
    held: dict[tuple[float, str], list[Played]] = {}
    for one in results:
        held.setdefault((one.case.load, one.case.fleet), []).append(one)
    order = list(names)
    lines = [
        f"Every figure here is {SIMULATED}.",
        "Attainment in % of all requests, mean over seeds and their range. *There*: answered by the centre,",
        "in %. *Failed*: broken off or unreachable, in %. Cost: USD of 2026 list prices for 1,000 in time.",
        "",
        "| load | fleet | USD/h | way ms | attained | TTFT p50 / p99 ms | there | shed | failed | cost |",
        "| ---: | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            _line(load, names[fleet], held[load, fleet])
            for load, fleet in sorted(held, key=lambda key: (key[0], order.index(key[1])))
        ),
        *(["", f"Left out, the time given was over: {left} runs."] if left else []),
        "",
    ]
    return "\n".join(lines)


def _line(load: float, layout: Layout, own: Sequence[Played]) -> str:
    figures = [one.cell.figures for one in own]
    shares = [100.0 * each.attainment for each in figures]
    spread = f" ({min(shares):.1f}-{max(shares):.1f})" if len(shares) > 1 else ""
    first = [each.ttft_ms for each in figures if each.ttft_ms is not None]
    times = f"{fmean(t.p50 for t in first):,.0f} / {fmean(t.p99 for t in first):,.0f}" if first else "–"
    costs = [cost for each in figures if (cost := each.cost_per_1k_attained) is not None]
    way = layout.way.partition(":")[0].removeprefix("way=")
    trouble = f", {TROUBLED[layout.way]}" if layout.way in TROUBLED else ""
    return (
        f"| {load:g} | {layout.name} | {sum(parse_fleet(layout.fleet).prices().values()):g} | {way}{trouble} "
        f"| {fmean(shares):.1f}{spread} | {times} | {100 * fmean(one.there for one in own):.0f} "
        f"| {100 * fmean((each.shed + each.refused) / each.requests for each in figures):.1f} "
        f"| {100 * fmean(each.failed / each.requests for each in figures):.1f} "
        f"| {f'{fmean(costs):.3f}' if costs else '–'} |"
    )


def placed_line(played: Played) -> str:
    """For which reasons a run of two sites placed its requests, in a line."""
    count = sum(played.placed.values())
    reasons = sorted(played.placed.items(), key=lambda each: -each[1])
    said = ", ".join(f"{reason} {number / count:.0%}" for reason, number in reasons)
    where = f"{played.there:.0%} answered by the centre"
    return f"{played.cell.load:g} {played.cell.strategy}, seed {played.cell.seed}: {where}; {said}"


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m extproc.lab.campaign.tiers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one load, one way, 1,000 requests")
    add_options(parser, out=OUT)
    parser.add_argument("--stream", default=STREAM, help=f"a trace or a made-up workload (default {STREAM})")
    given = parser.parse_args(arguments)
    try:
        check_stream(given.stream)
        cases = plan(
            quick=given.quick,
            stream=given.stream,
            loads=load_values(given.loads) if given.loads else (),
            seeds=seed_values(given.seeds) if given.seeds else (),
            limit=given.limit,
        )
    except CaseError as error:
        parser.error(str(error))
    compare(given, cases, lambda results, left: "# An edge and a centre\n\n" + report(results, left=left))
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
