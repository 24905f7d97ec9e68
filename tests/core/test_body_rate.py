"""Large bodies wait their turn by their sender."""

from __future__ import annotations

from extproc.core.body_rate import BURST_NS, S_NS, SENDERS_MAX, BodyRate

MIB = 1024 * 1024


def take(pace: BodyRate, sender: str, mib: int, *, now_s: float = 0.0, most_s: float = 1.0) -> float:
    wait_ns = pace.take(sender, mib * MIB, most_ns=int(most_s * S_NS), now_ns=int(now_s * S_NS))
    return wait_ns / S_NS


def test_a_seconds_worth_at_once_then_in_turn() -> None:
    """At 8 MiB a second: two of 4 MiB at once, from then on one each half second, another sender at once."""
    pace = BodyRate(8 * MIB)
    assert [take(pace, "a", 4) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert take(pace, "b", 4) == 0.0
    assert take(pace, "a", 4, now_s=2.5) == 0.0


def test_who_would_wait_too_long_is_not_counted() -> None:
    """So a refused one may come back when it was told to, however often it asked meanwhile."""
    pace = BodyRate(MIB)
    assert take(pace, "a", 3) == 0.0
    assert [take(pace, "a", 3) for _ in range(5)] == [2.0] * 5
    assert take(pace, "a", 3, now_s=2.0) == 0.0


def test_one_above_the_burst_is_taken() -> None:
    """What comes after it waits."""
    pace = BodyRate(MIB)
    assert take(pace, "a", 100) == 0.0
    assert take(pace, "a", 1) == 100 - BURST_NS / S_NS


def test_senders_are_bounded() -> None:
    """The one that sent longest ago is forgotten."""
    pace = BodyRate(MIB)
    for number in range(SENDERS_MAX + 1):
        take(pace, str(number), 10)
    assert len(pace) == SENDERS_MAX
    assert take(pace, "0", 10) == 0.0
    assert take(pace, str(SENDERS_MAX), 10) > 0.0
