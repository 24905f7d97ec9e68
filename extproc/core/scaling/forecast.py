"""How many requests a second will come in a while: four ways to say it, each judged by the pool's own past.

Owns the forecasts and their intervals. Pure Python and incremental: a count in takes microseconds, a band out
well below a millisecond, so that it runs on the event loop.

- `last`: what came of late goes on. "Of late" reaches back while the counts agree (an adaptive window, after
  Bifet & Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007): noise is averaged,
  and a step is followed at once.
- `seasonal`: the same, times what the same hour of yesterday (and of last week, if that is known) did next.
- `ets`: level and damped trend of the logarithm (Gardner & McKenzie 1985; Hyndman's ETS(A,Ad,N)). Its three
  parameters are fitted by statsmodels in the worker process where the extra `forecast` is installed.
- `mean`: the geometric mean of those that are known.

`auto` takes the one whose pinball loss at the horizon was least of late (rolling origin: each forecast is
kept until what it was of has come). A band is the forecast times quantiles of its own errors at that horizon,
so it is as wide as the way was wrong; until there are ERRORS_MIN a prior spread stands in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from math import exp, isfinite, log, sqrt
from typing import Final, NamedTuple

from extproc.core.scaling.seasons import Seasons
from extproc.core.scaling.values import Band
from extproc.core.series import quantile

METHODS: Final = ("last", "seasonal", "ets", "mean")
#: The shares at which a band's ends lie: `high` is what the planner provides for. A higher one buys
#: attainment dearer than the record of ends does (.9 for .6: 8 % more hours for the same, simulated).
LOW: Final = 0.1
HIGH: Final = 0.65
#: Errors that are kept of each method, and how many there must be before they count alone.
ERRORS_MAX: Final = 360
ERRORS_MIN: Final = 40
#: Forecasts that are judged in a time as long as the horizon.
ORIGINS: Final = 4
#: Before any error was seen, a logarithm: a fifth more or less.
PRIOR_SPREAD: Final = 0.2
PRIOR_DEVIATIONS: Final = 1.0
#: `auto` changes to what was better by this share.
BETTER: Final = 0.03
#: The level's window: so long at least and at most, and ended where older counts differ by so many
#: deviations, and by more than bursts did of late (half as much after BURST_S). A burst is over before a
#: replica is there: following each costs 5 % more hours for the same attainment (ServeGen, simulated).
LEVEL_S: Final = 120.0
LEVEL_MIN_S: Final = 30.0
#: Where replicas are ready soon a burst is worth following: the window is no longer than so many horizons,
#: and not below this. A minute for a load time of 5 s has 1 % fewer hours for the same attainment.
LEVEL_HORIZONS: Final = 3.0
LEVEL_SOON_S: Final = 60.0
LEVEL_DEVIATIONS: Final = 6.0
BURST_S: Final = 3_600.0
#: What is forecast is the mean of so long: what peaks within it cost is in the record of ends.
MEANT_S: Final = 60.0
#: The grain of `ets` and of what is kept for seasons, in seconds.
GRAIN_S: Final = 60.0
#: No forecast is further than this from what came of late, a factor.
RATIO_MAX: Final = 3.0
#: A gap that is longer ends what a level and a trend were of.
GAP_S: Final = 900.0


class Damped(NamedTuple):
    """Parameters of `ets` by grain: how fast level and trend follow, and how fast a trend dies (0..1)."""

    level: float = 0.5
    trend: float = 0.05
    damped: float = 0.9


class _Pending(NamedTuple):
    """Forecasts that wait for what they were of."""

    due: int
    made: tuple[float | None, ...]


class Forecaster:
    """One pool's arrivals. `bucket_s` is the length of the intervals that are counted."""

    def __init__(self, bucket_s: float, *, method: str = "auto", seasons: Seasons | None = None) -> None:
        self.bucket_s, self.method = bucket_s, method
        self.seasons = seasons or Seasons(GRAIN_S)
        self.damped = Damped()
        self._recent: deque[tuple[int, float]] = deque(maxlen=max(8, int(1800.0 / bucket_s)))
        self._pending: deque[_Pending] = deque()
        self._ahead = 1
        self._level_s = LEVEL_S
        self._next = 0
        self._errors: dict[str, deque[float]] = {name: deque(maxlen=ERRORS_MAX) for name in METHODS}
        self._sorted: dict[str, list[float]] = {name: [] for name in METHODS}
        self._losses: dict[str, float] = {}
        self._chosen = "last"
        self._level: float | None = None
        self._trend = 0.0
        self._grain: list[float] = []
        #: How far counts were from the level, over its root: of late (by bucket), and the most before that.
        self._jumps: deque[tuple[int, float]] = deque()
        self._burst = 0.0
        #: Variance over mean of the counts about their level; 1 is Poisson.
        self.dispersion = 1.0

    @property
    def chosen(self) -> str:
        """The method that bands are made by."""
        return self._chosen if self.method == "auto" else self.method

    @property
    def losses(self) -> dict[str, float]:
        """Each method's pinball loss of late, as a share of what came; those that have been judged."""
        return dict(self._losses)

    def saw(self, bucket: int, count: float) -> None:
        """`count` requests came in a bucket (numbered by time); buckets that are left out are gaps.

        What is no number, negative, or of a bucket that was told already is left out.
        """
        recent = self._recent
        if not isfinite(count) or count < 0.0 or (recent and bucket <= recent[-1][0]):
            return
        if recent and (bucket - recent[-1][0]) * self.bucket_s > GAP_S:
            self.forget()
        self._spread(count)
        self._burst_of(bucket, count)
        recent.append((bucket, count))
        rate = count / self.bucket_s
        self.seasons.saw(bucket * self.bucket_s, self.bucket_s, rate)
        self._grain.append(rate)
        if len(self._grain) * self.bucket_s >= GRAIN_S:
            self._smooth(sum(self._grain) / len(self._grain))
            self._grain.clear()
        self._judge(bucket)
        if bucket >= self._next:
            # Neighbours' errors are nearly the same: a few a horizon say as much.
            self._next = bucket + max(1, self._ahead // ORIGINS)
            self._pending.append(
                _Pending(bucket + self._ahead, tuple(self._each(self._ahead * self.bucket_s)))
            )

    def replay(self, counts: Iterable[tuple[int, float]]) -> None:
        """What was kept of the past, in order."""
        for bucket, count in counts:
            self.saw(bucket, count)

    def look(self, ahead_s: float) -> None:
        """How far ahead the plan looks from now on; errors at another horizon say little, and are forgotten
        where it moves by more than a quarter."""
        ahead = max(1, round(ahead_s / self.bucket_s))
        self._level_s = min(LEVEL_S, max(LEVEL_SOON_S, LEVEL_HORIZONS * ahead_s))
        if abs(ahead - self._ahead) > max(1, self._ahead // 4):
            self._ahead = ahead
            self._pending.clear()
            for name in METHODS:
                self._errors[name].clear()
                self._sorted[name].clear()
            self._losses.clear()

    def band(self, ahead_s: float) -> Band:
        """The forecast of the arrivals a second in `ahead_s`; nothing but zeros before anything was seen."""
        self.look(ahead_s)
        name = self.chosen
        made = dict(zip(METHODS, self._each(ahead_s), strict=True))
        median = made.get(name)
        if median is None:
            name, median = "last", made["last"] or 0.0
        low, middle, high = self._quantiles(name, median)
        return Band(
            ahead_s=ahead_s, low=median * low, median=median * middle, high=median * high, method=name
        )

    @property
    def rate(self) -> float:
        """Arrivals a second of late; 0 before any."""
        return self._of_late()[0]

    def _each(self, ahead_s: float) -> list[float | None]:
        """Every method's forecast, in the order of METHODS."""
        last, _ = self._of_late()
        if not self._recent:
            return [0.0, None, None, None]
        now_s = (self._recent[-1][0] + 1) * self.bucket_s
        ratio = self.seasons.ratio(now_s, ahead_s)
        seasonal = None if ratio is None else last * _bounded(ratio)
        ets = None
        if self._level is not None and last > 0.0:
            steps = ahead_s / GRAIN_S
            phi = self.damped.damped
            reach = phi * (1.0 - phi**steps) / (1.0 - phi) if phi < 1.0 else steps
            # From the level of late, which is newer than the grain's.
            ets = last * _bounded(exp(max(-2.0, min(2.0, self._trend * reach))))
        known = [log(each) for each in (last, seasonal, ets) if each is not None and each > 0.0]
        mean = exp(sum(known) / len(known)) if len(known) > 1 else None
        return [last, seasonal, ets, mean]

    def _of_late(self) -> tuple[float, float]:
        """(arrivals a second of late, seconds that they are the mean of)."""
        recent = self._recent
        total, many, before = 0.0, 0, None
        for bucket, count in reversed(recent):
            if before is not None and before - bucket > 1:
                break
            if many * self.bucket_s >= LEVEL_MIN_S:
                mean = total / many
                deviation = sqrt(max(self.dispersion, 1.0) * max(mean, 1.0) * (1.0 + 1.0 / many))
                far = max(LEVEL_DEVIATIONS * deviation, self._burst * sqrt(max(mean, 1.0)))
                if abs(count - mean) > far or many * self.bucket_s >= self._level_s:
                    break
            total += count
            many += 1
            before = bucket
        return (total / (many * self.bucket_s) if many else 0.0), many * self.bucket_s

    def _spread(self, count: float) -> None:
        """How a count lies about its neighbours' level."""
        recent = self._recent
        if len(recent) < 2:
            return
        # The second difference knows no trend; its variance is six times a count's.
        (_, one), (_, two) = recent[-2], recent[-1]
        mean = (one + two + count) / 3.0
        if mean > 0.0:
            found = (count - 2.0 * two + one) ** 2 / 6.0 / mean
            self.dispersion += 0.005 * (min(found, 20.0) - self.dispersion)

    def _burst_of(self, bucket: int, count: float) -> None:
        """How far a count is from the level. It is a burst's once it is older than the level's window: a step
        must not hide itself."""
        rate, over_s = self._of_late()
        if over_s < LEVEL_MIN_S:
            return
        level = rate * self.bucket_s
        self._jumps.append((bucket, abs(count - level) / sqrt(max(level, 1.0))))
        self._burst *= 0.5 ** (self.bucket_s / BURST_S)
        while self._jumps and (bucket - self._jumps[0][0]) * self.bucket_s > LEVEL_S:
            self._burst = max(self._burst, self._jumps.popleft()[1])

    def _smooth(self, rate: float) -> None:
        """Level and trend of the logarithm, a grain later."""
        at = log(max(rate, 0.1 / GRAIN_S))
        before = self._level
        if before is None:
            self._level, self._trend = at, 0.0
            return
        alpha, beta, phi = self.damped
        expected = before + phi * self._trend
        self._level = expected + alpha * (at - expected)
        self._trend = phi * self._trend + alpha * beta * (at - expected)

    def _judge(self, bucket: int) -> None:
        """Forecasts whose time has come meet what came."""
        pending = self._pending
        while pending and pending[0].due <= bucket:
            due, made = pending.popleft()
            if due != bucket:
                continue
            actual = self._meant()
            floor = 1.0 / MEANT_S
            for name, forecast in zip(METHODS, made, strict=True):
                if forecast is not None:
                    self._erred(name, log((actual + floor) / (forecast + floor)), actual)

    def _meant(self) -> float:
        """What came in the mean of MEANT_S."""
        many = max(1, round(MEANT_S / self.bucket_s))
        taken = [count for _, count in list(self._recent)[-many:]]
        return sum(taken) / (len(taken) * self.bucket_s)

    def _erred(self, name: str, error: float, actual: float) -> None:
        errors, ordered = self._errors[name], self._sorted[name]
        if len(ordered) >= ERRORS_MIN // 4:
            # As it would have been used: with its own quantile until then.
            ends = (quantile(ordered, 0.5), quantile(ordered, HIGH))
            loss = sum(
                max(share * (error - end), (share - 1.0) * (error - end))
                for share, end in zip((0.5, HIGH), ends, strict=True)
            )
            before = self._losses.get(name)
            # About the last hundred count.
            self._losses[name] = loss if before is None else before + 0.01 * (loss - before)
        if len(errors) == ERRORS_MAX:
            del ordered[bisect_left(ordered, errors[0])]
        errors.append(error)
        ordered.insert(bisect_left(ordered, error), error)
        if self._losses and actual >= 0.0:
            best = min(self._losses, key=self._losses.__getitem__)
            if self._losses[best] < (1.0 - BETTER) * self._losses.get(self._chosen, float("inf")):
                self._chosen = best

    def _quantiles(self, name: str, median: float) -> tuple[float, float, float]:
        """Factors about a forecast: its errors' quantiles, with a prior while they are few."""
        ordered = self._sorted[name]
        # What a rate's own noise is in the mean of MEANT_S.
        noise = sqrt(max(self.dispersion, 1.0) / max(median * MEANT_S, 1.0))
        spread = PRIOR_DEVIATIONS * min(1.0, sqrt(PRIOR_SPREAD**2 + noise**2))
        if not ordered:
            return exp(-spread), 1.0, exp(spread)
        trust = min(1.0, len(ordered) / ERRORS_MIN)
        low, middle, high = (quantile(ordered, share) for share in (LOW, 0.5, HIGH))
        low, high = trust * low - (1.0 - trust) * spread, trust * high + (1.0 - trust) * spread
        middle = max(min(trust * middle, high), low)
        return exp(low), exp(middle), exp(high)

    def forget(self) -> None:
        """Nothing of late is known (a long gap, a clock that was set); seasons and errors stay."""
        self._recent.clear()
        self._pending.clear()
        self._grain.clear()
        self._level, self._trend = None, 0.0
        self._next = 0


def _bounded(ratio: float) -> float:
    return min(max(ratio, 1.0 / RATIO_MAX), RATIO_MAX)
