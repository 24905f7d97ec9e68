"""Load as replicas feel it: what came of late, since a request stays for a while."""

from __future__ import annotations

from math import exp
from typing import Final

import numpy as np

from extproc.lab.scaling.rates import Series
from extproc.lab.scaling.traffic import STEP_S

#: Exponential mean over about a request's stay.
SMOOTH_S: Final = 15.0
_KEPT: Final = exp(-STEP_S / SMOOTH_S)


class Smoothed:
    """An exponential mean, a lane each; the first value is taken as it is."""

    def __init__(self, lanes: int) -> None:
        self._mean = np.zeros(lanes)
        self._any = False

    def step(self, load: Series) -> Series:
        """With this step's value."""
        self._mean = self._mean * _KEPT + load * (1 - _KEPT) if self._any else load.astype(float)
        self._any = True
        return self._mean


def smoothed(load: Series) -> Series:
    """A whole series, steps along the first axis."""
    flat = load.reshape(len(load), -1)
    mean = Smoothed(flat.shape[1])
    return np.array([mean.step(row) for row in flat]).reshape(load.shape)
