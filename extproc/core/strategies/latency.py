"""latency: the least predicted time, corrected by what was seen of late; the better of two at random.

Score, in ms: (first + decode_share · tokens · each) ÷ weight, tokens of one answer, with

    first = (1 − seen_share) · predicted TTFT + seen_share · observed TTFT
    each  = (1 − seen_share) · predicted step with it there + seen_share · observed TPOT

Observed are peak-sensitive averages (latency.py): they jump with one slow answer and fade when nothing
comes. Where they lie below the prediction, or nothing was seen, the prediction stands: a quiet history is
no promise, and an endpoint that nobody used does not attract everybody.

`choices` endpoints are drawn and the best of them is taken, which keeps deciders that do not see each
other's picks from all choosing the same one; 0 scans all. The unsampled score infinity. The guard: an
endpoint with more than overload_ratio · mean + 1 requests in flight comes after all others, however fast.
Inputs: our ledger, the predictor, the averages. Unknown hardware is the predictor's prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast, Values, forecasts
from extproc.core.outcome import LATER_MS
from extproc.core.strategies.base import Ranking, Strategy, lowest, weighted_ttft_ms
from extproc.core.strategies.parameter import bounded
from extproc.core.work import NOW, SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class LeastLatency(Strategy):
    """The fastest of a few."""

    name: ClassVar[str] = "latency"
    defers: ClassVar[bool] = True

    choices: int = bounded(2, 0, 1_000)
    seen_share: float = bounded(0.3, 0.0, 1.0)
    decode_share: float = bounded(0.1, 0.0, 1.0)
    overload_ratio: float = bounded(1.5, 1.0, 100.0)

    def rank(
        self,
        candidates: Sequence[Endpoint],
        work: Work,
        *,
        count: int,
        rng: Random,
        at: SchedulingContext = NOW,
    ) -> Ranking:
        """The drawn by predicted time, then others at random; the overloaded last."""
        loads = [e.requests + e.peer_requests + e.foreign for e in candidates]
        most = self.overload_ratio * sum(loads) / len(loads) + 1.0
        if not self.choices:
            scores = [
                ms + (0.0 if load <= most else LATER_MS)
                for ms, load in zip(self._ms(candidates, work, at), loads, strict=True)
            ]
            return Ranking(scores, lowest(candidates, scores, count))
        # Drawn among those that are not overloaded; the least loaded never is.
        fit = [i for i, load in enumerate(loads) if load <= most]
        drawn = rng.sample(fit, min(max(self.choices, count), len(fit)))
        compared, spare = drawn[: self.choices], drawn[self.choices :]
        scores = [math.inf] * len(candidates)
        for i, ms in zip(compared, self._ms([candidates[i] for i in compared], work, at), strict=True):
            scores[i] = ms
        best = sorted(compared, key=lambda i: (scores[i], candidates[i].picked)) + spare
        if len(best) < count:
            overloaded = [i for i, load in enumerate(loads) if load > most]
            best += sorted(overloaded, key=lambda i: (loads[i], candidates[i].picked))
        return Ranking(scores, best[:count])

    def _ms(self, endpoints: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        tokens = self.decode_share * work.output_tokens / work.sequences
        found = forecasts(endpoints, work, cached=at.cached)
        firsts = weighted_ttft_ms(endpoints, work, found)
        return [first + tokens * each for first, each in self._times(endpoints, firsts, found, at)]

    def _times(
        self,
        endpoints: Sequence[Endpoint],
        firsts: Sequence[float],
        found: Sequence[Values],
        at: SchedulingContext,
    ) -> list[tuple[float, float]]:
        """To the first token, and each further one, over the weight: what is forecast, and was seen."""
        seen, now_ns, times = self.seen_share, at.now_ns, []
        for e, first, expected in zip(endpoints, firsts, found, strict=True):
            each = expected[1] / e.weight
            if seen:
                first += seen * max(0.0, e.latency.ttft.ms(now_ns=now_ns) - first)
                each += seen * max(0.0, e.latency.tpot.ms(now_ns=now_ns) - each)
            times.append((first, each))
        return times

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score, were it drawn."""
        predicted = weighted_ttft_ms([endpoint], work, [expected])
        first, each = self._times([endpoint], predicted, [expected], at)[0]
        return {
            "predicted_ttft_ms": predicted[0],
            "seen_ttft_ms": endpoint.latency.ttft.ms(now_ns=at.now_ns),
            "ttft_ms": first,
            "seen_tpot_ms": endpoint.latency.tpot.ms(now_ns=at.now_ns),
            "tpot_ms": each,
            "decode_ms": self.decode_share * work.output_tokens / work.sequences * each,
            "requests": endpoint.load_requests,
            "weight": endpoint.weight,
        }
