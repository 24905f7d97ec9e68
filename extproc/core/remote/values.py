"""A choice between sites, as it rides with a request."""

from __future__ import annotations

from typing import NamedTuple

from extproc.core.tiers.values import TierChoice, TierRequest, TierRule


class Tiered(NamedTuple):
    """A choice of a place, and what it was made of: the pool here ("" where the model is only there), the one
    there, how many sequences it is, and how long its prompt would keep a replica there.
    """

    home: str
    there: str
    sequences: int
    prefill_ms: float
    asked: TierRequest
    rule: TierRule
    choice: TierChoice
