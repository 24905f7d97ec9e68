"""What an endpoint itself says of its prefix cache, and what follows for the learnt size of it.

Owns the judgement of cached tokens told by usage and by KV events; the index is prefix.py's.
All of it moves the one endpoint that spoke, so that an engine or agent that lies misleads about itself alone.

Usage tells of one request what was found when it was admitted. Far fewer tokens than the index said: the
blocks had left, and with them whatever was used less recently, so that the endpoint's part of the index
shrinks. As much as was said: it grows a little. More: the cache is larger than it was taken for, by that much
at least.
"""

from __future__ import annotations

from collections import Counter

from extproc.core.load import Plan

#: Cached tokens told within so many of our blocks, or this share, of what was predicted are as predicted: an
#: engine's blocks are other than ours, and a text block's tokens are an estimate.
TOLERANCE_BLOCKS, TOLERANCE_SHARE = 2.0, 0.1
#: A miss of all that was predicted takes this share of what is held; a hit gives back this.
TOLD_SHRINK, TOLD_GROW = 0.2, 0.01

#: Where the index's knowledge of an endpoint comes from, from the weakest on.
GUESSED, USAGE, EVENTS = "guessed", "usage", "events"


class CacheEvidence:
    """What one endpoint has said of its cache. `corrections` counts what moved its index, by cause."""

    __slots__ = ("corrections", "events", "told")

    def __init__(self) -> None:
        #: Usage told cached tokens since the engine's start.
        self.told = False
        #: Its KV events are heard.
        self.events = False
        self.corrections: Counter[str] = Counter()

    @property
    def source(self) -> str:
        """Where what the index says of it comes from: the strongest that speaks."""
        if self.events:
            return EVENTS
        if self.told:
            return USAGE
        return GUESSED

    def began_anew(self) -> None:
        """Another process of the engine: whether it tells is to be seen again."""
        self.told = self.events = False
        self.corrections["emptied"] += 1

    def silent(self) -> None:
        """Nobody hears its KV events any more: usage and late first tokens speak again."""
        self.events = False

    def usage(self, plan: Plan, cached: int, capacity: float, held: float) -> float:
        """The size of the cache (tokens), after a request of `plan` that found `cached` tokens.

        `capacity` is what it was taken for, `held` what the index holds of it, both in tokens. Not bounded
        above.
        """
        self.told = True
        predicted = plan.cached_tokens
        tolerance = max(TOLERANCE_BLOCKS * plan.block_tokens, TOLERANCE_SHARE * predicted)
        if cached > predicted + tolerance:
            self.corrections["usage_found"] += 1
            return max(capacity * (1.0 + TOLD_GROW), min(capacity, held) + cached - predicted, float(cached))
        if cached < predicted - tolerance:
            self.corrections["usage_gone"] += 1
            return min(capacity, held) * (1.0 - TOLD_SHRINK * (predicted - cached) / predicted)
        return capacity * (1.0 + TOLD_GROW) if predicted else capacity
