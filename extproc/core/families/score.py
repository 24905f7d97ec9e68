"""A logistic score of a request's features: 0 is as simple, 1 as complex as they come.

Owns the weights and their file's form. score = 1 ÷ (1 + exp(−(bias + Σ weight · feature))).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any

import msgspec

from extproc.core.families.difficulty import NAMES

#: The file's version.
VERSION = 1
#: No exponent is further from 0, so that nothing overflows.
EXPONENT_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Weights:
    """`values[i]` is the weight of feature NAMES[i]."""

    bias: float
    values: tuple[float, ...]

    def score(self, features: Sequence[float]) -> float:
        """The score of features, above 0 and below 1."""
        total = self.bias
        for weight, feature in zip(self.values, features, strict=True):
            total += weight * feature
        return 1.0 / (1.0 + exp(-max(-EXPONENT_MAX, min(EXPONENT_MAX, total))))


#: Fitted on the even lines of tests/core/families/labelled.jsonl and rounded. What 68 prompts are too few to
#: tell (length, maths, tools, history, json) is set by hand. On the odd lines 85 % of the levels are right.
DEFAULT = Weights(
    -3.4,
    (
        1.0,  # length: of the whole prompt, documents and history included
        3.0,  # asked: the last message's own length
        0.7,  # code: keywords and fences
        1.8,  # symbols: the share of code's characters
        4.8,  # reasoning: prove, derive, compare, why
        1.0,  # maths: theorem, integral, probability
        -1.1,  # simple: greetings, translation, look-ups
        2.0,  # making: write, design, explain
        2.0,  # parts: conditions, list items, several questions
        1.0,  # tools: offered
        0.5,  # history: messages before
        1.6,  # output: tokens asked for
        0.3,  # json: a form is prescribed
    ),
)


class _File(msgspec.Struct):
    version: int
    bias: float
    weights: dict[str, float]
    about: dict[str, Any] = msgspec.field(default_factory=dict)


def write(weights: Weights, about: Mapping[str, Any] | None = None) -> bytes:
    """Weights as their file holds them; `about` says where they are from."""
    named = {name: round(value, 6) for name, value in zip(NAMES, weights.values, strict=True)}
    text = msgspec.json.encode(_File(VERSION, round(weights.bias, 6), named, dict(about or {})))
    return msgspec.json.format(text, indent=2) + b"\n"


def read(data: bytes) -> Weights:
    """Weights of a file; ValueError says what is wrong with it. A feature it does not name weighs nothing."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is no file of weights: {error}") from None
    if file.version != VERSION:
        raise ValueError(f"has version {file.version}; this release reads {VERSION}")
    unknown = sorted(set(file.weights) - set(NAMES))
    if unknown:
        raise ValueError(f"weighs {', '.join(unknown)}; the features are {', '.join(NAMES)}")
    values = tuple(float(file.weights.get(name, 0.0)) for name in NAMES)
    if not all(map(isfinite, (file.bias, *values))):
        raise ValueError("holds a weight that is no finite number")
    return Weights(file.bias, values)
