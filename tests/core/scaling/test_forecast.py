"""Forecasts: what they follow, how wide they are, and what they make of gaps, noise and nonsense."""

from __future__ import annotations

from math import cos, isfinite, nan, pi
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.scaling.forecast import HIGH, METHODS, Forecaster
from extproc.core.scaling.seasons import DAY_S, Seasons

BUCKET_S = 10.0


def poisson(rng: Random, mean: float) -> float:
    """A count about a mean, as Poisson's for large ones."""
    return max(0.0, round(rng.gauss(mean, mean**0.5)))


def fed(rates: list[float], *, ahead_s: float = 60.0, method: str = "auto", begin: int = 0) -> Forecaster:
    """A forecaster that has seen Poisson counts of these rates, a bucket each."""
    rng, known = Random(3), Forecaster(BUCKET_S, method=method)
    known.look(ahead_s)
    known.replay((begin + i, poisson(rng, rate * BUCKET_S)) for i, rate in enumerate(rates))
    return known


def test_a_constant_rate_is_forecast_with_a_narrow_band() -> None:
    """An hour of a constant rate: its median is the rate, its ends are what counting leaves open."""
    band = fed([50.0] * 360).band(60.0)
    assert band.median == pytest.approx(50.0, rel=0.05)
    assert 50.0 < band.high < 58.0
    assert 43.0 < band.low < 50.0


def test_a_step_is_followed_within_half_a_minute() -> None:
    """The level does not drag the past along: three buckets after a jump it is at the new rate."""
    known = fed([20.0] * 360 + [60.0] * 3)
    assert known.rate == pytest.approx(60.0, rel=0.1)


def test_where_replicas_are_ready_soon_a_rise_is_followed_sooner() -> None:
    """A slow rise: the level of a horizon of 20 s is of the last minute, that of 85 s of the last two."""
    rising = [10.0 + 0.02 * i * BUCKET_S for i in range(60)]
    soon, late = Forecaster(BUCKET_S), Forecaster(BUCKET_S)
    for known, ahead_s in ((soon, 20.0), (late, 85.0)):
        known.look(ahead_s)
        known.replay((i, rate * BUCKET_S) for i, rate in enumerate(rising))
    now = rising[-1] + 0.01 * BUCKET_S
    assert now - soon.rate == pytest.approx(0.02 * 30.0)
    assert now - late.rate == pytest.approx(0.02 * 60.0)


def test_noise_alone_is_averaged() -> None:
    """While counts agree the level is their mean over minutes, steadier than any one of them."""
    rng, known = Random(1), Forecaster(BUCKET_S)
    levels = []
    for i in range(720):
        known.saw(i, poisson(rng, 100.0))
        if i > 360:
            levels.append(known.rate)
    spread = (sum((each - 10.0) ** 2 for each in levels) / len(levels)) ** 0.5
    assert spread < 0.4  # one bucket alone has 1.0


def test_bursts_that_are_usual_are_not_followed_and_a_first_step_is() -> None:
    """A pool that has a burst each few minutes keeps its level through the next one."""
    rng, known = Random(4), Forecaster(BUCKET_S)
    for i in range(721):
        burst = 6.0 if i % 30 == 0 else 1.0
        known.saw(i, poisson(rng, 200.0 * burst))
    # The last bucket was a burst; the level is the mean of two minutes.
    assert known.rate < 45.0


def test_the_band_holds_what_comes_as_often_as_it_says() -> None:
    """On a noisy day as much of what came as HIGH says was at most `high`; made up, one seed."""
    rng, known, inside, judged = Random(7), Forecaster(BUCKET_S), 0, 0
    rate, waiting = 30.0, []
    for i in range(8_640):
        rate = max(3.0, rate * (1.0 + rng.gauss(0.0, 0.02)) + 0.01 * (30.0 - rate))
        known.saw(i, poisson(rng, rate * BUCKET_S))
        if i > 1_000 and i % 12 == 0:
            waiting.append((i + 6, known.band(60.0).high))
        while waiting and waiting[0][0] <= i:
            inside += rate <= waiting.pop(0)[1]
            judged += 1
    assert HIGH - 0.06 <= inside / judged <= 1.0


