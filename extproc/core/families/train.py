"""Weights from labelled requests: plain logistic regression by stochastic gradient descent.

Owns the arithmetic and what a label is worth. Pure Python and seeded by the caller: the same examples in
the same order with the same chance give the same weights. Fractional targets are allowed (a cross entropy
has them as its minimum), which makes three labels one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from extproc.core.families.choice import thresholds_for
from extproc.core.families.difficulty import NAMES
from extproc.core.families.score import Weights

#: Labels and their targets.
LABELS = {"simple": 0.0, "medium": 0.5, "complex": 1.0}
#: Visits of an example over the whole training, and passes over the examples at the least and the most.
VISITS, PASSES_MIN, PASSES_MAX = 200_000, 4, 600
#: The first step's rate; it falls to a tenth.
RATE = 0.5
#: What large weights cost.
DECAY = 1e-3
#: The share of the examples that is held out.
HELD_OUT_SHARE = 0.25

Example = tuple[tuple[float, ...], float]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How often the level was right, on the examples trained on and on those held out (None without any)."""

    weights: Weights
    trained: int
    held_out: int
    accuracy_trained: float
    accuracy_held_out: float | None


def train(examples: Sequence[Example], *, rng: Random, held_out_share: float = HELD_OUT_SHARE) -> TrainReport:
    """Fit on a part of the examples and judge on the rest; ValueError for fewer than two or one target."""
    if len({target for _, target in examples}) < 2:
        raise ValueError("wants examples of at least two labels")
    shuffled = list(examples)
    rng.shuffle(shuffled)
    kept = max(1, round(len(shuffled) * (1.0 - held_out_share)))
    weights = fit(shuffled[:kept], rng=rng)
    return TrainReport(
        weights,
        kept,
        len(shuffled) - kept,
        accuracy(weights, shuffled[:kept]),
        accuracy(weights, shuffled[kept:]) if kept < len(shuffled) else None,
    )


def fit(examples: Sequence[Example], *, rng: Random) -> Weights:
    """Weights by gradient descent over shuffled examples."""
    passes = max(PASSES_MIN, min(PASSES_MAX, VISITS // len(examples)))
    bias, values = 0.0, [0.0] * len(NAMES)
    order = list(examples)
    for number in range(passes):
        rate = RATE * (1.0 - 0.9 * number / passes)
        rng.shuffle(order)
        for found, target in order:
            error = Weights(bias, tuple(values)).score(found) - target
            bias -= rate * error
            values = [
                value - rate * (error * feature + DECAY * value)
                for value, feature in zip(values, found, strict=True)
            ]
    return Weights(bias, tuple(values))


def accuracy(weights: Weights, examples: Sequence[Example]) -> float:
    """The share of examples whose score falls in their own third; 0 to 1."""
    first, second = thresholds_for(3)

    def third(value: float) -> int:
        return (value >= first) + (value >= second)

    right = sum(third(weights.score(found)) == third(target) for found, target in examples)
    return right / len(examples)
