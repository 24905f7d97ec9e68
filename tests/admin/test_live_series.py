"""The last minutes by the second, and the last decisions."""

from __future__ import annotations

from typing import Any

from extproc.admin.live_series import DECISIONS_KEPT, POINTS_KEPT, S_NS, SAMPLES_MAX, SPAN_S, LiveSeries
from extproc.core.outcome import End, Outcome, Reject, Reservation
from tests.stand.schedulers import make_settled

MS = 1_000_000
REJECT = Reject(status=429, code="quota", message="no more")


class Clock:
    now_ns = 1_000 * S_NS

    def __call__(self) -> int:
        return self.now_ns


def pulse_of() -> tuple[LiveSeries, Clock]:
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
    live_series, clock = pulse_of()
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
    assert (point["ttft_p50_ms"], point["ttft_p99_ms"]) == (20.0, 30.0)
    assert (point["decision_p50_ms"], point["in_flight"], point["held"]) == (0.25, 3, 2)


def test_times_are_forgotten_after_their_span() -> None:
    """A quiet service has no percentiles."""
    live_series, clock = pulse_of()
    live_series.settled(make_settled(outcome(ttft_ns=10 * MS)), now_ns=clock.now_ns)
    for _ in range(SPAN_S + 1):
        clock.now_ns += S_NS
        live_series.step(now_ns=clock.now_ns)
    assert live_series.points[0]["ttft_p50_ms"] == 10.0
    assert live_series.points[-1]["ttft_p50_ms"] is None


def test_everything_is_bounded() -> None:
    """Points, samples and decisions: the oldest go."""
    live_series, clock = pulse_of()
    for _ in range(SAMPLES_MAX + 50):
        live_series.decided(1_000, now_ns=clock.now_ns)
        live_series.turned_away("acme", REJECT, now_ns=clock.now_ns)
    for _ in range(DECISIONS_KEPT):
        live_series.turned_away("acme", REJECT, now_ns=clock.now_ns)
    for _ in range(POINTS_KEPT + 5):
        clock.now_ns += S_NS
        live_series.step(now_ns=clock.now_ns)
    assert len(live_series.points) == POINTS_KEPT
    assert len(live_series.entries) == DECISIONS_KEPT
    assert live_series.count == SAMPLES_MAX + 50 + DECISIONS_KEPT


def test_decisions_after_a_number() -> None:
    """Oldest first; what is more than was asked for, or forgotten, is counted."""
    live_series, clock = pulse_of()
    for i in range(10):
        live_series.turned_away(f"t{i}", REJECT, now_ns=clock.now_ns)
    found, left_out = live_series.after(4, limit=4)
    assert [each["tenant"] for each in found] == ["t6", "t7", "t8", "t9"]
    assert left_out == 2
    assert live_series.after(10, limit=4) == ([], 0)
    assert found[0] | {"at": 0} == {
        "number": 7, "at": 0, "kind": "refused", "id": "", "tenant": "t6", "class": "", "model": "",
        "pool": "", "status": 429, "code": "quota", "reason": "no more",
    }  # fmt: skip


def test_a_second_on_the_way_of_a_request_reckons_nothing() -> None:
    """Closing is the step's: an event that opens a new second leaves the old one for later."""
    live_series, clock = pulse_of()
    live_series.decided(1_000, now_ns=clock.now_ns)
    live_series.decided(1_000, now_ns=clock.now_ns + 3 * S_NS)
    assert len(live_series.points) == 0
    assert len(live_series.step(now_ns=clock.now_ns + 4 * S_NS)) == 2
