"""A choice between sites, as it rides with a request."""

from __future__ import annotations

from typing import NamedTuple

from extproc.core.tiers.values import TierChoice, TierRequest, TierRule


class Tiered(NamedTuple):
    """A choice of a place, and what it was made of: the pool here ("" where the model is only there)."""

    home: str
    asked: TierRequest
    rule: TierRule
    choice: TierChoice
