"""Which loads to play next to find where a strategy's attainment falls through the target.

Owns the bisection. Pure: results in, cases out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from extproc.lab.campaign.case import CampaignRun, Played
from extproc.lab.campaign.judge import AT_SHARE, AT_SHARES, RATE_OVER_PEER, chosen
from extproc.lab.campaign.plan import OURS, RIVALS, permits_of

FLEET: Final = "8b"
ANCHOR_LOAD: Final = 0.9
PEERS_SEARCHED: Final = 2
WIDTH: Final = 0.05
STEP: Final = 0.2
LOAD_MIN, LOAD_MAX = 0.1, 2.0


def searched(results: Sequence[Played], stream: str) -> list[str]:
    """The default, and the rivals that are best at the anchor load: the others cross below them."""
    own = [one for one in results if _at(one.case, stream) and one.case.load == ANCHOR_LOAD]
    means = {
        name: fmean(found)
        for name in RIVALS
        if (found := [one.cell.figures.attainment for one in own if one.case.strategy == name])
    }
    return [OURS, *sorted(means, key=lambda name: -means[name])[:PEERS_SEARCHED]]


def next_cases(results: Sequence[Played], *, seeds: Sequence[int], limit: int = 0) -> list[CampaignRun]:
    """What to play next for every crossing that is not yet known to `WIDTH`; none when all are."""
    cases = []
    results = chosen(results)
    for stream in RATE_OVER_PEER:
        for strategy in searched(results, stream):
            points = (
                (one.case.load, one.cell.figures.attainment)
                for one in results
                if _at(one.case, stream) and one.case.strategy == strategy
            )
            load = next_load(points, share=AT_SHARES.get(stream, AT_SHARE))
            if load is not None:
                case = CampaignRun(
                    stream=stream, fleet=FLEET, load=load, strategy=strategy, seed=0, limit=limit
                )
                cases += [
                    replace(case, seed=seed, permits=permits)
                    for seed in seeds
                    for permits in permits_of(strategy)
                ]
    return cases


def next_load(points: Iterable[tuple[float, float]], *, share: float = AT_SHARE) -> float | None:
    """The load to play next, given loads and attainments so far (several of one load: their mean)."""
    by_load: dict[float, list[float]] = {}
    for load, attainment in points:
        by_load.setdefault(load, []).append(attainment)
    if not by_load:
        return ANCHOR_LOAD
    above = [load for load, found in by_load.items() if fmean(found) >= share]
    below = [load for load, found in by_load.items() if fmean(found) < share]
    if not above:
        low = round(min(below) - STEP, 4)
        return low if low >= LOAD_MIN else None
    if not any(load > max(above) for load in below):
        high = round(max(above) + STEP, 4)
        return high if high <= LOAD_MAX else None
    low, high = max(above), min(load for load in below if load > max(above))
    return round((low + high) / 2, 4) if high - low > WIDTH + 1e-9 else None


def _at(case: CampaignRun, stream: str) -> bool:
    return case.stream == stream and case.fleet == FLEET
