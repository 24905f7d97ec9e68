"""Recursive least squares for three non-negative coefficients, robust and bounded.

Owns one estimate and its covariance. Knows neither what the features mean nor whose they are.
"""

from __future__ import annotations

from math import exp, log

#: A coefficient stays within these multiples of its prior.
MULTIPLE_MIN, MULTIPLE_MAX = 0.05, 20.0
#: Evidence in a direction fades by this at each observation in that direction: about 50 count.
FORGETTING = 0.98
#: Variance of one observation's relative noise.
NOISE = 0.01
#: Variances of the prior's multiples: each coefficient's own, and what they share, since hardware that
#: is slower than its data sheet is slower at everything.
OWN_VARIANCE, SHARED_VARIANCE = 0.25, 0.5
#: An innovation counts for at most three times the running mean of its size, within these logarithms.
CLIP_MIN, CLIP_MAX = 0.2, 0.5
#: How fast the running size of the innovations moves.
CLIP_RATE = 0.1

_FADE = NOISE * (1.0 / FORGETTING - 1.0)
_DIAGONAL = OWN_VARIANCE + SHARED_VARIANCE
_TRACE_MAX = 3.0 * _DIAGONAL


class Affine:
    """`k0 + k1·x1 + k2·x2` with learned coefficients, kept as multiples of positive priors.

    The fit is of relative errors: features and target are divided by the prediction. Forgetting is
    directional (Bittanti, Bolzern, Campi 1990): only what the observation touches fades, so the
    covariance does not grow without excitation; its trace never exceeds the prior's.
    """

    __slots__ = ("_clip", "_m0", "_m1", "_m2", "_p00", "_p01", "_p02", "_p11", "_p12", "_p22", "_prior")

    def __init__(self, base: float, first: float, second: float) -> None:
        self._prior = (base, first, second)
        self._m0 = self._m1 = self._m2 = 1.0
        self._clip = CLIP_MAX
        self._forget_all()

    def _forget_all(self) -> None:
        self._p00 = self._p11 = self._p22 = _DIAGONAL
        self._p01 = self._p02 = self._p12 = SHARED_VARIANCE

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """The three coefficients, in the priors' units."""
        base, first, second = self._prior
        return base * self._m0, first * self._m1, second * self._m2

    @property
    def trace(self) -> float:
        """Sum of the variances of the multiples; at most the prior's."""
        return self._p00 + self._p11 + self._p22

    def scale(self, by: float) -> None:
        """Multiplies every coefficient, within its bounds."""
        self._m0 = _bounded(self._m0 * by)
        self._m1 = _bounded(self._m1 * by)
        self._m2 = _bounded(self._m2 * by)

    def saw(self, first: float, second: float, observed: float) -> None:
        """`observed` (positive, finite) came of the features `first` and `second` (finite, not negative)."""
        base, x1, x2 = self._prior
        x1 *= first
        x2 *= second
        predicted = base * self._m0 + x1 * self._m1 + x2 * self._m2
        if predicted <= 0.0:
            return
        x0 = base / predicted
        x1 /= predicted
        x2 /= predicted
        g0 = self._p00 * x0 + self._p01 * x1 + self._p02 * x2
        g1 = self._p01 * x0 + self._p11 * x1 + self._p12 * x2
        g2 = self._p02 * x0 + self._p12 * x1 + self._p22 * x2
        spread = g0 * x0 + g1 * x1 + g2 * x2
        if spread <= 1e-12:
            # Rounding, or a direction known beyond doubt: start its variance again.
            self._forget_all()
            return

        innovation = log(observed / predicted)
        size = min(abs(innovation), CLIP_MAX)
        clip = min(max(3.0 * self._clip, CLIP_MIN), CLIP_MAX)
        self._clip += CLIP_RATE * (size - self._clip)
        gain = (exp(min(max(innovation, -clip), clip)) - 1.0) / (NOISE + spread)
        self._m0 = _bounded(self._m0 + g0 * gain)
        self._m1 = _bounded(self._m1 + g1 * gain)
        self._m2 = _bounded(self._m2 + g2 * gain)

        # One rank. An outlier taught little, so it makes little certain (Huber) and lets nothing fade;
        # else less the information won, plus what fades in the same direction.
        beyond = abs(innovation) / clip
        if beyond > 1.0:
            less = 1.0 / (NOISE * beyond * beyond + spread)
        else:
            less = (1.0 - _FADE / spread) / (NOISE + spread)
        self._p00 -= less * g0 * g0
        self._p01 -= less * g0 * g1
        self._p02 -= less * g0 * g2
        self._p11 -= less * g1 * g1
        self._p12 -= less * g1 * g2
        self._p22 -= less * g2 * g2
        if not 0.0 < self.trace <= _TRACE_MAX:
            self._shrink()

    def _shrink(self) -> None:
        trace = self.trace
        if not trace > 0.0:
            self._forget_all()
            return
        by = _TRACE_MAX / trace
        self._p00 *= by
        self._p01 *= by
        self._p02 *= by
        self._p11 *= by
        self._p12 *= by
        self._p22 *= by


def _bounded(multiple: float) -> float:
    return min(max(multiple, MULTIPLE_MIN), MULTIPLE_MAX)
