"""The fast model of a pool that is served: from its load to attainment and to requests in flight.

Owns the curves, one for each clients' mix, over a replica's load: smoothed work that comes, in
replica-seconds a second, by replicas that are ready. `measure.py` measures them in `requests.py`'s world,
with the shipped scheduler (steer). Load 1 is where a replica's tokens take 100 ms if each prompt is prefilled
alone: short prompts are prefilled together, so clients with short prompts attain beyond it. What the model
leaves out: requests that wait from one step to the next (they are inside the smoothing), a prefix cache, and
that a mix varies over a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.lab.scaling.rates import Series

#: A replica counts as full where this share attains: what peers call 100 %.
FULL_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True)
class ServiceCurve:
    """Points by ascending load: load, share (0..1) that attains, requests in flight by replica."""

    points: tuple[tuple[float, float, float], ...]

    def attainment(self, load: Series, ready: Series) -> Series:
        """Share of a step's requests, by smoothed load and ready replicas. Past the last point what can be
        served is shared out; nobody attains where no replica is ready."""
        loads, shares, _ = zip(*self.points, strict=True)
        each = load / np.maximum(ready, 1e-9)
        share = np.interp(each, loads, shares) * np.minimum(1.0, loads[-1] / np.maximum(each, 1e-9))
        return np.where(ready > 0, share, np.where(load > 0, 0.0, 1.0))

    def concurrency(self, load: Series, ready: Series) -> Series:
        """Requests in flight or held, all replicas together."""
        loads, _, flights = zip(*self.points, strict=True)
        many = np.maximum(ready, 1)
        return np.asarray(np.interp(load / many, loads, flights) * many, dtype=np.float64)

    @property
    def full(self) -> float:
        """Load of a replica that is full: FULL_SHARE attain."""
        return self.load_at(FULL_SHARE)

    def in_flight(self, load: float) -> float:
        """Requests in flight at a load, of one replica."""
        loads, _, flights = zip(*self.points, strict=True)
        return float(np.interp(load, loads, flights))

    def load_at(self, share: float) -> float:
        """The highest load of a replica at which this share of requests attains."""
        loads, shares, _ = zip(*self.points, strict=True)
        at = np.linspace(0.0, loads[-1], 2_401)
        good = np.interp(at, loads, shares) >= share
        return float(at[good][-1])


#: By the clients' name; 70B on A100 TP4. m-mid: 64,000 requests at 2 and 6 replicas, which did not
#: differ beyond the spread of the runs.
KNOWN: Final = {
    "servegen_m-mid_day12": ServiceCurve(
        (
            (0.00, 1.000, 0.0),
            (0.20, 1.000, 4.0),
            (0.42, 0.998, 7.5),
            (0.60, 0.992, 11.5),
            (0.75, 0.990, 15.0),
            (0.85, 0.971, 20.0),
            (0.95, 0.957, 25.5),
            (1.05, 0.923, 30.0),
            (1.15, 0.822, 38.0),
            (1.29, 0.777, 48.0),
            (1.50, 0.630, 55.0),
            (1.77, 0.600, 62.0),
            (2.40, 0.500, 62.0),
        )
    ),
    # 13,000 requests at 4 replicas.
    "made-up chat": ServiceCurve(
        (
            (0.00, 1.000, 0.0),
            (0.20, 1.000, 2.0),
            (0.43, 0.996, 6.0),
            (0.57, 0.990, 8.0),
            (0.71, 0.990, 10.8),
            (0.86, 0.963, 13.9),
            (0.96, 0.963, 16.7),
            (1.04, 0.960, 20.1),
            (1.15, 0.911, 21.7),
            (1.29, 0.870, 26.5),
            (1.42, 0.838, 28.0),
            (1.60, 0.796, 30.9),
            (1.87, 0.750, 35.3),
            (2.16, 0.731, 37.7),
            (2.53, 0.669, 39.6),
        )
    ),
    # 38,000 requests at 4 replicas.
    "servegen_m-small_day9": ServiceCurve(
        (
            (0.00, 1.000, 0.0),
            (0.24, 0.995, 2.2),
            (0.41, 0.995, 2.7),
            (0.59, 0.991, 3.6),
            (0.73, 0.991, 4.8),
            (0.85, 0.990, 4.9),
            (0.95, 0.984, 4.9),
            (1.06, 0.960, 8.6),
            (1.16, 0.960, 8.7),
            (1.28, 0.942, 10.8),
            (1.42, 0.915, 13.4),
            (1.60, 0.874, 17.2),
            (1.83, 0.856, 21.0),
            (2.20, 0.686, 39.6),
            (2.54, 0.541, 60.8),
        )
    ),
}
