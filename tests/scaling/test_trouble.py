"""What is wrong with scaling, reckoned from plans on a virtual clock."""

from __future__ import annotations

from typing import Any

from extproc.core.scaling.values import LoadTime, Need, PoolPlan
from extproc.scaling.trouble import PoolTrouble, ScalingTrouble

S = 1_000_000_000


def plan(at_s: float, wanted: int, ready: int, **more: Any) -> PoolPlan:
    given: dict[str, Any] = {"load_time": LoadTime(p50_s=40.0, p90_s=60.0), "horizon_s": 75.0, **more}
    return PoolPlan(
        pool="llama",
        at_ns=int(at_s * S),
        wanted=wanted,
        ready=ready,
        loading=max(0, wanted - ready),
        draining=0,
        why="a test",
        **given,
    )


def test_nothing_is_wrong_with_what_is_unknown_or_well() -> None:
    """A pool without a plan, and one that has what it wants."""
    trouble = ScalingTrouble()
    assert trouble.of("llama", now_ns=S) == PoolTrouble()
    trouble.heard(plan(1, 2, 2))
    assert trouble.of("llama", now_ns=10_000 * S) == PoolTrouble()


def test_more_is_needed_than_is_allowed() -> None:
    """Only what max_replicas or the budget keeps away counts, as one at least; a step that is coming does
    not."""
    trouble = ScalingTrouble()
    for bound, needed, unmet in (
        ("max", 9, 5.0), ("budget", 9, 5.0), ("max", 4, 1.0), ("step", 9, 0.0), ("", 9, 0.0)
    ):  # fmt: skip
        need = Need(replicas=needed, attainment=0.5, utilization=1.0, binding="kv")
        trouble.heard(plan(1, 4, 4, need_high=need, bound=bound))
        assert trouble.of("llama", now_ns=S).unmet == unmet


def test_replicas_that_never_come_are_counted_in_load_times() -> None:
    """From when one was first missing; anew whenever another becomes ready; over when all are there."""
    trouble = ScalingTrouble()
    trouble.heard(plan(0, 1, 1))
    trouble.heard(plan(100, 3, 1))
    assert trouble.of("llama", now_ns=250 * S).overdue == 2.0
    trouble.heard(plan(250, 3, 1))
    assert trouble.of("llama", now_ns=325 * S).overdue == 3.0
    trouble.heard(plan(325, 3, 2))
    assert trouble.of("llama", now_ns=400 * S).overdue == 1.0
    # One that falls over is no other that came.
    trouble.heard(plan(400, 3, 1))
    assert trouble.of("llama", now_ns=475 * S).overdue == 2.0
    trouble.heard(plan(500, 3, 3))
    assert trouble.of("llama", now_ns=10_000 * S).overdue == 0.0
    trouble.heard(plan(20_000, 2, 1, load_time=LoadTime(p50_s=0.0, p90_s=0.0), horizon_s=0.0))
    assert trouble.of("llama", now_ns=20_002 * S).overdue == 2.0


def test_only_changes_of_direction_are_turns() -> None:
    """A ramp is none; up and down again is one each; an hour later they are forgotten."""
    trouble = ScalingTrouble()
    for second, wanted in enumerate((1, 2, 3, 3, 5)):
        trouble.heard(plan(second, wanted, wanted))
    assert trouble.of("llama", now_ns=5 * S).turns == 0
    for second, wanted in enumerate((4, 3, 4, 3), 5):
        trouble.heard(plan(second, wanted, wanted))
    assert trouble.of("llama", now_ns=9 * S).turns == 3
    assert trouble.of("llama", now_ns=3_608 * S).turns == 1
    trouble.forget("llama")
    assert trouble.of("llama", now_ns=9 * S) == PoolTrouble()
