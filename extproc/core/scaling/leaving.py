"""Which replicas leave first, when fewer are enough. Pure values.

What does not serve yet goes before what serves: it holds nothing. Of those that serve, one after the other:
from the zone that has the most (so that zones stay even), the dearest, the one that lacks KV memory which
others of its kind have (by tenths), and of equal ones the one that costs least to lose: what it has cached
would be computed anew elsewhere, and until its last request has ended it is paid for without taking new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from extproc.core.scaling.values import ReplicaFact, ReplicaStage

#: Stages that count as had, the first to leave first.
HAD: Final[Mapping[ReplicaStage, int]] = {"starting": 0, "loading": 1, "ready": 2}
#: A zone has too many when it has so many more than the one with the fewest.
ZONE_SPREAD: Final = 2


def leaving(
    replicas: Sequence[ReplicaFact], count: int, *, prefill_ms_per_token: float = 0.0
) -> tuple[str, ...]:
    """The addresses of `count` replicas in the order in which they should be drained; fewer where there are
    no more that are had. Those that drain already are not among them."""
    zones = Counter(each.zone for each in replicas if each.stage in HAD)
    # The best to go last, by stage and zone: each is taken from the end.
    waiting: dict[int, dict[str, list[ReplicaFact]]] = {stage: {} for stage in sorted(HAD.values())}
    for each in sorted(replicas, key=lambda each: _rank(each, prefill_ms_per_token), reverse=True):
        if each.stage in HAD:
            waiting[HAD[each.stage]].setdefault(each.zone, []).append(each)
    gone: list[str] = []
    for by_zone in waiting.values():
        while by_zone and len(gone) < count:
            crowded = max(zones.values()) - min(zones.values()) >= ZONE_SPREAD
            among = [zone for zone in by_zone if zones[zone] == max(zones.values())] if crowded else []
            zone = min(among or by_zone, key=lambda zone: _rank(by_zone[zone][-1], prefill_ms_per_token))
            gone.append(by_zone[zone].pop().address)
            zones[zone] -= 1
            if not by_zone[zone]:
                del by_zone[zone]
    return tuple(gone)


def _rank(fact: ReplicaFact, prefill_ms_per_token: float) -> tuple[float, float, float, str]:
    """Lower leaves sooner: dear first, then who lacks memory, then what losing it costs in milliseconds."""
    lost_ms = fact.cached_value_tokens * prefill_ms_per_token + fact.empty_in_ms
    return -fact.price_per_hour, -round(fact.memory_lost, 1), lost_ms, fact.address
