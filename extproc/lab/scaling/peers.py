"""Other people's scalers as functions of what they would see, by their public documentation.

Owns their formulas; a row of settings is a lane. Each is granted a metric that tells load truly, and the
settings are played side by side, so that none is judged by a bad target.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from extproc.lab.scaling.rates import Series
from extproc.lab.scaling.replicas import Seen
from extproc.lab.scaling.service import ServiceCurve
from extproc.lab.scaling.traffic import STEP_S


def _steps(seconds: float) -> int:
    return max(1, round(seconds / STEP_S))


class _Recent:
    """The last values, a lane a column."""

    def __init__(self, steps: int, lanes: int) -> None:
        self.values = np.full((steps, lanes), np.nan)
        self._at = 0

    def put(self, value: Series) -> None:
        self.values[self._at % len(self.values)] = value
        self._at += 1

    def mean(self) -> Series:
        return np.asarray(np.nanmean(self.values, axis=0))

    def max(self) -> Series:
        return np.asarray(np.nanmax(self.values, axis=0))


class FixedReplicas:
    """As many as given, always; whoever sizes for the peak knows the peak."""

    name = "fixed at peak"

    def __init__(self, replicas: Series) -> None:
        self.lanes = len(replicas)
        self._replicas = replicas

    def wanted(self, seen: Seen) -> Series:  # noqa: ARG002 (it looks at nothing)
        """The same."""
        return self._replicas


class HorizontalPodAutoscaler:
    """Kubernetes' HPA (autoscaling/v2) on utilisation: every 15 s desired = ceil(replicas · value / target).

    The value is the mean of pods that are ready; missing ones count as 0 on the way up and change nothing
    inside the tolerance of .1. Down: the highest wish of the last 300 s. Up: at most twice as many or 4 more
    in 15 s. (kubernetes.io, "Horizontal Pod Autoscaling", algorithm details and default behaviour.)
    """

    name = "HPA"
    SYNC_S: Final = 15.0
    TOLERANCE: Final = 0.1
    DOWN_S: Final = 300.0

    def __init__(self, target: Series) -> None:
        self.lanes = len(target)
        self._target = target
        self._wishes = _Recent(_steps(self.DOWN_S) // _steps(self.SYNC_S), self.lanes)
        self._util = _Recent(_steps(self.SYNC_S), self.lanes)
        self._wanted: Series | None = None

    def wanted(self, seen: Seen) -> Series:
        """As its last sync said."""
        self._util.put(seen.utilization)
        if self._wanted is None:
            self._wanted = seen.wanted.astype(float)
        if seen.step % _steps(self.SYNC_S) or not seen.step:
            return self._wanted
        pods = self._wanted
        value = self._util.mean()
        ready = np.maximum(1, seen.ready)
        ratio = value / self._target
        # Pods that are not ready yet: as if they used nothing, where that is more than is used.
        with_unready = value * ready / np.maximum(1, pods) / self._target
        up = ratio > 1.0
        used = np.where(up & (pods > ready), with_unready, ratio)
        inside = (np.abs(used - 1.0) <= self.TOLERANCE) | (up & (used < 1.0))
        count = np.where(up, np.maximum(pods, ready), ready)
        wish = np.where(inside, pods, np.ceil(np.round(used * count, 6)))
        self._wishes.put(wish)
        most = np.maximum(pods * 2, pods + 4)
        stable = np.minimum(pods, self._wishes.max())
        self._wanted = np.maximum(
            1.0, np.where(wish > pods, np.minimum(wish, most), np.maximum(wish, stable))
        )
        return self._wanted


class KnativePodAutoscaler:
    """Knative's KPA on concurrency: wish = in flight over 60 s by the target; over 6 s where it panics.

    It panics where the wish of the short window is twice what is ready, until that was not so for 60 s, and
    never goes down meanwhile. Down by half at a time at most. (knative.dev, "Additional autoscaling
    configuration for KPA": stable-window, panic-window-percentage 10, panic-threshold-percentage 200,
    max-scale-down-rate 2, max-scale-up-rate 1000.) The panic window is one step of 5 s here. The target is
    the concurrency of a replica at `share` of its full load; its own default, 70 of 100, is beyond these.
    """

    name = "Knative"
    STABLE_S: Final = 60.0
    PANIC: Final = 2.0

    def __init__(self, share: Series, curve: ServiceCurve) -> None:
        self.lanes = len(share)
        self._target = np.array([curve.in_flight(float(each) * curve.full) for each in share])
        self._stable = _Recent(_steps(self.STABLE_S), self.lanes)
        self._panicked = np.full(self.lanes, -1_000_000)
        self._highest = np.zeros(self.lanes)

    def wanted(self, seen: Seen) -> Series:
        """At each step (its own tick is 2 s)."""
        if not seen.step:
            return seen.wanted.astype(float)
        self._stable.put(seen.concurrency)
        ready = np.maximum(1, seen.ready)
        stable = np.ceil(np.round(self._stable.mean() / self._target, 6))
        panic = np.ceil(np.round(seen.concurrency / self._target, 6))
        over = panic / ready >= self.PANIC
        self._panicked = np.where(over, seen.step, self._panicked)
        panics = seen.step - self._panicked < _steps(self.STABLE_S)
        self._highest = np.where(panics, np.maximum(self._highest, np.maximum(panic, seen.wanted)), 0.0)
        wish = np.where(panics, self._highest, stable)
        return np.maximum(1.0, np.maximum(wish, np.floor(ready / 2)))


class IntervalPlanner:
    """A planner of one interval: what the next one's mean load will be, by what one replica bears.

    As NVIDIA Dynamo's planner in its throughput mode does it (docs: planner design; adjustment interval
    180 s): predicted requests and lengths, by the profiled throughput at the targets. `lags` 0 predicts the
    last value ("constant"), else an autoregression of the intervals' differences, by least squares over the
    last day: ARIMA(lags, 1, 0). `share` of its full load is what a replica is planned to bear.
    """

    INTERVAL_S: Final = 180.0
    KEPT: Final = 480

    def __init__(self, share: Series, *, lags: int) -> None:
        self.lanes = len(share)
        self.name = f"interval, ARIMA({lags},1,0)" if lags else "interval, last value"
        self._share, self._lags = share, lags
        self._sum = np.zeros(self.lanes)
        self._means: list[Series] = []
        self._wanted: Series | None = None

    def wanted(self, seen: Seen) -> Series:
        """As its last interval said."""
        if self._wanted is None:
            self._wanted = seen.wanted.astype(float)
        if not seen.step:
            return self._wanted
        self._sum = self._sum + seen.load
        every = _steps(self.INTERVAL_S)
        if seen.step % every:
            return self._wanted
        self._means.append(self._sum / every)
        self._means = self._means[-self.KEPT :]
        self._sum = np.zeros(self.lanes)
        self._wanted = np.maximum(1.0, np.ceil(np.round(self._next() / self._share, 6)))
        return self._wanted

    def _next(self) -> Series:
        last = self._means[-1]
        lags = self._lags
        if not lags or len(self._means) < 4 * lags:
            return last
        change = np.diff(np.array(self._means), axis=0)
        rows = len(change) - lags
        past = np.stack([change[lags - 1 - lag : lags - 1 - lag + rows] for lag in range(lags)], axis=2)
        # Lanes in front: (lanes, lags, lags) normal equations, with a little to keep them solvable.
        past = past.transpose(1, 0, 2)
        ahead = change[lags:].T[:, :, None]
        normal = past.transpose(0, 2, 1) @ past + 1e-6 * np.eye(lags)
        weights = np.linalg.solve(normal, past.transpose(0, 2, 1) @ ahead)[:, :, 0]
        newest = change[-1 : -lags - 1 : -1].T
        return np.asarray(np.maximum(0.0, last + (weights * newest).sum(1)))
