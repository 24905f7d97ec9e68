from __future__ import annotations

from extproc.core.fleet import Endpoint
from extproc.core.outcome import LATER_MS, Reason


def test_a_reason_in_one_line() -> None:
    """Strategy, the best scores in order, how many there were, what was left out, what was missing."""
    candidates = [Endpoint(address=f"1.1.1.{i}:80", pool="p") for i in range(5)]
    reason = Reason(
        "least_work",
        candidates,
        [5.0, 1234567.0, 0.25, float("inf"), 2.0],
        [2, 4, 1],
        {"not ready": 0, "full": 2},
        "stale",
    )
    assert reason.text() == (
        "least_work: 1.1.1.2:80=0.25 1.1.1.4:80=2 1.1.1.1:80=1.23457e+06 of 5 -2 full degraded: stale"
    )


def test_a_reason_says_who_would_take_it_later() -> None:
    """What late binding adds to a score is no time: people read that it is for later."""
    named = [Endpoint(address=f"10.0.0.{i}:80", pool="p") for i in range(2)]
    reason = Reason("steer", named, [12.5, 40.0 + LATER_MS], [0, 1], {}, defers=True)
    assert reason.text() == "steer: 10.0.0.0:80=12.5 10.0.0.1:80=later"
