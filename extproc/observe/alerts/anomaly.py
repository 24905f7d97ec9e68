"""Learns each tenant's pattern, and says how far the last minutes are out of it.

Owns the patterns and their bounds. Pure: fed with each minute's figures of a tenant, it knows nothing of
where they come from nor what follows. The score is 1 where usage counts as unusual, more beyond.

What is looked at, over five minutes that slide by the minute: the rate of requests, and its rise over the
last hour's (both upwards alone: who stops asking is no danger), the mean lengths of prompts and answers (both
ways), the share of errors (upwards). A figure, as a logarithm, is unusual when all of these hold:

- it is `times` away from the median of the last 26 hours;
- and `spreads` usual deviations (1.4826 × MAD, at least what chance alone makes of so few requests);
- and beyond what the tenant did in its oddest moments of those hours, by a margin (EXTREME): a
  nightly batch is unusual once, bursts that belong to a tenant never;
- or, of the rate, it is `times` above all that was ever seen at that hour of the day on three days or more
  and above half of what is usual over the whole day: a key used at night by whoever found it.

A rate is that of the five minutes without the busiest: one burst of a second is not a change of pattern.
Of the buckets in which something was unusual one is learned from, so that what recurs is known the fourth
time; all of them when it has lasted an hour: then it is the new pattern. Figures: docs/alerts.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, isnan, log, nan, sqrt
from typing import Final

#: Minutes in the window, and in a bucket of what is remembered.
WINDOW: Final = 5
#: Buckets remembered: 26 hours, so that what comes daily is known on the second day.
KEPT: Final = 26 * 60 // WINDOW
#: How many of the oddest buckets may have been accidents: what is called extreme is the next one.
EXTREME: Final = 2
#: Fewer buckets that say something make nothing usual (an hour).
BUCKETS_MIN: Final = 12
#: The margin beyond the extreme, as a logarithm (a factor of 1.5).
MARGIN: Final = log(1.5)
#: The least usual deviation of a logarithm: about a tenth.
SPREAD_MIN: Final = 0.1
#: An error share is unusual from so much more than usual on.
ERRORS_MORE: Final = 0.2
#: Days of an hour before it says anything, and what a new day counts there.
HOUR_DAYS: Final = 3
#: Buckets for which something unusual is held back from what is learned (an hour).
HELD_BACK: Final = 12

FEATURES: Final = ("requests", "input_length", "output_length", "errors", "rise")
RATE, IN, OUT, ERRORS, RISE = range(5)
#: Buckets that a rise is measured from (an hour).
RISE_FROM: Final = 12
#: And how far above the usual rate it must lead.
RISE_TO: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How unusual is unusual; see config/alerts.py."""

    times: float = 3.0
    spreads: float = 5.0
    requests_min: int = 30
    learn_buckets: int = 36


@dataclass(frozen=True, slots=True)
class Usual:
    """Of one feature: the median and deviation of its logarithm, and its oddest ends."""

    median: float
    spread: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Anomaly:
    """The oddest feature: its score (1 is unusual), what it is, and what it usually is."""

    score: float = 0.0
    feature: str = ""
    value: float = 0.0
    usual: float = 0.0

    def text(self) -> str:
        """For people."""
        if not self.feature:
            return ""
        if self.feature == "rise":
            return f"requests {self.value:.3g} times the last hour's, usually {self.usual:.3g}"
        unit = {"requests": " in 5 min", "errors": ""}.get(self.feature, " tokens")
        return f"{self.feature} {self.value:.4g}{unit}, usually {self.usual:.4g}"


QUIET: Final = Anomaly()


