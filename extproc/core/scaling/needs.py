"""Needs that the capacity model alone does not say.

Owns two cases: a pool of which too few requests have ended, and a pool of several kinds of replicas. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

from msgspec import structs

from extproc.core.scaling.capacity import Capacity, rate_max
from extproc.core.scaling.leaving import HAD
from extproc.core.scaling.values import Need, PoolFacts, PoolScale, ReplicaKind

#: Until so many requests ended nobody knows how long they stay: what is there counts instead, and so many
#: times as much may come.
ENDED_FEW: Final = 32
THERE_TIMES: Final = 2.0


def first_need(found: Need, facts: PoolFacts, kind: ReplicaKind) -> Need:
    """A need for permits while few requests ended: what is assumed of their stay would send a pool of few
    permits to its maximum. Those that are there show how many permits they take (Little's law)."""
    if len(facts.demand.samples) >= ENDED_FEW or found.binding != "permits":
        return found
    there = facts.held + sum(each.requests for each in facts.replicas)
    enough = max(1, ceil(THERE_TIMES * there / max(1, kind.permits)))
    return structs.replace(found, replicas=enough) if enough < found.replicas else found


def mixed_need(
    capacities: Sequence[Capacity], facts: PoolFacts, rate: float, scale: PoolScale
) -> tuple[Need, str]:
    """Replicas of several kinds: those that are had, the cheapest first to be kept, and the kind to add.

    Each kind bears what it would in a pool of as many of its own. Of the kinds that could be added, the one
    whose addition costs least an hour; of equal ones the one of which fewer are enough.
    """
    by_name = {each.kind.name: each for each in capacities}
    had = [by_name.get(each.kind, capacities[0]) for each in facts.replicas if each.stage in HAD]
    size = max(1, len(had))
    bears = {each.kind.name: rate_max(each, size, scale.aimed) / size for each in capacities}

    def worth(each: Capacity) -> float:
        return each.kind.price_per_hour / max(bears[each.kind.name], 1e-9)

    borne, count = 0.0, 0
    for each in sorted(had, key=worth):
        if borne >= rate:
            break
        borne += bears[each.kind.name]
        count += 1
    short = rate - borne
    if short <= 0.0:
        kind = min(capacities, key=worth).kind.name
        used = by_name.get(kind, capacities[0]).at(rate, count)
        return (
            Need(
                replicas=count,
                attainment=scale.aimed,
                utilization=rate / borne,
                binding=used.binding,
            ),
            kind,
        )

    def price(each: Capacity) -> tuple[float, int]:
        many = ceil(short / bears[each.kind.name]) if bears[each.kind.name] > 0.0 else scale.max_replicas
        return many * each.kind.price_per_hour, many

    chosen = min(capacities, key=price)
    many = min(price(chosen)[1], max(0, scale.max_replicas - count))
    total = count + many
    borne += many * bears[chosen.kind.name]
    enough = borne >= rate
    return (
        Need(
            replicas=total,
            attainment=scale.aimed if enough else scale.aimed * borne / rate,
            utilization=min(1.0, rate / borne) if borne > 0.0 else 1.0,
            binding=chosen.at(rate, max(1, total)).binding,
        ),
        chosen.kind.name,
    )
