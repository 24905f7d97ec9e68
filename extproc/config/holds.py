"""How long Envoy must be able to wait for the decision on a held request. Pure.

Beside the models, since both Envoy's rendering and the question what needs a restart ask for it.
"""

from __future__ import annotations

from typing import Final

from extproc.config.model import Config

#: The longest that the service may ask Envoy to wait where no class holds longer for a first replica.
HOLD_MS_MAX: Final = 5 * 60 * 1000
#: Beyond a hold, so that the service's own answer comes first.
BEYOND_MS: Final = 60_000


def longest_hold_ms(config: Config) -> int:
    """The longest that the service may ask Envoy to wait."""
    cold_ms = max((each.cold_hold_ms for each in config.classes), default=0)
    return max(HOLD_MS_MAX, cold_ms + BEYOND_MS)
