"""Where a request is served, at the edge or in the centre: values, and the choice (choice).

values.py    what each place offers, what the configuration says, what comes of it
choice.py    the order of the rules
leanings.py  where requests of a kind went last, so that the choice does not flap
"""

from __future__ import annotations

from extproc.core.tiers.choice import complexity_of, place
from extproc.core.tiers.leanings import Leanings
from extproc.core.tiers.values import (
    HERE,
    REASONS,
    SMALLER,
    THERE,
    SiteOffer,
    TierChoice,
    TierReason,
    TierRequest,
    TierRule,
    Where,
)

__all__ = [
    "HERE",
    "REASONS",
    "SMALLER",
    "THERE",
    "Leanings",
    "SiteOffer",
    "TierChoice",
    "TierReason",
    "TierRequest",
    "TierRule",
    "Where",
    "complexity_of",
    "place",
]
