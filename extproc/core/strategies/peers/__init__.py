"""What the strongest peers do, rebuilt as strategies to compare with.

Not recommendations, and not their code: each is what is published of the policy, with its own inputs (old
telemetry where it polls, its own count where it counts) and its own index of prefixes, filled when it picks.
Common approximations: our prefix blocks stand for theirs, also where theirs are smaller; reports come at our
agents' interval, not at theirs; retries go to the next in order. They never hold a request, and know nothing
of health, zones or other services. An endpoint that leaves the fleet is to be told to `forget`.
"""

from __future__ import annotations

from extproc.core.strategies.peers.aibrix_prefix import AibrixPrefix
from extproc.core.strategies.peers.dynamo_kv import DynamoKv
from extproc.core.strategies.peers.llmd_default import LlmdDefault
from extproc.core.strategies.peers.llmd_token_load import LlmdTokenLoad
from extproc.core.strategies.peers.sglang_cache_aware import SglangCacheAware
from extproc.core.strategies.peers.sticky_least_loaded import StickyLeastLoaded

__all__ = [
    "AibrixPrefix",
    "DynamoKv",
    "LlmdDefault",
    "LlmdTokenLoad",
    "SglangCacheAware",
    "StickyLeastLoaded",
]
