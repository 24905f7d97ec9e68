"""The running error of predictions."""

from __future__ import annotations

import math

import pytest

from extproc.core.predict.errors import RELATIVE_ERROR_MAX, WINDOW, Errors


def test_nothing_is_claimed_before_the_first() -> None:
    """Without a single truth there is no figure."""
    fresh = Errors()
    assert (fresh.median, fresh.p90, fresh.count) == (None, None, 0)


def test_median_and_tail_of_known_errors() -> None:
    """Errors of 1 to 50 % have their median at 25 % and their ninth tenth at 45 %."""
    errors = Errors()
    for percent in range(1, 51):
        errors.saw(100.0 + percent, 100.0)
    assert errors.median == pytest.approx(0.25)
    assert errors.p90 == pytest.approx(0.45)
    assert errors.count == 50


def test_old_errors_are_forgotten() -> None:
    """A window of good predictions makes up for any past."""
    errors = Errors()
    for _ in range(1_000):
        errors.saw(500.0, 100.0)
    for _ in range(WINDOW):
        errors.saw(110.0, 100.0)
    assert errors.p90 == pytest.approx(0.1)
    assert errors.count == 1_000 + WINDOW


@pytest.mark.parametrize(
    ("predicted", "observed"), [(1.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)]
)
def test_what_is_no_figure_is_left_out(predicted: float, observed: float) -> None:
    """Zero, negative and unreal figures change nothing."""
    errors = Errors()
    errors.saw(predicted, observed)
    assert errors.count == 0


def test_one_absurd_error_is_bounded() -> None:
    """A prediction a billion times too long counts as a thousand."""
    errors = Errors()
    errors.saw(1e12, 1.0)
    assert errors.median == RELATIVE_ERROR_MAX
