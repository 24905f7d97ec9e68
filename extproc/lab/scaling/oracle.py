"""The oracle: it knows what comes, and pays the least for a share of requests that attain.

Owns the search. With a price θ on a request that misses, the cheapest schedule is found exactly by dynamic
programming over the number that is ready at each step:

    V(n, t) = n + θ · missed(n, t) + min over m of V(m, t − 1) + load · (n − m)⁺ + drain · (m − n)⁺

A replica that is ready at t was started a load time before and was paid for meanwhile; one that leaves is
paid until it is empty. Prices are tried in one pass; the frontier between them is what the oracle can have
(its lower convex hull: what no θ reaches lies above it). It is a bound for the fast model alone, and for
schedules that end what they start: it never takes a loading replica back, since it never has to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from extproc.lab.scaling.rates import DAY_S, Series
from extproc.lab.scaling.replicas import Counts
from extproc.lab.scaling.service import ServiceCurve
from extproc.lab.scaling.traffic import STEP_S
from extproc.lab.scaling.weeks import DRAIN_S, turns

#: Prices of a missed request, replica-seconds.
PRICES: Final = tuple(0.25 * 1.6**power for power in range(16))


@dataclass(frozen=True, slots=True)
class OraclePoint:
    """One schedule: attainment, replica-hours and changes of direction a day."""

    price: float
    attainment: float
    hours: float
    turns: float


def schedule(
    requests: Series,
    felt: Series,
    curve: ServiceCurve,
    *,
    load_s: float,
    most: int,
    prices: Series,
    step_s: float = STEP_S,
) -> Counts:
    """Ready replicas at each step (rows) for each price (columns)."""
    steps, lanes = len(requests), len(prices)
    counts = np.arange(most + 1)
    up, down = max(1.0, load_s / step_s), DRAIN_S / step_s
    value = np.tile(counts * 1.0, (lanes, 1))
    value[:, 0] = np.inf
    came = np.zeros((steps, lanes, most + 1), dtype=np.int8)
    share = curve.attainment(felt[:, None], counts[None, :].astype(float))
    missed = (requests[:, None] * (1.0 - share) / step_s).astype(np.float64)
    rows = np.arange(lanes)[:, None]
    for step in range(steps):
        # From below (a start each) by a running minimum of V(m) − up·m; from above likewise.
        below = value - up * counts
        least_below = np.minimum.accumulate(below, axis=1)
        from_below = _argmin_running(below, least_below, counts)
        above = (value + down * counts)[:, ::-1]
        least_above = np.minimum.accumulate(above, axis=1)
        from_above = most - _argmin_running(above, least_above, counts)[:, ::-1]
        rising = least_below + up * counts
        falling = least_above[:, ::-1] - down * counts
        rises = rising <= falling
        came[step] = np.where(rises, from_below, from_above)
        value = np.where(rises, rising, falling) + counts + prices[:, None] * missed[step]
        value[:, 0] = np.inf
    ready = np.zeros((steps, lanes), dtype=np.int64)
    here = np.argmin(value, axis=1)
    for step in range(steps - 1, -1, -1):
        ready[step] = here
        here = came[step][rows[:, 0], here]
    return ready


def _argmin_running(values: Series, least: Series, places: Counts) -> Counts:
    """Where the running minimum of each row was taken, the latest where it is tied."""
    return np.maximum.accumulate(np.where(values <= least, places, 0), axis=1)


def frontier(
    requests: Series, felt: Series, curve: ServiceCurve, *, load_s: float, most: int
) -> list[OraclePoint]:
    """The oracle's schedules over `PRICES`, by ascending attainment."""
    prices = np.array(PRICES)
    ready = schedule(requests, felt, curve, load_s=load_s, most=most, prices=prices)
    up, down = max(STEP_S, load_s), DRAIN_S
    days = len(requests) * STEP_S / DAY_S
    points = []
    for lane, price in enumerate(PRICES):
        own = ready[:, lane]
        good = requests * curve.attainment(felt, own.astype(float))
        change = np.diff(own)
        seconds = own.sum() * STEP_S + up * change[change > 0].sum() - down * change[change < 0].sum()
        share = float(good.sum() / max(1.0, requests.sum()))
        points.append(OraclePoint(price, share, float(seconds) / 3600, turns(own) / days))
    return sorted(points, key=lambda point: (point.attainment, point.hours))


def at_attainment(points: list[OraclePoint], share: float) -> tuple[float, float]:
    """Replica-hours and turns a day for a share, straight between the neighbouring schedules; the dearest's
    where nobody reaches it."""
    shares = [point.attainment for point in points]
    hours = float(np.interp(share, shares, [point.hours for point in points]))
    return hours, float(np.interp(share, shares, [point.turns for point in points]))
