"""What the configuration says of spill-over, and what becomes of a request that goes elsewhere: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from extproc.core.contract import ANSWERED_MODEL_HEADER, SPILLED_HEADER

if TYPE_CHECKING:
    from extproc.core.tiers.values import TierRule

#: What a pool answers that others spill to where it refuses or fails (529 is "overloaded" to some): it is
#: left alone for a while, and the client may ask again at once. A 500 is not among it: a request may bring
#: its own along.
GIVES_WAY = frozenset({429, 502, 503, 504, 529})
#: Why a request did not stay in its own pool.
UNAVAILABLE, LOAD, ATTAINMENT = "unavailable", "load", "attainment"
#: It failed there first.
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillRule:
    """Where a pool's requests may go, when, and for how much.

    `models` are the other pool's by this pool's; a model that is not in it keeps its name. `wait_ms` and
    `attained_min` (0 to 1) None never spill for that cause. Budgets are in the currency of prices, None where
    there is none. `output_tokens_max` is what a request is reckoned to generate that sets no limit. With
    `tiers` the other pool is a centre's, and that rule says when; `returns`: what fails there is tried here,
    `after_failure`: what fails here is tried there.
    """

    pool: str
    to: str
    models: Mapping[str, str] = field(default_factory=dict)
    wait_ms: float | None = 2_000.0
    attained_min: float | None = None
    budget_per_hour: float | None = None
    output_tokens_max: int = 4_096
    tiers: TierRule | None = None
    returns: bool = False
    after_failure: bool = False

    @property
    def renames(self) -> bool:
        """Whether any model is called otherwise there."""
        return any(model != called for model, called in self.models.items())

    def model(self, model: str) -> str:
        """What a model is called there."""
        return self.models.get(model, model)


#: No pool spills.
NO_RULES: Mapping[str, SpillRule] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillAllowance:
    """A tenant whose requests may go elsewhere, and for how much an hour; None without a bound of its own."""

    budget_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What a provider lets one account do in a minute; None where nothing is said."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class SpillCost(msgspec.Struct, frozen=True):
    """What a request is to a provider: tokens in and out, and currency."""

    tokens: int
    cost: float


class Spilled(msgspec.Struct, frozen=True):
    """A request that goes elsewhere: from which pool, the model there, why, and the most that it can cost.

    `waited_ms` it had waited there when it went; None where it went at once. `returns`: its own pool's
    replicas are tried where it fails there, under the name `home_model`. `to` is the other pool where it
    goes only if its own fails.
    """

    pool: str
    model: str
    why: str
    most: SpillCost
    returns: bool = False
    home_model: str = ""
    to: str = ""
    waited_ms: float | None = None

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the client is told."""
        return ((ANSWERED_MODEL_HEADER, self.model), (SPILLED_HEADER, self.why))
