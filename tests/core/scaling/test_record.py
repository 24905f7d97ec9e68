"""The record of what replicas bore: how it corrects the model, and what it makes of nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.scaling.record import BINS, CORRECTION_MAX, CORRECTION_MIN, REQUESTS_MAX, ServedRecord


def seen(share_at: dict[float, float], requests: int = 5_000) -> ServedRecord:
    """A record in which this share attained at each load."""
    record = ServedRecord()
    for load, share in share_at.items():
        record.saw(load, attained=share * requests, judged=requests)
    return record


def test_before_anything_was_seen_the_model_holds() -> None:
    """No ends: no correction."""
    assert ServedRecord().correction(0.99) == pytest.approx(1.0)


def test_replicas_that_bear_less_than_the_model_says_are_asked_for_less() -> None:
    """Bursts cost four in a hundred from .7 on: at a target of .99 a replica is planned for about that."""
    record = seen({0.35: 1.0, 0.45: 1.0, 0.55: 0.999, 0.65: 0.99, 0.75: 0.96, 0.85: 0.94})
    assert 0.65 <= record.correction(0.99) <= 0.8
    assert record.correction(0.999) < record.correction(0.99) < record.correction(0.95)


def test_more_than_the_model_says_is_tried_a_tenth_at_a_time() -> None:
    """What was well at the model's bound is tried a bin further, not three."""
    record = seen({0.85: 1.0, 0.95: 1.0})
    assert record.correction(0.99) == pytest.approx(1.1)
    record.saw(1.05, attained=5_000, judged=5_000)
    assert record.correction(0.99) == pytest.approx(1.2)


def test_a_bin_forgets_what_is_long_ago() -> None:
    """An engine that became slower is believed after some thousands of requests."""
    record = seen({0.75: 1.0}, requests=int(REQUESTS_MAX))
    for _ in range(60):
        record.saw(0.75, attained=900, judged=1_000)
    assert record.correction(0.98) <= 0.8


def test_a_bin_that_attains_just_the_target_is_no_division_by_zero() -> None:
    """Those below are short by two requests, and what this one lost is nothing: it is where it ends."""
    record = ServedRecord()
    for load, attained, judged in ((0.95, 1_138, 1_150), (1.05, 1_980, 2_000), (1.15, 1_287, 1_300)):
        record.saw(load, attained=attained, judged=judged)
    assert record.correction(0.99) == 1.0


@given(
    st.lists(st.tuples(st.floats(), st.floats(), st.floats()), max_size=40),
    st.floats(0.5, 0.9999),
)
def test_a_correction_is_within_its_bounds_whatever_was_told(
    told: list[tuple[float, float, float]], target: float
) -> None:
    """NaN, negative counts and more attained than came change nothing."""
    record = ServedRecord()
    for load, attained, judged in told:
        record.saw(load, attained=attained, judged=judged)
    assert CORRECTION_MIN <= record.correction(target) <= CORRECTION_MAX
    other = ServedRecord()
    other.recall(*record.kept())
    assert len(other.came) == BINS
