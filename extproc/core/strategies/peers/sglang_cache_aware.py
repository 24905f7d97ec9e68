"""sglang-cache-aware: SGLang's router.

If the most in flight exceeds the least by > 64 and is > 1.5 times it: the fewest in flight. Else, if the
best match is > 0.3 of the prompt: the endpoint of that match; else the one with the smallest tree, blind to
load.

Score: in flight; or 1 − match; or 1 + the tree's size in blocks. In flight is the router's own count. Theirs
is one radix tree over text, evicted every 60 s down to 67M characters; ours counts blocks of 256 bytes and
drops the oldest at once. What a prompt has beyond its full blocks is taken for new text, so that short
prompts grow a tree as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import Forecast
from extproc.core.prefix import BLOCK_BYTES
from extproc.core.strategies.base import Scored
from extproc.core.strategies.parameter import bounded
from extproc.core.strategies.peers.indexed import Indexed
from extproc.core.work import SchedulingContext, Work


@dataclass(frozen=True, slots=True)
class SglangCacheAware(Indexed, Scored):
    """Best match while balanced, else the shortest queue."""

    name: ClassVar[str] = "sglang-cache-aware"
    #: 67M characters.
    capacity_blocks: ClassVar[int] = (1 << 26) // BLOCK_BYTES

    imbalance: int = bounded(64, 0, 1_000_000)
    imbalance_ratio: float = bounded(1.5, 1.0, 100.0)
    match_min: float = bounded(0.3, 0.0, 1.0)
    #: Text beyond full blocks, in blocks, by address.
    tails: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def scores(self, candidates: Sequence[Endpoint], work: Work, at: SchedulingContext) -> list[float]:
        """By queue, by match or by tree."""
        loads = [e.requests for e in candidates]
        most, least = max(loads), min(loads)
        if most - least > self.imbalance and most > self.imbalance_ratio * least:
            return [float(load) for load in loads]
        rates = self.rates(candidates, work)
        if max(rates) > self.match_min:
            return [1.0 - rate for rate in rates]
        return [1.0 + self._tree(e.address) for e in candidates]

    def _tree(self, address: str) -> float:
        return self.index.blocks(address) + self.tails.get(address, 0.0)

    def picked(
        self, endpoints: Sequence[Endpoint], endpoint: Endpoint, work: Work, *, at: SchedulingContext
    ) -> None:
        """The prompt is put into the tree of where it went."""
        super(SglangCacheAware, self).picked(endpoints, endpoint, work, at=at)
        address = endpoint.address
        tail = max(0.0, work.input_tokens / max(1.0, work.block_tokens) - len(work.prefix))
        self.tails[address] = self.tails.get(address, 0.0) + min(tail, 1.0)

    def forget(self, address: str) -> None:
        """An endpoint left, or lost its cache."""
        super(SglangCacheAware, self).forget(address)
        self.tails.pop(address, None)

    def explain(
        self, endpoint: Endpoint, work: Work, expected: Forecast, *, at: SchedulingContext
    ) -> dict[str, float]:
        """The terms of one endpoint's score."""
        return {
            "requests": endpoint.requests,
            "matched": self.rates([endpoint], work)[0],
            "tree_blocks": self._tree(endpoint.address),
        }
