"""What is out of a tenant's pattern, and what is not."""

from __future__ import annotations

import sys
from math import isfinite
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from extproc.observe.alerts.anomaly import HELD_BACK, KEPT, QUIET, Anomalies, Anomaly, Pattern, Settings

Row = tuple[float, float, float, float]
DAY = 24 * 60


def usual(rng: Random, *, requests: float = 40.0, prompt: float = 500.0, errors: float = 0.0) -> Row:
    """A minute of a steady tenant."""
    count = max(0.0, round(rng.gauss(requests, requests**0.5)))
    return count, count * prompt * rng.uniform(0.9, 1.1), count * 200 * rng.uniform(0.9, 1.1), count * errors


def run(
    pattern: Pattern, rows: list[Row], *, begin: int = 0, settings: Settings | None = None
) -> list[Anomaly]:
    """Minutes in order; the verdict after each."""
    given_settings = settings or Settings()
    return [
        pattern.minute(begin + i, row, given_settings, hour=(begin + i) // 60 % 24)
        for i, row in enumerate(rows)
    ]


def steady(minutes: int, *, seed: int = 1, requests: float = 40.0) -> tuple[Pattern, Random]:
    """A pattern of a tenant that has been steady for so long."""
    pattern, rng = Pattern(), Random(seed)
    verdicts = run(pattern, [usual(rng, requests=requests) for _ in range(minutes)])
    assert max(each.score for each in verdicts) < 1.0
    return pattern, rng


def test_five_times_the_rate_is_seen_within_minutes_and_named() -> None:
    """And is over when it is."""
    pattern, rng = steady(DAY)
    rows = [usual(rng, requests=200.0) for _ in range(10)]
    verdicts = run(pattern, rows, begin=DAY)
    seen = [i for i, each in enumerate(verdicts) if each.score >= 1.0]
    assert seen
    assert seen[0] <= 5
    assert verdicts[9].feature in ("requests", "rise")
    assert run(pattern, [usual(rng) for _ in range(10)], begin=DAY + 10)[-1].score < 1.0


def test_prompts_ten_times_as_long_are_seen() -> None:
    """By the mean length, at an ordinary rate."""
    pattern, rng = steady(DAY)
    verdicts = run(pattern, [usual(rng, prompt=5_000.0) for _ in range(8)], begin=DAY)
    assert verdicts[-1].score >= 1.0
    assert verdicts[-1].feature == "input_length"
    assert 450 < verdicts[-1].usual < 550
    assert verdicts[-1].text().startswith("input_length 5")


def test_errors_are_seen() -> None:
    """Half of the answers, where there were none."""
    pattern, rng = steady(DAY)
    verdicts = run(pattern, [usual(rng, errors=0.5) for _ in range(8)], begin=DAY)
    assert (verdicts[-1].score >= 1.0, verdicts[-1].feature) == (True, "errors")


def test_a_key_used_at_night_is_seen_once_the_days_are_known() -> None:
    """A tenant that works by day, four days long; on the fifth its key works at three in the morning."""
    pattern, rng, idle = Pattern(), Random(3), (0.0, 0.0, 0.0, 0.0)
    for day in range(4):
        day_long = [usual(rng) if 8 * 60 <= minute < 18 * 60 else idle for minute in range(DAY)]
        verdicts = run(pattern, day_long, begin=day * DAY)
        assert max(each.score for each in verdicts) < 1.0
    night = [idle] * 180 + [usual(rng) for _ in range(10)]
    assert run(pattern, night, begin=4 * DAY)[-1].score >= 1.0


def test_one_burst_of_a_minute_is_no_change_of_pattern() -> None:
    """However large."""
    pattern, rng = steady(DAY)
    rows = [usual(rng), (5_000.0, 2_500_000.0, 1_000_000.0, 0.0), *[usual(rng) for _ in range(8)]]
    verdicts = run(pattern, rows, begin=DAY)
    assert all(each.score < 1.0 or each.feature not in ("requests", "rise") for each in verdicts)


def test_what_lasts_becomes_the_pattern() -> None:
    """Unusual for its first hour and a bit; then it is how the tenant is."""
    pattern, rng = steady(DAY)
    verdicts = run(pattern, [usual(rng, requests=400.0) for _ in range(180)], begin=DAY)
    odd = [i for i, each in enumerate(verdicts) if each.score >= 1.0]
    assert odd[0] <= 5
    assert 55 <= odd[-1] <= 5 * (HELD_BACK + 2)


def test_nothing_is_said_of_who_is_new_or_asks_little() -> None:
    """Until it was watched for a while, and below requests_min."""
    rng = Random(5)
    new = run(Pattern(), [usual(rng, requests=10.0 + 40 * (i > 20)) for i in range(60)])
    assert new == [QUIET] * 60
    pattern, rng = steady(DAY, requests=1.0)
    assert run(pattern, [usual(rng, requests=4.0) for _ in range(10)], begin=DAY)[-1].score < 1.0


def test_idle_time_need_not_be_told() -> None:
    """Minutes left out count as idle, and a gap of weeks costs no more than the memory is long."""
    told, left_out = Pattern(), Pattern()
    rng = Random(7)
    rows = [usual(rng) if i % 50 < 20 else (0.0, 0.0, 0.0, 0.0) for i in range(600)]
    for i, row in enumerate(rows):
        verdict = told.minute(i, row, Settings(), hour=i // 60)
        if row[0]:
            assert left_out.minute(i, row, Settings(), hour=i // 60).score == verdict.score
    after = left_out.minute(10**7, usual(rng), Settings(), hour=0)
    assert after.score < 1.0
    assert left_out.seen <= KEPT


@given(
    rows=st.lists(
        st.tuples(*[st.floats(0.0, 1e9) for _ in range(3)], st.floats(0.0, 1.0)), min_size=1, max_size=60
    ),
    seed=st.integers(0, 100),
)
def test_any_minute_is_taken(rows: list[Row], seed: int) -> None:
    """Scores are finite, whatever comes."""
    pattern, _ = steady(5 * 60, seed=seed % 3)
    for verdict in run(pattern, rows, begin=5 * 60, settings=Settings(learn_buckets=1)):
        assert isfinite(verdict.score)
        assert verdict.score >= 0.0
        assert isinstance(verdict.text(), str)


def test_who_is_gone_is_forgotten_and_a_pattern_is_small() -> None:
    """About 8 kB of a tenant."""
    anomalies = Anomalies(Settings())
    for tenant in ("a", "b"):
        anomalies.minute(tenant, 0, (1.0, 1.0, 1.0, 0.0), hour=0)
    anomalies.forget({"b": None})
    assert list(anomalies.patterns) == ["b"]
    assert anomalies.verdict("a") == QUIET
    rings = anomalies.patterns["b"]._rings
    assert sum(sys.getsizeof(ring) for ring in rings) < 8_000
