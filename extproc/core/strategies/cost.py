"""cost: the cheapest endpoint that still meets the request's targets.

An endpoint *meets* them while its predicted TTFT ≤ headroom · target and a decode step with the request
there ≤ its TPOT target. What a request costs there is price · busy time,

    busy = own prefill + output tokens · usual step ÷ usual batch

and endpoints whose costs lie within `same_cost` of each other are one tier, 0 the cheapest.

Score: tier + TTFT ÷ target (at most 1) where it meets; else 1e6 + TTFT ÷ target, so that a request spills
to whichever endpoint is soonest, dearer or cheaper, only when nobody meets. The classes ranked below
`premium_ranks` go to the fastest that meets, off spot capacity while anything else meets: their tier is 1
on spot and 0 elsewhere. The others keep to cheap endpoints and leave the fast ones alone while those meet.

Inputs: prices and spot as listed, the predictor, our ledger. An unknown price is taken for the dearest
known one (`spot_factor` of it for spot capacity); none known: all cost the same an hour, so the cheapest is
whoever needs least time. With a single class of service set `premium_ranks: 0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast, forecasts
from extproc.core.outcome import LATER_MS
from extproc.core.predict.timing import TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS
from extproc.core.strategies.base import Scored, weighted_ttft_ms
from extproc.core.strategies.parameter import bounded
from extproc.core.work import SchedulingContext, Work

#: The highest tier; LATER_MS, which is added where the targets are not met, is far above.
TIER_MAX = 1_000
HOUR_MS = 3_600_000.0
#: No cost is below this, so that two can be compared: the billionth part of what prices are in.
COST_MIN = 1e-9


@dataclass(frozen=True, slots=True)
class LeastCost(Scored):
    """The cheapest that meets the targets."""

    name: ClassVar[str] = "cost"
    defers: ClassVar[bool] = True

    headroom: float = bounded(0.8, 0.1, 1.0)
    same_cost: float = bounded(0.1, 0.001, 1.0)
    premium_ranks: int = bounded(1, 0, 100)
    spot_factor: float = bounded(0.4, 0.0, 1.0)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Those that meet the targets by tier and time, then the others by time."""
        target = max(1.0, work.ttft_ms)
        within, tpot = self.headroom * target, work.tpot_ms
        found = forecasts(candidates, work, cached=at.cached)
        tiers = self._tiers(candidates, work, [each[3] for each in found])
        return [
            (tier if ms <= within and each[1] <= tpot else LATER_MS) + ms / target
            for tier, ms, each in zip(tiers, weighted_ttft_ms(candidates, work, found), found, strict=True)
        ]

    def _tiers(self, candidates: Sequence[Endpoint], work: Work, prefills: Sequence[float]) -> list[float]:
        if work.rank < self.premium_ranks:
            return [1.0 if e.spot else 0.0 for e in candidates]
        unknown = max(e.price_per_hour for e in candidates)
        if unknown <= 0.0:
            unknown = 1.0
        costs = []
        for e, prefill in zip(candidates, prefills, strict=True):
            price = e.price_per_hour
            if price <= 0.0:
                price = unknown * self.spot_factor if e.spot else unknown
            costs.append(max(COST_MIN, price * busy_ms(e, work, prefill) / HOUR_MS))
        least, width = min(costs), log(1.0 + self.same_cost)
        return [float(min(int(log(cost / least) / width), TIER_MAX)) for cost in costs]

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score; `cost` is in what its price is in, 0 where that is unknown."""
        busy = busy_ms(endpoint, work, expected.prefill_ms)
        return {
            "ttft_ms": weighted_ttft_ms([endpoint], work, [expected])[0],
            "ttft_max_ms": self.headroom * max(1.0, work.ttft_ms),
            "step_ms": expected.tpot_ms,
            "step_max_ms": work.tpot_ms,
            "busy_ms": busy,
            "price_per_hour": endpoint.price_per_hour,
            "cost": endpoint.price_per_hour * busy / HOUR_MS,
            "spot": float(endpoint.spot),
            "premium": float(work.rank < self.premium_ranks),
            "weight": endpoint.weight,
        }


def busy_ms(endpoint: Endpoint, work: Work, prefill_ms: float) -> float:
    """GPU time that is the request's own there: its prefill, and its part of usual decode steps."""
    step_ms = endpoint.speed.step_ms(TYPICAL_BATCH, TYPICAL_CONTEXT_TOKENS)
    return prefill_ms + work.output_tokens * step_ms / TYPICAL_BATCH
