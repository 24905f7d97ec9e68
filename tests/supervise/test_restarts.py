"""restarts.py: backoff and the bound of a crash loop, in pure arithmetic."""

from __future__ import annotations

from random import Random

from extproc.supervise.restarts import FOR_EVER, RestartPolicy, Restarts

CALM = RestartPolicy(first_s=1.0, factor=2.0, longest_s=5.0, jitter=0.0, restarts_max=4, window_s=100.0)


def test_delays_double_up_to_the_longest_and_then_it_is_a_crash_loop() -> None:
    """1, 2, 4, then 5 (not 8), then no more."""
    restarts = Restarts(CALM, Random(1))
    assert [restarts.died(now_s=t) for t in (0, 1, 2, 3, 4)] == [1.0, 2.0, 4.0, 5.0, None]


def test_deaths_outside_the_window_are_forgotten() -> None:
    """A death every 60 s in a window of 100 s is at most the second: never a crash loop."""
    restarts = Restarts(CALM, Random(1))
    assert [restarts.died(now_s=60.0 * n) for n in range(6)] == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_jitter_stays_within_its_share() -> None:
    """Two supervisors that lose the same thing do not restart in step, and nobody waits for long."""
    policy = RestartPolicy(first_s=1.0, jitter=0.25)
    delays = [Restarts(policy, Random(seed)).died(now_s=0.0) for seed in range(50)]
    assert all(delay is not None and 0.75 <= delay <= 1.25 for delay in delays)
    assert len(set(delays)) == 50


def test_what_is_tried_for_ever_is_tried_at_a_bounded_pace() -> None:
    """A service that dies as soon as it stands: never given up, and soon no more than six times a minute."""
    restarts, now_s, delays = Restarts(FOR_EVER, Random(1)), 0.0, []
    for _ in range(200):
        delay = restarts.died(now_s=now_s)
        assert delay is not None
        delays.append(delay)
        now_s += delay
    assert delays[0] < 0.3
    assert all(7.5 <= delay <= 12.5 for delay in delays[6:])
    assert restarts.count <= 20
