"""A campaign's report: the table, the verdicts, where the default loses, and every figure.

Owns the file `report.md` and what lies beside it. The same results make the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from extproc.lab.campaign.case import QUEUE_PERMITS, TGI_PERMITS, CampaignRun, Played
from extproc.lab.campaign.judge import TableCell, TargetVerdict, chosen, lost, places, verdicts
from extproc.lab.campaign.plan import OURS, RIVALS
from extproc.lab.report import MeanInterval, markdown, plots, to_json
from extproc.lab.report.text import SIMULATED
from extproc.sim.world import ORACLE

_TTFT_LOAD = 0.9
_PREFACE = (
    "Attainment is the share of all requests, shed and refused ones included, whose first token came in time",
    "(1 s, 70B 2 s, prompts above 4,000 tokens 5 s) and that took at most 100 ms per token after it.",
    "± is half of the 95 % interval over seeds, which turn the trace, thin it to 9 in 10, and draw client",
    "limits, step noise (5 %) and model error (10 %).",
    f"Engines take TGI's {TGI_PERMITS} requests, or {QUEUE_PERMITS:,} where that suits a peer better.",
)


def write_report(
    folder: Path, results: Sequence[Played], *, left_out: Sequence[CampaignRun] = (), traces: str = ""
) -> Path:
    """`report.md`, `cells.json` and the plots in `folder`; the report's path. ValueError without results."""
    folder.mkdir(parents=True, exist_ok=True)
    # A load that only the search played has two or three strategies: it is no column of the tables.
    own = _planned(results)
    planned = [one for one in results if (one.case.stream, one.case.fleet, one.case.load) in own]
    cells = [one.cell for one in chosen(planned)]
    (folder / "cells.json").write_text(to_json(one.cell for one in chosen(results)))
    drawn = plots(
        folder,
        cells,
        ttft_ms=first_tokens(chosen(planned)),
        ttft_slo_ms=1000.0,
        emphasis=OURS,
    )
    pictures = [path.name for path in drawn if path.suffix == ".svg"]
    text = "\n".join(
        [
            "# Simulated strategies: the campaign",
            "",
            f"Every figure here is {SIMULATED}.",
            *_PREFACE,
            f"Traces: {traces or 'public'}.",
            "",
            *_table(places(planned)),
            "## Targets",
            "",
            *_verdicts(verdicts(results)),
            "## Where steer loses",
            "",
            *([f"- {line}" for line in lost(places(planned))] or ["Nowhere in what was played."]),
            "",
            *_permits(planned),
            *_left_out(left_out),
            "#" + markdown(cells, title="All figures", figures=pictures).replace("\n## ", "\n### "),
        ]
    )
    path = folder / "report.md"
    path.write_text(text)
    return path


def first_tokens(results: Sequence[Played]) -> dict[str, list[float]]:
    """First-token times by strategy for one picture: the first workload, at its load nearest .9."""
    if not results:
        return {}
    stream = results[0].cell.workload
    own = [one for one in results if one.cell.workload == stream]
    load = min((one.case.load for one in own), key=lambda load: (abs(load - _TTFT_LOAD), load))
    chosen: dict[str, list[float]] = {}
    for one in own:
        if one.case.load == load and one.ttft_ms:
            chosen.setdefault(one.case.strategy, []).extend(one.ttft_ms)
    return chosen


def _planned(results: Sequence[Played]) -> set[tuple[str, str, float]]:
    """Places that somebody outside the search played; all of them where nobody else was asked for."""
    asides = {OURS, *RIVALS}
    by_others = {
        (one.case.stream, one.case.fleet, one.case.load) for one in results if one.case.strategy not in asides
    }
    return by_others or {(one.case.stream, one.case.fleet, one.case.load) for one in results}


def _percent(one: MeanInterval | None) -> str:
    if one is None:
        return "–"
    return f"{100 * one.mean:.1f}" + ("" if one.half is None else f" ±{100 * one.half:.1f}")


def _table(table: Sequence[TableCell]) -> list[str]:
    lines = [
        "| workload and fleet | load | steer | best peer | | oracle | our best other | |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for place in table:
        peer, own = place.best_peer, place.best_own
        lines.append(
            f"| {place.workload} | {place.load:g} | {_percent(place.attainment.get(OURS))} "
            f"| {_named(place, peer)} | {_percent(place.attainment.get(peer or ''))} "
            f"| {_percent(place.attainment.get(ORACLE))} "
            f"| {own or '–'} | {_percent(place.attainment.get(own or ''))} |"
        )
    return [*lines, ""]


def _named(place: TableCell, peer: str | None) -> str:
    if peer is None:
        return "–"
    return f"{peer}, {place.permits[peer]:,} permits"


def _verdicts(found: Sequence[TargetVerdict]) -> list[str]:
    words = {True: "met", False: "**missed**", None: "–"}
    lines = ["| target | found | |", "| --- | --- | --- |"]
    lines += [f"| {one.target} | {one.found} | {words[one.met]} |" for one in found]
    return [*lines, ""]


def _permits(results: Sequence[Played]) -> list[str]:
    """The best peer behind each kind of engine."""
    behind = {
        permits: {
            (one.stream, one.fleet, one.load): one
            for one in places(
                played
                for played in results
                if played.case.permits == permits and played.case.strategy in RIVALS
            )
        }
        for permits in (TGI_PERMITS, QUEUE_PERMITS)
    }
    lines = [
        f"| workload and fleet | load | best peer, {TGI_PERMITS} permits | | {QUEUE_PERMITS:,} permits | |",
        "| --- | ---: | --- | ---: | --- | ---: |",
    ]
    for at, one in behind[TGI_PERMITS].items():
        line = f"| {one.workload} | {one.load:g} |"
        for place in (one, behind[QUEUE_PERMITS].get(at)):
            best = place.best_peer if place else None
            line += f" {best or '–'} | {_percent(place.attainment.get(best or '') if place else None)} |"
        lines.append(line)
    if len(lines) == 2:
        return []
    return [
        "## What permits change",
        "",
        f"Peers see no permits. TGI refuses the {TGI_PERMITS + 1}th request inside a 200; the engines that",
        "they are built for queue it. Elsewhere in this report each has what suits it better in that cell.",
        "",
        *lines,
        "",
    ]


def _left_out(left_out: Sequence[CampaignRun]) -> list[str]:
    if not left_out:
        return []
    places_left = dict.fromkeys(
        f"{one.workload} at {one.load:g}, seed {one.seed}" for one in map(_bare, left_out)
    )
    return [
        f"## Left out: {len(left_out)} cells",
        "",
        "The time given was over; the same command goes on with them.",
        "",
        *(f"- {line}" for line in places_left),
        "",
    ]


def _bare(case: CampaignRun) -> CampaignRun:
    return replace(case, strategy="")
