"""Which model of a family serves a request: the smallest that is good enough, one size down under load.

Owns the order of the rules:

1. The models that may serve at all: the tenant's, at or above its quality floor, of a pool that exists.
2. Of those the smallest at the score's level or above it; the largest where none is.
3. Where its pool is loaded, the next smaller one that has room; says `load`. Never below the floor.
4. Where its pool has no ready replica and no smaller one has room, the next larger one that is ready;
   says `unavailable`, as does a step down for that cause.

Loaded: requests wait for the pool, or no replica with a free permit would begin within `wait_ms`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from extproc.core.catalogue import WAIT_MS
from extproc.core.contract import ANSWERED_MODEL_HEADER, SHIFTED_HEADER
from extproc.core.endpoint import places
from extproc.core.errors import no_model
from extproc.core.families.difficulty import NAMES, features
from extproc.core.families.score import DEFAULT, Weights
from extproc.core.fleet import Fleet, Pool
from extproc.core.forecast import start_ms
from extproc.core.outcome import Reject
from extproc.core.request import Request
from extproc.core.tenant import Tenant
from extproc.engines import traits_of

LOAD, UNAVAILABLE = "load", "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models of one kind, smallest first.

    `thresholds[i]` is the score from which on model i is too small; one less than models, ascending.
    `wait_ms` None never shifts for load.
    """

    name: str
    models: tuple[str, ...]
    thresholds: tuple[float, ...]
    weights: Weights = DEFAULT
    wait_ms: float | None = WAIT_MS

    def level(self, score: float) -> int:
        """The index of the smallest model that a score allows."""
        return bisect_right(self.thresholds, score)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyChoice:
    """What became of a request for a family: the model, the one that it should have been, and why not."""

    family: str
    model: str
    wished: str
    score: float
    features: tuple[float, ...]
    shifted: str = ""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What the client is told."""
        told = (ANSWERED_MODEL_HEADER, self.model)
        return (told, (SHIFTED_HEADER, self.shifted)) if self.shifted else (told,)

    def text(self) -> str:
        """One line for people."""
        shifted = f", {self.shifted}: {self.wished} → {self.model}" if self.shifted else ""
        return f"{self.family}: score {self.score:.2f} → {self.wished}{shifted}"

    def plain(self) -> dict[str, object]:
        """As plain values."""
        return {
            "family": self.family,
            "model": self.model,
            "wished": self.wished,
            "shifted": self.shifted,
            "score": round(self.score, 4),
            "features": {name: round(each, 3) for name, each in zip(NAMES, self.features, strict=True)},
        }


def thresholds_for(models: int) -> tuple[float, ...]:
    """Thresholds where none are configured: 0 to 1 in equal parts."""
    return tuple((i + 1) / models for i in range(models - 1))


def floor_of(models: tuple[str, ...], floor: str | int | None) -> int:
    """The index below which a tenant's requests do not go.

    `floor` is a model (no floor for families without it) or a rank, 1 the smallest.
    """
    if floor is None:
        return 0
    if isinstance(floor, int):
        return max(0, min(floor, len(models)) - 1)
    return models.index(floor) if floor in models else 0


def members(family: Family, tenant: Tenant, fleet: Fleet) -> list[int]:
    """Indexes of the models that a tenant's requests may get, smallest first."""
    first = floor_of(family.models, tenant.quality_floor)
    return [
        i
        for i, model in enumerate(family.models)
        if i >= first and tenant.may(model) and fleet.pool_for(model, tenant.name) is not None
    ]


def pick(
    request: Request, tenant: Tenant, fleet: Fleet, family: Family, *, waiting: Callable[[str], int]
) -> FamilyChoice | Reject:
    """The model for a request; Reject when the tenant may have none of the family.

    `waiting` says how many requests wait for a pool.
    """
    may = members(family, tenant, fleet)
    if not may:
        return no_model(request.model)
    found = features(request)
    score = family.weights.score(found)
    level = family.level(score)
    at = next((place for place, i in enumerate(may) if i >= level), len(may) - 1)
    models = [family.models[i] for i in may]
    place, shifted = _with_room(family, models, at, request.sequences, tenant, fleet, waiting)
    return FamilyChoice(
        family=family.name,
        model=models[place],
        wished=models[at],
        score=score,
        features=found,
        shifted=shifted,
    )


def _with_room(
    family: Family,
    models: list[str],
    at: int,
    permits: int,
    tenant: Tenant,
    fleet: Fleet,
    waiting: Callable[[str], int],
) -> tuple[int, str]:
    """Where to go from the wished model, and why elsewhere."""

    def room(model: str) -> bool:
        pool = fleet.pool_for(model, tenant.name)
        return pool is not None and not waiting(pool.name) and begins(pool, tenant, permits, family.wait_ms)

    def ready(model: str) -> bool:
        pool = fleet.pool_for(model, tenant.name)
        return pool is not None and begins(pool, tenant, 0, None)

    gone = not ready(models[at])
    if not gone and (family.wait_ms is None or room(models[at])):
        return at, ""
    why = UNAVAILABLE if gone else LOAD
    for place in range(at - 1, -1, -1):
        if room(models[place]):
            return place, why
    if gone:
        for place in range(at + 1, len(models)):
            if ready(models[place]):
                return place, why
    return at, ""


def begins(pool: Pool, tenant: Tenant, permits: int, wait_ms: float | None) -> bool:
    """Whether any replica that a tenant may use would begin within a time; any time where it is None.

    It has so many permits free; with 0 that is not asked.
    """
    regions = tenant.regions
    may = [e for e in pool.endpoints if e.ready and (regions is None or e.region in regions)]
    if permits > 1 and traits_of(pool.engine).queues:
        permits = places(permits, may)
    return any(
        (not permits or e.load_permits + permits <= e.max_concurrent)
        and (wait_ms is None or start_ms(e) <= wait_ms)
        for e in may
    )