class Pattern:
    """One tenant's."""

    __slots__ = (
        "_bucket",
        "_hour_days",
        "_hour_most",
        "_hours",
        "_learned",
        "_minutes",
        "_odd",
        "_rings",
        "_usual",
        "last_minute",
        "seen",
        "verdict",
    )

    def __init__(self) -> None:
        self._rings = tuple(array("f", [nan]) * KEPT for _ in FEATURES)
        #: The last minutes: requests, input tokens, output tokens, errors each.
        self._minutes: list[tuple[float, float, float, float]] = []
        self._usual: tuple[Usual | None, ...] = (None,) * len(FEATURES)
        #: Unusual buckets held back.
        self._odd: list[tuple[float, ...]] = []
        #: By hour of the day: the most of a bucket of it, moving, and on how many days; today's hour so far.
        self._hours = array("f", bytes(4 * 24))
        self._hour_days = bytearray(24)
        self._hour_most = (-1, 0.0)
        self._bucket = 0
        #: Whether anything was learned since the usual was reckoned (a tenth of a millisecond).
        self._learned = False
        self.last_minute = -1
        #: Buckets learned from.
        self.seen = 0
        self.verdict = QUIET

    def minute(
        self, minute: int, row: tuple[float, float, float, float], settings: Settings, *, hour: int
    ) -> Anomaly:
        """Take the figures of a minute (a running number; those left out were idle); the verdict after it.

        `row`: requests, input tokens, output tokens, errors. `hour`: of the day, 0 to 23.
        """
        gap = minute - self.last_minute - 1 if self.last_minute >= 0 else 0
        for missed in range(max(0, gap - KEPT * WINDOW), gap):
            self._take(self.last_minute + 1 + missed, (0.0, 0.0, 0.0, 0.0), settings, -1)
        self._take(minute, row, settings, hour)
        self.last_minute = minute
        return self.verdict

    def _take(
        self, minute: int, row: tuple[float, float, float, float], settings: Settings, hour: int
    ) -> None:
        self._minutes.append(row)
        if len(self._minutes) > WINDOW:
            del self._minutes[0]
        whole = len(self._minutes) == WINDOW
        values = self._values(settings) if whole else None
        if values is not None:
            self.verdict = self._judge(values, settings, hour)
        if minute % WINDOW == WINDOW - 1 and values is not None:
            self._learn(values, hour)

    def _values(self, settings: Settings) -> tuple[float, ...]:
        """The window's features as logarithms, NaN where they say nothing; errors as a share."""
        requests = sum(each[0] for each in self._minutes)
        steady = (requests - max(each[0] for each in self._minutes)) * WINDOW / (WINDOW - 1)
        enough = requests >= settings.requests_min
        lengths = [
            log(sum(each[i] for each in self._minutes) / requests + 1.0) if enough else nan for i in (1, 2)
        ]
        errors = sum(each[3] for each in self._minutes) / requests if enough else nan
        rate = log(steady + 1.0)
        recent = sorted(self._rings[RATE][(self._bucket - 1 - i) % KEPT] for i in range(RISE_FROM))
        before = recent[RISE_FROM // 2]
        # Who was idle begins; that is no rise.
        known = enough and self._bucket >= RISE_FROM and before >= log(settings.requests_min / 2 + 1.0)
        rise = rate - before if known else nan
        return rate, *lengths, errors, rise

    def _judge(self, values: tuple[float, ...], settings: Settings, hour: int) -> Anomaly:
        requests = sum(each[0] for each in self._minutes)
        if self.seen < settings.learn_buckets or requests < settings.requests_min:
            return QUIET
        if self._learned:
            self._learned = False
            self._usual = tuple(_usual(ring, feature) for feature, ring in enumerate(self._rings))
        worst = QUIET
        for feature, value in enumerate(values):
            usual = self._usual[feature]
            if usual is None or isnan(value):
                continue
            if feature == RATE:
                score = max(_away(value, usual, settings), self._of_hour(value, usual, settings, hour))
            elif feature == RISE:
                whole = self._usual[RATE]
                # From a lull back to what is usual is no rise worth telling of.
                if whole is None or values[RATE] < whole.median + log(RISE_TO):
                    continue
                score = _away(value, usual, settings)
            elif feature == ERRORS:
                score = (value - max(usual.median, usual.high)) / ERRORS_MORE
            else:
                score = max(_away(value, usual, settings), _away(-value, _mirrored(usual), settings))
            if score > worst.score:
                worst = Anomaly(
                    score, FEATURES[feature], _shown(feature, value), _shown(feature, usual.median)
                )
        return worst

    def _of_hour(self, value: float, usual: Usual, settings: Settings, hour: int) -> float:
        """How far the rate is above what was ever seen at this hour of the day."""
        if hour < 0 or self._hour_days[hour] < HOUR_DAYS or value < usual.median + log(0.5):
            return 0.0
        most = self._hours[hour]
        return (value - most) / max(log(settings.times), settings.spreads * _chance(most))

    def _learn(self, values: tuple[float, ...], hour: int) -> None:
        if self.verdict.score >= 1.0:
            self._odd.append(values)
            if len(self._odd) < HELD_BACK:
                return
            # It has lasted: this is how the tenant is now.
            for held in self._odd:
                self._remember(held)
        else:
            # One of what was odd: what has come thrice in these hours is the tenant's way too.
            if self._odd:
                self._remember(self._odd[len(self._odd) // 2])
            self._remember(values)
            self._remember_hour(values[RATE], hour)
        self._odd.clear()
        self._learned = True

    def _remember(self, values: tuple[float, ...]) -> None:
        at = self._bucket % KEPT
        for ring, value in zip(self._rings, values, strict=True):
            ring[at] = value
        self._bucket += 1
        self.seen = min(self.seen + 1, KEPT)

    def _remember_hour(self, value: float, hour: int) -> None:
        """The most of this hour today; with the next hour it is taken into the hour's own."""
        if hour < 0:
            return
        now, most = self._hour_most
        if now == hour:
            self._hour_most = (hour, max(most, value))
            return
        if now >= 0:
            days = self._hour_days[now]
            # The most ever seen, which fades by a tenth of its logarithm a day where it is not reached again.
            self._hours[now] = max(most, 0.9 * self._hours[now] + 0.1 * most) if days else most
            self._hour_days[now] = min(days + 1, 255)
        self._hour_most = (hour, value)


class Anomalies:
    """All tenants' patterns; whoever feeds it bounds the tenants, by `forget`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.patterns: dict[str, Pattern] = {}

    def minute(
        self, tenant: str, minute: int, row: tuple[float, float, float, float], *, hour: int
    ) -> Anomaly:
        """Take a minute of a tenant (see Pattern.minute)."""
        pattern = self.patterns.get(tenant)
        if pattern is None:
            pattern = self.patterns[tenant] = Pattern()
        return pattern.minute(minute, row, self.settings, hour=hour)

    def verdict(self, tenant: str) -> Anomaly:
        """What was last said of a tenant."""
        pattern = self.patterns.get(tenant)
        return pattern.verdict if pattern is not None else QUIET

    def forget(self, known: Mapping[str, object]) -> None:
        """Drop the patterns of tenants that are not among these."""
        for tenant in [tenant for tenant in self.patterns if tenant not in known]:
            del self.patterns[tenant]


def _away(value: float, usual: Usual, settings: Settings) -> float:
    """How far a value is above the usual, the largest of the three bounds being 1."""
    needed = max(
        log(settings.times),
        settings.spreads * usual.spread,
        usual.high + MARGIN - usual.median,
    )
    return (value - usual.median) / needed


def _mirrored(usual: Usual) -> Usual:
    return Usual(-usual.median, usual.spread, -usual.high, -usual.low)


def _chance(level: float) -> float:
    """The deviation that chance alone gives the logarithm of a count (1 ÷ √count)."""
    return max(SPREAD_MIN, 1.0 / sqrt(max(1.0, _out(level))))


def _shown(feature: int, value: float) -> float:
    """A feature as people read it."""
    if feature == ERRORS:
        return value
    return exp(value) if feature == RISE else _out(value)


def _out(value: float) -> float:
    return exp(value) - 1.0


def _usual(ring: array[float], feature: int) -> Usual | None:
    """What is usual, of the buckets that say something; of the rate, of those that were not idle."""
    least = 0.5 if feature == RATE else -inf
    known = sorted(value for value in ring if value > least)
    if len(known) < BUCKETS_MIN:
        return None
    median = known[len(known) // 2]
    deviations = sorted(abs(value - median) for value in known)
    spread = max(1.4826 * deviations[len(deviations) // 2], SPREAD_MIN)
    if feature == RATE:
        spread = max(spread, _chance(median))
    return Usual(median, spread, known[EXTREME], known[-1 - EXTREME])
