"""dynamo-kv: NVIDIA Dynamo's KV-aware router.

    cost = prefill_scale · max(0, prefill blocks − overlap credit) + active decode blocks
           + request_weight · requests

Score: the cost, in blocks; the lowest wins, ties at random (its softmax sampling has temperature 0 by
default and is left out). Prefill blocks: what is being prefilled there by the router's own count, plus this
prompt; overlap: blocks of it that the endpoint holds, all in the tier of credit 1.0; decode blocks: the
context of what streams there. Theirs hears the engines' KV events, which TGI does not send: an index filled
at the pick stands in, as large as the endpoint's KV memory (its hardware's prior where unknown).
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
class DynamoKv(Indexed, Drawn):
    """Fewest blocks to prefill and to decode."""

    name: ClassVar[str] = "dynamo-kv"

    prefill_scale: float = bounded(1.0, 0.0, 100.0)
    request_weight: float = bounded(0.0, 0.0, 1e6)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """The lowest cost first; scores in blocks."""
        found = self.index.match(work.prefix) if work.prefix else {}
        each, own, scale = max(1.0, work.block_tokens), max(1, work.input_tokens), self.prefill_scale
        return [
            scale * max(0.0, (e.load.queued_tokens + own) / each - found.get(e.address, 0))
            + e.load.context_tokens / each
            + self.request_weight * e.requests
            for e in candidates
        ]

    def capacity(self, endpoint: Endpoint, work: Work) -> int:
        """As many blocks as its KV memory holds."""
        tokens = endpoint.kv_tokens or endpoint.speed.model.prior.kv_capacity_tokens
        return max(1, int(tokens / max(1.0, work.block_tokens)))

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score, in blocks."""
        each = max(1.0, work.block_tokens)
        return {
            "prefill_blocks": (endpoint.load.queued_tokens + max(1, work.input_tokens)) / each,
            "overlap_blocks": self.index.match(work.prefix).get(endpoint.address, 0),
            "decode_blocks": endpoint.load.context_tokens / each,
            "requests": endpoint.requests,
        }
