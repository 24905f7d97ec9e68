"""Families: a client asks for one by name, and each request gets the model that it needs (`adaptive_model`).

difficulty.py  what of a request tells of its difficulty, as numbers
score.py       a logistic score of them, by weights that are ours or a file's
choice.py      the smallest model that is good enough, one size down under load
train.py       weights from labelled requests
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from extproc.core.catalogue import WAIT_MS
from extproc.core.families.choice import (
    Family,
    FamilyChoice,
    begins,
    floor_of,
    members,
    pick,
    thresholds_for,
)
from extproc.core.families.difficulty import NAMES, features
from extproc.core.families.score import DEFAULT, Weights, read, write

NONE: Mapping[str, Family] = MappingProxyType({})

__all__ = [
    "DEFAULT",
    "NAMES",
    "NONE",
    "WAIT_MS",
    "Family",
    "FamilyChoice",
    "Weights",
    "begins",
    "features",
    "floor_of",
    "members",
    "pick",
    "read",
    "thresholds_for",
    "write",
]
