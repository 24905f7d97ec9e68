"""The last minutes by the second."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.admin.live_series import POINTS_KEPT, S_NS, SPAN_S, LiveSeries
from extproc.core.outcome import End, Outcome, Reject, Reservation
from tests.stand.schedulers import make_settled

MS = 1_000_000
REJECT = Reject(status=429, code="quota", message="no more")


class Clock:
    now_ns = 1_000 * S_NS

    def __call__(self) -> int:
        return self.now_ns


def live_series_of() -> tuple[LiveSeries, Clock]:
    clock = Clock()
    return LiveSeries(clock=clock, wall_clock=lambda: clock.now_ns / 1e9 + 7e8, gauge=lambda: (3, 2)), clock


def outcome(**facts: Any) -> Outcome:
    reservation = Reservation(
        id="i-1",
        tenant="acme",
        model="m",
        pool="p",
        address="10.0.0.1:80",
        input_tokens=1,
        output_tokens=1,
        permits=1,
        prompt_bytes=1,
        stream=True,
    )
    given = {"status": 200, "served_by": "10.0.0.1:80", "attempts": 1, "final": True, **facts}
    return Outcome(reservation=reservation, **given)


def test_a_second_becomes_a_point_when_it_is_over() -> None:
    """Counts of the second, percentiles of the last ten, what is in flight and held now."""
    live_series, clock = live_series_of()
    for ms in (10, 20, 30):
        live_series.settled(make_settled(outcome(ttft_ns=ms * MS, output_tokens=5)), now_ns=clock.now_ns)
    elsewhere = make_settled(outcome(ttft_ns=1 * MS), here=False)
    live_series.settled(elsewhere, now_ns=clock.now_ns)
    live_series.settled(make_settled(outcome(status=503, end=End.ERROR)), now_ns=clock.now_ns)
    live_series.turned_away("acme", REJECT, now_ns=clock.now_ns)
    live_series.decided(250_000, now_ns=clock.now_ns)
    assert live_series.step(now_ns=clock.now_ns) == []
    clock.now_ns += S_NS
    (point,) = live_series.step(now_ns=clock.now_ns)
    assert point["at"] == 1_000 + 7e8
    assert (point["ok"], point["errors"], point["refused"], point["output_tokens"]) == (3, 1, 1, 15)
    assert (point["ttft_p50_ms"], point["ttft_p99_ms"]) == pytest.approx((20.0, 29.8), rel=0.011)
    assert (point["decision_p50_ms"], point["in_flight"], point["held"]) == (
        pytest.approx(0.25, abs=0.003),
        3,
        2,
    )


def test_times_are_forgotten_after_their_span() -> None:
    """A quiet service has no percentiles."""
    live_series, clock = live_series_of()
    live_series.settled(make_settled(outcome(ttft_ns=10 * MS)), now_ns=clock.now_ns)
    for _ in range(SPAN_S + 1):
        clock.now_ns += S_NS
        live_series.step(now_ns=clock.now_ns)
    assert live_series.points[0]["ttft_p50_ms"] == pytest.approx(10.0, rel=0.011)
    assert live_series.points[-1]["ttft_p50_ms"] is None


def test_points_are_bounded() -> None:
    """The oldest go."""
    live_series, clock = live_series_of()
    for _ in range(POINTS_KEPT + 5):
        clock.now_ns += S_NS
        live_series.step(now_ns=clock.now_ns)
    assert len(live_series.points) == POINTS_KEPT


def test_a_second_on_the_way_of_a_request_reckons_nothing() -> None:
    """Closing is the step's: an event that opens a new second leaves the old one for later."""
    live_series, clock = live_series_of()
    live_series.decided(1_000, now_ns=clock.now_ns)
    live_series.decided(1_000, now_ns=clock.now_ns + 3 * S_NS)
    assert len(live_series.points) == 0
    assert len(live_series.step(now_ns=clock.now_ns + 4 * S_NS)) == 2
