"""The fast model of a pool that is served: from its load to attainment and to requests in flight.

Owns two curves over a replica's load: smoothed work that comes, in replica-seconds a second, by replicas that
are ready. Both were measured in the world of `requests.py` with the shipped scheduler (steer), 70B on A100
TP4, ServeGen's m-mid clients of two times of day, 2 and 6 replicas, load rising from .4 to 1.8 in ten minutes
(64,000 requests; `python -m extproc.lab.scaling.measure`). They did not differ by the number of replicas beyond
the spread of the runs, so there is one. What the model leaves out: requests that wait from one step to the next
(they are inside the smoothing), a prefix cache, and whatever else differs from that mix.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from extproc.lab.scaling.rates import Series

#: Load of a replica, share of requests that attain, and requests in flight or held by replica.
POINTS: Final = (
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
_LOADS, _SHARES, _FLIGHTS = (np.array(column) for column in zip(*POINTS, strict=True))


def attainment(load: Series, ready: Series) -> Series:
    """Share (0..1) of a step's requests, by smoothed load and ready replicas; past the last point what can be
    served is shared out. Nobody attains where no replica is ready."""
    each = load / np.maximum(ready, 1e-9)
    share = np.interp(each, _LOADS, _SHARES) * np.minimum(1.0, _LOADS[-1] / np.maximum(each, 1e-9))
    return np.where(ready > 0, share, np.where(load > 0, 0.0, 1.0))


def concurrency(load: Series, ready: Series) -> Series:
    """Requests in flight or held, all replicas together."""
    many = np.maximum(ready, 1)
    return np.asarray(np.interp(load / many, _LOADS, _FLIGHTS) * many, dtype=np.float64)


def load_in_flight(each: float) -> float:
    """Requests in flight at a load, of one replica."""
    return float(np.interp(each, _LOADS, _FLIGHTS))


def replica_load_for(share: float) -> float:
    """The highest load of a replica at which this share of requests attains."""
    at = np.linspace(0.0, _LOADS[-1], 2_401)
    good = np.interp(at, _LOADS, _SHARES) >= share
    return float(at[good][-1])
