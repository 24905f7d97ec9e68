"""Where a request is served, at the edge or in the centre: values, and the choice (choice).

values.py    what each place offers, what the configuration says, what comes of it
choice.py    the order of the rules
leanings.py  where requests of a kind went last, so that the choice does not flap
offers.py    what a pool offers now: to the choice, and in a digest to other sites
view.py      what the edge knows of the centre: its last digest, what went there since, what failed
"""

from __future__ import annotations

from extproc.core.tiers.choice import complexity_of, place
from extproc.core.tiers.leanings import Leanings
from extproc.core.tiers.offers import SIZES, SiteDigest, digest_of, offer_of
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
from extproc.core.tiers.view import CentreView

__all__ = [
    "HERE",
    "REASONS",
    "SIZES",
    "SMALLER",
    "THERE",
    "CentreView",
    "Leanings",
    "SiteDigest",
    "SiteOffer",
    "TierChoice",
    "TierReason",
    "TierRequest",
    "TierRule",
    "Where",
    "complexity_of",
    "digest_of",
    "offer_of",
    "place",
]