def test_a_daily_season_is_learnt_and_chosen() -> None:
    """Where every day is alike, the season is forecast better than the last value, and `auto` takes it."""

    def rate(i: int) -> float:
        return 30.0 + 25.0 * cos(2 * pi * i * BUCKET_S / (DAY_S / 8))

    known = fed([rate(i) for i in range(8_640 * 2 + 300)], ahead_s=900.0)
    assert known.losses["seasonal"] < 0.8 * known.losses["last"]
    assert known.chosen in ("seasonal", "mean")


def test_a_first_rise_is_seen_by_ets_before_any_season_is_known() -> None:
    """A ramp of an hour: the damped trend is ahead of the last value."""
    rates = [20.0] * 180 + [20.0 * 1.01**i for i in range(180)]
    ets, last = fed(rates, method="ets").band(300.0), fed(rates, method="last").band(300.0)
    assert ets.method == "ets"
    trended = dict(zip(METHODS, fed(rates)._each(300.0), strict=True))["ets"]
    assert trended is not None
    assert trended > 1.05 * last.median


def test_before_anything_was_seen_nothing_is_forecast() -> None:
    """No history: a band of zeros, not an error."""
    band = Forecaster(BUCKET_S).band(60.0)
    assert (band.low, band.median, band.high) == (0.0, 0.0, 0.0)


def test_a_day_of_zeros_is_forecast_as_nearly_nothing() -> None:
    """Nobody came for a day: the forecast is none, and is finite."""
    band = fed([0.0] * 8_640).band(60.0)
    assert band.median == 0.0
    assert isfinite(band.high)


@pytest.mark.parametrize("bad", [nan, float("inf"), -1.0])
def test_what_is_no_count_changes_nothing(bad: float) -> None:
    """NaN, infinity and negative counts are left out, as a gap is."""
    known = fed([50.0] * 360)
    before = known.band(60.0)
    known.saw(360, bad)
    assert known.band(60.0) == before


def test_a_bucket_is_counted_once() -> None:
    """A bucket told again, or one of the past, is left out."""
    known = fed([50.0] * 360)
    before = known.rate
    known.saw(359, 5_000.0)
    known.saw(3, 5_000.0)
    assert known.rate == before


def test_after_a_long_gap_only_what_comes_now_counts() -> None:
    """An hour that nobody counted: the level before it is no level of now."""
    known = fed([50.0] * 360)
    known.saw(360 + 360, 30.0)
    assert known.rate == pytest.approx(3.0)
    assert known.band(60.0).median < 10.0


@given(st.lists(st.tuples(st.integers(0, 5_000), st.floats()), max_size=60), st.floats(0.1, 7_200.0))
def test_a_band_is_ordered_and_finite_whatever_comes(counts: list[tuple[int, float]], ahead_s: float) -> None:
    """Any counts at any times: 0 <= low <= median <= high, all finite."""
    known = Forecaster(BUCKET_S)
    for bucket, count in counts:
        known.saw(bucket, min(count, 1e9) if count == count else count)
    band = known.band(ahead_s)
    assert 0.0 <= band.low <= band.median <= band.high
    assert isfinite(band.high)


def test_seasons_keep_their_days_and_no_more() -> None:
    """Means are kept for the days asked; gaps are gaps, and a jump of the clock by years begins anew."""
    seasons = Seasons(60.0, days=1)
    for i in range(4_000):
        seasons.put(i, 1.0)
    assert len(seasons) <= 1_440 + 1_440
    seasons.put(4_100, 2.0)
    first, rates = seasons.kept()
    assert rates[-1] == 2.0
    assert rates[-2] != rates[-2]
    seasons.put(first + 10_000_000, 3.0)
    assert seasons.kept() == (first + 10_000_000, [3.0])
    seasons.put(5, 9.0)
    assert len(seasons) == 1
