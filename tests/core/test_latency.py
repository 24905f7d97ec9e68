from __future__ import annotations

from math import exp, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.latency import OBSERVED_MS_MAX, Latency, PeakAverage
from tests.stand.examples import examples

S = 1_000_000_000


def test_nothing_seen_is_no_time() -> None:
    """An average that nothing fed is 0, whenever it is asked."""
    latency = Latency()
    assert latency.ttft.ms(now_ns=0) == latency.tpot.ms(now_ns=1_000 * S) == 0.0


def test_a_peak_counts_at_once_and_sinks_slowly() -> None:
    """One slow answer is the average; a quick one ten seconds later takes 1 − 1/e of the way down."""
    average = PeakAverage()
    average.saw(100.0, now_ns=S)
    average.saw(900.0, now_ns=S)
    assert average.ms(now_ns=S) == 900.0
    average.saw(100.0, now_ns=11 * S)
    assert average.ms(now_ns=11 * S) == pytest.approx(100 + 800 * exp(-1))


def test_what_is_not_seen_again_fades() -> None:
    """It stands for one time constant and then decays, so that who was slow once is tried again."""
    average = PeakAverage()
    average.saw(800.0, now_ns=S)
    assert average.ms(now_ns=11 * S) == 800.0
    assert average.ms(now_ns=21 * S) == pytest.approx(800 * exp(-1))
    assert average.ms(now_ns=400 * S) < 1e-6


@pytest.mark.parametrize("observed", [nan, -1.0, -inf])
def test_what_is_no_time_is_passed_over(observed: float) -> None:
    """Broken clocks teach nothing."""
    average = PeakAverage()
    average.saw(50.0, now_ns=S)
    average.saw(observed, now_ns=S)
    assert average.ms(now_ns=S) == 50.0


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.integers(0, 1_000 * S)), max_size=30))
@examples(60)
def test_an_average_is_bounded(seen: list[tuple[float, int]]) -> None:
    """Whatever is observed, in whatever order of time: from 0 to the bound, and no more than the worst."""
    average = PeakAverage()
    for observed_ms, now_ns in seen:
        average.saw(observed_ms, now_ns=now_ns)
    worst = max((min(ms, OBSERVED_MS_MAX) for ms, _ in seen if ms >= 0.0), default=0.0)
    assert 0.0 <= average.ms(now_ns=1_000 * S) <= worst * (1 + 1e-9)
