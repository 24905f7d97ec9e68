"""llmd-token-load: llm-d's newer profile, prefix affinity and then the fewest tokens to prefill.

1. sticky = endpoints that hold ≥ 80 % of the prompt; they alone stay, unless there is none, or the least
   TTFT among them exceeds the others' by > 18,000 ms, with TTFT = tokens in flight ÷ 15,928 · 1,000.
2. T = uncached tokens in flight + this request's; the lowest min(T, 4,194,304) ÷ 4,194,304 wins.

Score: that quotient, 0 to 1; those that step 1 sets aside score 1 more. Tokens in flight are the router's
own count, given back at the first chunk: our `load.queued_tokens`, whose uncached part is by our index, not
by its own (they differ where the pool's index has learnt from usage). Ties at random. Its index as
llmd-default's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.parameter import bounded
from extproc.core.strategies.peers.indexed import Drawn, Indexed
from extproc.core.work import SchedulingContext, Work

TOKENS_MAX = 4_194_304


@dataclass(frozen=True, slots=True)
class LlmdTokenLoad(Indexed, Drawn):
    """Affinity filter, then token load."""

    name: ClassVar[str] = "llmd-token-load"

    affinity_min: float = bounded(0.8, 0.0, 1.0)
    penalty_max_ms: float = bounded(18_000.0, 0.0, 1e9)
    prefill_tokens_per_s: float = bounded(15_928.0, 1.0, 1e9)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """The sticky ones by tokens to prefill, then the others."""
        rates = self.rates(candidates, work)
        sticky = [rate >= self.affinity_min for rate in rates]
        if self._breaks(candidates, sticky):
            sticky = [True] * len(candidates)
        own = max(1, work.input_tokens)
        return [
            min(e.load.queued_tokens + own * (1.0 - rate), TOKENS_MAX) / TOKENS_MAX + (0.0 if kept else 1.0)
            for e, rate, kept in zip(candidates, rates, sticky, strict=True)
        ]

    def _breaks(self, candidates: Sequence[Endpoint], sticky: Sequence[bool]) -> bool:
        """Whether affinity does not hold: nobody is sticky, or it would cost too much."""
        mine = [e.load.queued_tokens for e, kept in zip(candidates, sticky, strict=True) if kept]
        rest = [e.load.queued_tokens for e, kept in zip(candidates, sticky, strict=True) if not kept]
        if not mine:
            return True
        return bool(rest) and self._ttft_ms(min(mine)) - self._ttft_ms(min(rest)) > self.penalty_max_ms

    def _ttft_ms(self, tokens: float) -> float:
        return tokens / self.prefill_tokens_per_s * 1_000.0

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        rate = self.rates([endpoint], work)[0]
        return {
            "matched": rate,
            "in_flight_tokens": endpoint.load.queued_tokens,
            "uncached_tokens": max(1, work.input_tokens) * (1.0 - rate),
            "ttft_ms": self._ttft_ms(endpoint.load.queued_tokens),
        }
