"""llmd-default: llm-d's endpoint picker as it comes (Gateway API Inference Extension).

    S = 2·q + 2·k + 3·p,   q = (max − waiting) ÷ (max − min), 1 if all are equal;   k = 1 − KV usage;
    p = matched blocks ÷ the prompt's blocks;   the highest S, ties at random

Score: 7 − S, 0 to 7. Waiting and KV usage are the last report's, uncorrected by what was sent since: that
is the policy. Nothing reported counts as 0, as an unread gauge does there. The index: blocks of 256 bytes
(ours are the same), at most 2,048 of a prompt, put in at the pick, 31,250 for each endpoint.
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


@dataclass(frozen=True, slots=True)
class LlmdDefault(Indexed, Drawn):
    """Queue, KV and prefix scorers, weighted."""

    name: ClassVar[str] = "llmd-default"
    #: 131,072 pseudo-tokens.
    prompt_blocks_max: ClassVar[int | None] = 2_048

    queue_weight: float = bounded(2.0, 0.0, 100.0)
    kv_weight: float = bounded(2.0, 0.0, 100.0)
    prefix_weight: float = bounded(3.0, 0.0, 100.0)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """The highest weighted sum first."""
        waits = [waiting(e) for e in candidates]
        rates = self.rates(candidates, work)
        most, spread = max(waits), max(waits) - min(waits)
        total = self.queue_weight + self.kv_weight + self.prefix_weight
        return [
            max(
                0.0,
                total
                - self.queue_weight * ((most - wait) / spread if spread else 1.0)
                - self.kv_weight * (1.0 - kv_usage(e))
                - self.prefix_weight * rate,
            )
            for e, wait, rate in zip(candidates, waits, rates, strict=True)
        ]

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score; waiting is compared with the others' when ranked."""
        return {
            "waiting": waiting(endpoint),
            "kv_usage": kv_usage(endpoint),
            "matched": self.rates([endpoint], work)[0],
        }


def waiting(endpoint: Endpoint) -> int:
    """Requests that wait in the engine, by the last report."""
    return endpoint.report.waiting or 0 if endpoint.report is not None else 0


def kv_usage(endpoint: Endpoint) -> float:
    """The share of KV memory in use, by the last report, 0 to 1."""
    report = endpoint.report
    if report is None or not report.kv_used_tokens or not report.kv_capacity_tokens:
        return 0.0
    return min(1.0, max(0.0, report.kv_used_tokens / report.kv_capacity_tokens))
