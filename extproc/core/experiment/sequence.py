"""Confidence intervals for means of values in [0, 1] that hold at all times at once.

Who looks at an ordinary 95 % interval again and again, and stops when it pleases, is wrong far more often
than in 5 % of the cases. These are confidence sequences: with probability 1 − alpha the interval holds the
mean at every moment from the first value on, so it may be looked at, and acted on, at any time.

The process is the empirical Bernstein one of Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49(2), 2021, Theorem 4 (after Fan,
Grama & Liu 2015): for values X_i in [0, 1], predictions X̂_i made before them, S = Σ(X_i − E[X_i | past]),
V = Σ(X_i − X̂_i)² and ψ(λ) = −log(1 − λ) − λ,

    exp(λS − ψ(λ)V),  0 ≤ λ < 1,

is a supermartingale that begins at 1; so is a mixture of them over λ (a grid here), and by Ville's
inequality it ever reaches 1/alpha with probability alpha at most. It asks nothing of how the values are
distributed and lets their mean drift: what is covered is the mean of the means so far. The betting intervals
of Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B, 2023, are
narrower, but for a mean that never changes, which that of live traffic does.

n, ΣX and V add up: the sums of two streams are those of the two interleaved, so figures can be merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, log1p

#: λ: a large one is sharp where little was seen, the smallest at ten million values.
_LAMBDAS = tuple(0.9 * 2.0 ** (-k / 2) for k in range(20))
_PSIS = tuple(-log1p(-each) - each for each in _LAMBDAS)
_TERMS = tuple(zip(_LAMBDAS, _PSIS, strict=True))
#: Newton's steps; from this side they only fall towards the root, so that stopping early is merely wider.
STEPS_MAX = 30


@dataclass(frozen=True, slots=True)
class ConfidenceSequence:
    """A mean and the bounds that hold it; without any value the bounds are 0 and 1."""

    low: float
    mean: float
    high: float
    count: int

    def minus(self, other: ConfidenceSequence) -> tuple[float, float, float]:
        """The difference of two means: low, mean, high. It holds whenever both intervals do."""
        return self.low - other.high, self.mean - other.mean, self.high - other.low


class Mean:
    """The mean of values in [0, 1] as they come."""

    __slots__ = ("count", "spread", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        #: V: squared distances from what was predicted (the mean so far, drawn towards a half).
        self.spread = 0.0

    def add(self, value: float) -> None:
        """Take the next value."""
        value = min(max(value, 0.0), 1.0)
        predicted = (self.total + 0.5) / (self.count + 1)
        self.spread += (value - predicted) ** 2
        self.total += value
        self.count += 1

    def interval(self, alpha: float) -> ConfidenceSequence:
        """The interval that, at all times together, is wrong with probability `alpha` at most."""
        if not self.count:
            return ConfidenceSequence(0.0, 0.0, 1.0, 0)
        mean, half = self.total / self.count, boundary(self.spread, alpha / 2) / self.count
        return ConfidenceSequence(max(0.0, mean - half), mean, min(1.0, mean + half), self.count)


def boundary(spread: float, alpha: float) -> float:
    """The S that the mixture allows at V = `spread`: it is ever passed with probability `alpha` at most."""
    goal = log(len(_LAMBDAS) / alpha)
    # One term alone reaches the goal later than the sum of all: the root is not above this.
    s: float = min((goal + psi * spread) / each for each, psi in _TERMS)
    for _ in range(STEPS_MAX):
        exponents = [each * s - psi * spread for each, psi in _TERMS]
        top = max(exponents)
        weights = [exp(exponent - top) for exponent in exponents]
        total = sum(weights)
        slope = sum(each * weight for each, weight in zip(_LAMBDAS, weights, strict=True)) / total
        step = (top + log(total) - goal) / slope
        s -= step
        if step < 1e-6 * s:
            break
    return s
