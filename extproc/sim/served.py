"""What became of each request, and the bounds that it is judged by.

Owns the rows that a simulation hands in. Knows no strategy and no figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from extproc.sim.arrival import Arrival

OUTCOMES: Final = ("ok", "shed", "refused", "failed")
LONG_PROMPT_TOKENS: Final = 4000  # our reading of "long prompts": about 290 ms of prefill on an A100 with 8B


@dataclass(frozen=True, slots=True)
class Served:
    """One request's end. Times count from the start in nanoseconds; −1 where it did not come so far.

    "shed" is our 429, "refused" a replica's own, "failed" an error, a timeout or a broken stream.
    `cached_tokens` of the prompt were found in the replica's prefix cache.
    """

    arrival: Arrival
    outcome: str
    endpoint: str
    decided_ns: int
    first_ns: int
    end_ns: int
    cached_tokens: int
    service_class: str = "standard"


@dataclass(frozen=True, slots=True, kw_only=True)
class SloBounds:
    """Bounds in milliseconds, inclusive. Prompts above `long_prompt_tokens` have `ttft_long_ms`.

    The defaults are for 8B models; 70B has `ttft_ms` 2,000 (`SLO_70B`).
    """

    ttft_ms: float = 1000.0
    ttft_long_ms: float = 5000.0
    long_prompt_tokens: int = LONG_PROMPT_TOKENS
    tpot_ms: float = 100.0

    def met(self, served: Served) -> bool:
        """Answered in full, in time for the first token and fast enough after it."""
        if served.outcome != "ok":
            return False
        long = served.arrival.prompt_tokens > self.long_prompt_tokens
        if ttft_ms(served) > (self.ttft_long_ms if long else self.ttft_ms):
            return False
        tpot = tpot_ms(served)
        return tpot is None or tpot <= self.tpot_ms


SLO_8B: Final = SloBounds()
SLO_70B: Final = SloBounds(ttft_ms=2000.0)


def ttft_ms(served: Served) -> float:
    """Arrival to first token, of a request that has one."""
    return (served.first_ns - served.arrival.at_ns) / 1e6


def tpot_ms(served: Served) -> float | None:
    """Mean time per output token after the first; None for a single token."""
    after_first = served.arrival.output_tokens - 1
    return (served.end_ns - served.first_ns) / 1e6 / after_first if after_first else None
