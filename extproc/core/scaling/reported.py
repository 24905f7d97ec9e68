"""The number that a HorizontalPodAutoscaler must see so that it makes the replicas that are wanted.

Owns the arithmetic of HPA's tolerance, and the bounds that are put on it. Pure.

HPA (`autoscaling/v2`, an External metric with an AverageValue): with the metric's total `value`, the target
`target` and `current` replicas it does nothing while |1 - value / (target · current)| <= tolerance (0.1
unless its cluster or its `behavior` says another), else it wants ceil(value / target) replicas. So
`value = target · wanted` is swallowed from ten replicas on: 10 -> 11 is a ratio of exactly 1.1.
"""

from __future__ import annotations

import math

#: HPA's own (kube-controller-manager's --horizontal-pod-autoscaler-tolerance).
TOLERANCE = 0.1
#: Kubernetes' quantities have three places: a value that must be beyond an edge is two of the last beyond it,
#: whichever way it is rounded on its way.
_BEYOND = 2


def reported_milli(
    wanted: int, current: int, *, tolerance: float = TOLERANCE, target_milli: int = 1_000
) -> int:
    """The metric's total, in thousandths, for `wanted` replicas of `current` that there are.

    Wanted itself where HPA hears it. More are asked for beyond the tolerance's edge, and so many that the way
    back to what is wanted is beyond it as well: at most a ninth more than wanted and one, until they are
    there (20 -> 23 -> 21). Fewer likewise where that gives the very number; where it would give fewer than
    wanted (30 -> 29 could only be 27), HPA is left to swallow it: at most a tenth too many stay. With
    tolerance 0 it is always what is wanted.
    """
    value = wanted * target_milli
    if wanted <= 0 or current <= 0 or wanted == current:
        return max(0, value)
    whole = current * target_milli
    if wanted > current:
        edge = whole * (1.0 + tolerance)
        if value > edge + 1:
            return value
        # As many that HPA hears of the way back, too.
        back = math.floor((wanted - 1) / (1.0 - tolerance)) * target_milli
        return max(math.floor(edge), back) + _BEYOND
    edge = whole * (1.0 - tolerance)
    if value < edge - 1:
        return value
    lower = math.ceil(edge) - _BEYOND
    return lower if lower > value - target_milli else value
