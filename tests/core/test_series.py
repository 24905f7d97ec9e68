"""Quantiles, exact and by sketches: within the accuracy, the same in any order of merging; fixed buckets."""

from __future__ import annotations

import math
from itertools import chain

import msgspec
import pytest
from ddsketch.mapping import LogarithmicMapping
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.series import ACCURACY, VALUE_MAX, VALUE_MIN, Scale, Sketch, quantile, shown

values = st.floats(0.0, VALUE_MAX, allow_nan=False)
SHARES = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0)


def sketch(*given_: float) -> Sketch:
    made = Sketch()
    for value in given_:
        made.add(value)
    return made


@pytest.mark.parametrize(
    ("ordered", "share", "found"),
    [
        ([7.0], 0.99, 7.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        (list(range(101)), 0.99, 99.0),
        (list(range(101)), 0.995, 99.5),
        (list(range(101)), 1.0, 100.0),
    ],
)
def test_a_quantile_of_a_list(ordered: list[float], share: float, found: float) -> None:
    """The value of rank share · (count − 1), linear between neighbours; rounded for people."""
    assert quantile(ordered, share) == pytest.approx(found)
    assert shown(ordered, share, scale=1e3) == pytest.approx(found * 1e3)
    assert shown([], share) is None


@given(st.lists(values, min_size=1, max_size=200))
def test_quantiles_are_within_the_accuracy(some: list[float]) -> None:
    """Each is within a hundredth of the exact one (DDSketch guarantees it of both neighbours), rounded."""
    ordered = sorted(each if each >= VALUE_MIN else 0.0 for each in some)
    for share, found in zip(SHARES, sketch(*some).quantiles(SHARES), strict=True):
        exact = quantile(ordered, share)
        assert found is not None
        # The largest is kept in thousandths, which caps what is said; and so is what is said.
        assert abs(found - exact) <= ACCURACY * exact * (1 + 1e-9) + 1.1e-3


@given(st.floats(VALUE_MIN, VALUE_MAX), st.sampled_from([0.01, 0.09]))
def test_a_bin_is_the_librarys(value: float, accuracy: float) -> None:
    """The same as DDSketch's own, but for the logarithm's last digit on the very border of two bins."""
    scale, theirs = Scale(accuracy), LogarithmicMapping(accuracy)
    assert abs(scale.bin_of(value) - theirs.key(value)) <= 1
    assert scale.value(scale.bin_of(value)) == pytest.approx(value, rel=accuracy * (1 + 1e-9))


@given(st.lists(st.lists(values, max_size=30), max_size=6), st.randoms(use_true_random=False))
def test_merged_in_any_order_it_is_the_same(parts: list[list[float]], random) -> None:  # type: ignore[no-untyped-def]
    """Bins, sum, largest and count, to the last digit, as if all had been added to one."""
    whole = sketch(*chain(*parts))
    shuffled = parts[:]
    random.shuffle(shuffled)
    merged = Sketch()
    for part in shuffled:
        merged.merge(sketch(*part))
    assert merged == whole
    assert merged.count == len(list(chain(*parts)))


@given(st.lists(values, max_size=50))
def test_it_comes_back_as_it_was_kept(some: list[float]) -> None:
    """Encoded and decoded."""
    made = sketch(*some)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Sketch) == made


def test_bounds() -> None:
    """However wide the values, bins are bounded; what is no number is left out."""
    made = sketch(-1.0, math.nan, 0.0, 1e300, math.inf, *(10.0 ** (e / 200) for e in range(-3_000, 9_000)))
    assert len(made.bins) <= 1_400
    assert made.count == 12_004
    assert made.most == VALUE_MAX * 1_000


def test_the_mean_is_exact_and_nothing_has_none() -> None:
    """To a thousandth of each value."""
    assert sketch(1.0, 2.0, 6.0).mean == 3.0
    assert Sketch().mean is None
    assert Sketch().quantiles((0.5,)) == [None]
    assert sketch(5.0).quantiles((0.5,)) == [pytest.approx(5.0, rel=ACCURACY)]
