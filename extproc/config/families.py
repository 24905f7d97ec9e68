"""Families in the file: models of one kind, of which each request gets the one that it needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from extproc.config.section import Section
from extproc.config.types import ModelName
from extproc.core.catalogue import WAIT_MS

#: A family's models.
MODELS_MAX = 8

Threshold = Annotated[float, Field(gt=0.0, lt=1.0)]


class ShiftDown(Section):
    """When a family's requests get a smaller model than they should."""

    wait_ms: float = Field(default=WAIT_MS, ge=0.0, le=600_000.0)
    """When requests are held for the model's pool, or none of its replicas would begin within this."""


class FamilyConfig(Section):
    """A name that clients may ask for instead of a model's."""

    name: ModelName
    """The name; no pool may serve a model of the same."""
    models: list[ModelName] = Field(min_length=2, max_length=MODELS_MAX)
    """Its models, smallest first."""
    thresholds: list[Threshold] | None = None
    """Scores (0 to 1) from which on the next larger model is taken, one less than models; equal parts when
    left out."""
    weights: str | None = Field(default=None, min_length=1)
    """A file with the classifier's weights, from 'steersman families train'; our own when left out."""
    shift_down: ShiftDown | None = ShiftDown()
    """One model smaller under load, never below a tenant's quality_floor; null never does."""
