"""prefix: where most of the prompt is cached, under a load guard; else a session's home; else least work.

    load       tokens outstanding with this request there, over its weight (least_work's score)
    overloaded load > least load + imbalance_tokens, and load > imbalance_ratio · least load

Something cached (at least `cached_min` tokens on an endpoint that is not overloaded). Score in tokens:
those still to be prefilled there, plus load ÷ (load + 1e6), below one token, so that of equally good caches
the least loaded goes first. An overloaded endpoint has no credit: all the prompt, plus its load.

Nothing cached. Score: its load; a session's home, by rendezvous hashing of session and address, scores 0
while it is not overloaded, so that a conversation's second turn finds the first one's cache even before any
index has heard of it, and a fleet that changes moves only the sessions of what left.

Inputs: the pool's prefix index (`SchedulingContext.cached`; empty: sessions and load alone), our ledger,
health. No session: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xxhash import xxh3_64_intdigest

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.strategies.base import Scored
from extproc.core.strategies.least_work import outstanding
from extproc.core.strategies.parameter import bounded
from extproc.core.work import SchedulingContext, Work

#: Load at which the tie among equally good caches is worth half a token.
TIE_TOKENS = 1_000_000.0
_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class LongestPrefix(Scored):
    """Longest cached prefix, guarded."""

    name: ClassVar[str] = "prefix"

    imbalance_tokens: int = bounded(16_384, 1, 1_000_000_000)
    imbalance_ratio: float = bounded(1.5, 1.0, 100.0)
    cached_min: int = bounded(64, 1, 1_000_000)
    sessions: bool = True

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """Best cache first; scores in tokens."""
        loads = outstanding(candidates, work)
        most = self._most(min(loads))
        held = [_cached(e, work, at) for e in candidates] if at.cached else []
        if any(tokens >= self.cached_min and loads[i] <= most for i, tokens in enumerate(held)):
            own = max(1, work.input_tokens)
            scores = [
                own - tokens + load / (load + TIE_TOKENS) if load <= most else own + load
                for tokens, load in zip(held, loads, strict=True)
            ]
        else:
            scores = loads
            if work.session and self.sessions:
                home = max(range(len(candidates)), key=lambda i: _affinity(candidates[i], work))
                if loads[home] <= most:
                    scores[home] = 0.0
        return scores

    def _most(self, least: float) -> float:
        return max(least + self.imbalance_tokens, self.imbalance_ratio * least)

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score; `affinity` is its lot in the rendezvous, the highest wins."""
        return {
            "cached_tokens": _cached(endpoint, work, at),
            "prompt_tokens": max(1, work.input_tokens),
            "load_tokens": outstanding([endpoint], work)[0],
            "affinity": _affinity(endpoint, work)[0] / 2.0**64 if work.session else 0.0,
            "weight": endpoint.weight,
        }


def _cached(endpoint: Endpoint, work: Work, at: SchedulingContext) -> int:
    """Prompt tokens that need no prefill there; the last one always does."""
    return min(at.cached.get(endpoint.address, 0), max(1, work.input_tokens) - 1)


def _affinity(endpoint: Endpoint, work: Work) -> tuple[int, str]:
    return xxh3_64_intdigest(endpoint.address.encode(), work.session & _SEED), endpoint.address
