"""Which cells a campaign has: all of them, or those that the targets name.

Owns the lists and their order: what is asked about first is played first, a seed through all cells before
the next, so that a campaign that is cut short has said something about each.

Permits. The peers see none. Behind TGI, whose 129th request is refused inside a 200, that costs them
refusals; behind the engines they are built for (vLLM, SGLang) the request would queue. Neither is kinder
everywhere: refusals are lost requests, and they are also a crude shedding that keeps the others in time
(conversation at .9: about 87 % with refusals, 78 % with queues). So peers are played behind both, and each is
judged in each cell by what suits it better (`judge.chosen`). Ours are played behind TGI's, which is what this
project is for. Load 1 is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from extproc.core.strategies import OWN, PEERS
from extproc.lab.campaign.case import QUEUE_PERMITS, TGI_PERMITS, CampaignRun
from extproc.sim.world import ORACLE
from extproc.sim.world.run import CLASSICS

OURS: Final = "steer"
#: Other projects' policies, as those would run them.
RIVALS: Final = (*(peer.name for peer in PEERS), *CLASSICS)
STRATEGIES: Final = (OURS, ORACLE, *RIVALS, *(own.name for own in OWN if own.name != OURS))
SEEDS: Final = (1, 2, 3)
LOADS: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
STREAMS: Final = ("azure-conversation", "azure-code", "mooncake", "servegen-mid")
FLEETS: Final = ("8b", "8b-mixed", "8b-straggler", "70b", "70b-mixed", "70b-straggler")

#: Workload, fleet and loads of the targets, the most telling first.
QUICK: Final = (
    ("azure-conversation", "8b", (0.9,)),
    ("azure-code", "8b", (0.5,)),
    ("mooncake", "8b", (0.9,)),
    ("azure-conversation", "8b-straggler", (0.9,)),
    ("azure-conversation", "70b", (0.9,)),
    ("servegen-mid", "8b", (1.1, 0.9)),
    ("azure-conversation", "8b", (0.7, 1.1, 0.5)),
    ("mooncake", "8b", (0.7,)),
    ("azure-code-poisson", "8b", (0.9, 0.7)),
)


def quick_plan(
    *, seeds: Sequence[int] = SEEDS, strategies: Sequence[str] = STRATEGIES, limit: int = 0
) -> list[CampaignRun]:
    """The cells that the targets name."""
    return _cells(
        ((stream, fleet, load) for stream, fleet, loads in QUICK for load in loads),
        seeds=seeds,
        strategies=strategies,
        limit=limit,
    )


def full_plan(
    *, seeds: Sequence[int] = SEEDS, strategies: Sequence[str] = STRATEGIES, limit: int = 0
) -> list[CampaignRun]:
    """Every workload on every fleet at every load, the quick cells first."""
    rest = _cells(
        ((stream, fleet, load) for fleet in FLEETS for stream in STREAMS for load in LOADS),
        seeds=seeds,
        strategies=strategies,
        limit=limit,
    )
    return list(dict.fromkeys([*quick_plan(seeds=seeds, strategies=strategies, limit=limit), *rest]))


def permits_of(strategy: str) -> tuple[int, ...]:
    """The engines' permits that a strategy is played with."""
    return (TGI_PERMITS, QUEUE_PERMITS) if strategy in RIVALS else (TGI_PERMITS,)


def _cells(
    places: Iterable[tuple[str, str, float]], *, seeds: Sequence[int], strategies: Sequence[str], limit: int
) -> list[CampaignRun]:
    held = list(places)
    return [
        CampaignRun(
            stream=stream,
            fleet=fleet,
            load=load,
            strategy=strategy,
            seed=seed,
            limit=limit,
            permits=permits,
        )
        for seed in seeds
        for stream, fleet, load in held
        for strategy in strategies
        for permits in permits_of(strategy)
    ]
