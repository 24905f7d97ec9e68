"""Predicts what a request will cost, in milliseconds and tokens, and says how sure it is.

Owns the affine timings, their priors from the hardware's name, their calibration, and the lengths of
answers. Knows nothing of endpoints' load, queues or strategies.
"""

from __future__ import annotations

from extproc.core.predict.errors import Errors
from extproc.core.predict.lengths import OutputLengths
from extproc.core.predict.prior import Prior, prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing

__all__ = ["Errors", "OutputLengths", "Prior", "Speed", "SpeedModel", "Timing", "prior"]
