"""Replicas by stage, on a clock of steps: wanted, loading, ready, leaving; several lanes side by side.

Owns what becomes of a number that is wanted. Replicas have places 0, 1, 2 …: who leaves is always the one in
the highest place, a loading one before a ready one, as Kubernetes does. So place i is ready once more than i
replicas were wanted for a whole load time without a break, and a wish that is taken back sooner has cost its
loading and brought nothing. One that leaves while it is ready is paid for until it is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from extproc.lab.scaling.rates import Series

Counts = NDArray[np.int64]


@dataclass(slots=True)
class Seen:
    """What a scaler may see at a step; arrays have a value a lane.

    `ended` are requests that did since the step before (in the fast model those that came), and `attained`
    those of them that attained;
    `load` is work that came, in replicas that are full; `utilization` (0..1) is of those ready, smoothed over
    `SMOOTH_S`, 1 where they are full (`service.py`); `concurrency` are requests in flight or held, in all.
    """

    step: int
    ready: Counts
    wanted: Counts
    requests: Series
    ended: Series
    attained: Series
    load: Series
    utilization: Series
    concurrency: Series


class Scaler(Protocol):
    """Says how many replicas are wanted; called at each step, with one lane a row of its settings."""

    name: str
    lanes: int

    def wanted(self, seen: Seen) -> Series:
        """Replicas that are wanted from now on, a lane each; rounded up and bounded by who asks."""


class ReplicaStages:
    """The lanes' replicas. `load_steps` is a load time in steps, a lane each."""

    def __init__(self, *, load_steps: Counts, first: Counts, most: int, drain_steps: int) -> None:
        lanes = len(load_steps)
        self._places = np.arange(most)
        self._load_steps = load_steps[:, None]
        self._drain_steps = drain_steps
        #: The step since when a place is wanted; those of the beginning were always there.
        self._since = np.zeros((lanes, most), dtype=np.int64)
        self._since[self._places < first[:, None]] = -1_000_000
        self.most = most
        self.wanted = first.copy()
        self.ready = first.copy()
        #: Replica-steps that were paid.
        self.paid = np.zeros(lanes)

    def step(self, now: int, wanted: Series) -> Counts:
        """From now on so many are wanted; how many are ready in this step."""
        asked = np.clip(np.ceil(wanted - 1e-9), 0, self.most).astype(np.int64)
        np.copyto(self._since, now, where=self._places >= asked[:, None])
        ready = ((now - self._since) >= self._load_steps).sum(1)
        left = np.maximum(0, self.ready - np.maximum(asked, ready))
        self.paid += asked + left * self._drain_steps
        self.ready = np.minimum(ready, asked)
        self.wanted = asked
        return self.ready
