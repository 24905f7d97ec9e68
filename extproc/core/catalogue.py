"""What a configuration names, apart from the code that it names: to check a file takes the names alone.

Held equal to the registries by tests.
"""

from __future__ import annotations

from typing import Final

#: The strategies, in the registry's order (core/strategies).
STRATEGY_NAMES: Final = (
    "steer",
    "round_robin",
    "weighted_round_robin",
    "random",
    "least_request",
    "power_of_two",
    "least_work",
    "latency",
    "cost",
    "queue",
    "prefix",
    "llmd-default",
    "llmd-token-load",
    "sglang-cache-aware",
    "aibrix-prefix",
    "dynamo-kv",
    "sticky-least-loaded",
)
#: From this predicted wait on a pool counts as loaded, and a family's requests get a smaller model
#: (core/families).
WAIT_MS: Final = 500.0
