from __future__ import annotations

import pytest

from extproc.core.health import (
    EVIDENCE_FACTOR_MIN,
    HOLD_NS,
    RISE_FROM,
    STEP_NS,
    SUSPICION_FACTOR_MIN,
    SUSPICION_SHARE_MAX,
    Cause,
    CauseKind,
    Health,
    follow_pool,
)

HARD = Cause(CauseKind.HARD, 0.0, "dead")


def evidence(factor: float) -> Cause:
    return Cause(CauseKind.EVIDENCE, factor)


def suspicion(factor: float) -> Cause:
    return Cause(CauseKind.SUSPICION, factor)


class Watched:
    """A pool of healths and a clock that steps."""

    def __init__(self, count: int = 1) -> None:
        self.healths = [Health() for _ in range(count)]
        self.now_ns = 0

    def steps(self, count: int) -> list[float]:
        """The first one's value after each of so many steps."""
        values = []
        for _ in range(count):
            self.now_ns += STEP_NS
            follow_pool(self.healths, now_ns=self.now_ns)
            values.append(self.healths[0].value)
        return values


def test_a_new_endpoint_is_whole() -> None:
    """Nothing is held against what has just come."""
    assert Watched().steps(2) == [1.0, 1.0]


def test_a_hard_cause_silences_at_once_and_alone() -> None:
    """A dead one takes nothing from the next step on; its neighbours are untouched."""
    pool = Watched(2)
    pool.healths[0].set("state", HARD)
    assert pool.steps(1) == [0.0]
    assert pool.healths[1].value == 1.0
    pool.healths[1].set("state", HARD)
    pool.healths[1].silence(now_ns=pool.now_ns)
    assert pool.healths[1].value == 0.0


def test_silence_is_for_hard_causes_only() -> None:
    """Whatever else there is waits for its step."""
    health = Health()
    health.set("gpu throttle", evidence(0.2))
    health.silence(now_ns=5)
    assert health.value == 1.0


def test_a_struggling_one_loses_in_steps() -> None:
    """Halved each step, down to what the evidence leaves."""
    pool = Watched()
    pool.healths[0].set("gpu throttle", evidence(0.2))
    assert pool.steps(4) == [0.5, 0.25, 0.2, 0.2]


def test_steps_do_not_come_faster_for_being_asked() -> None:
    """The rule is by time, not by call."""
    health = Health()
    for _ in range(10):
        health.follow(0.1, now_ns=STEP_NS)
    assert health.value == 0.5


def test_it_rises_slowly_after_a_hold() -> None:
    """Two seconds without a fall, then a fifth a second."""
    pool = Watched()
    pool.healths[0].set("gpu throttle", evidence(0.5))
    pool.steps(1)
    pool.healths[0].set("gpu throttle", None)
    held = HOLD_NS // STEP_NS - 1
    assert pool.steps(held) == [0.5] * held
    assert pool.steps(4) == pytest.approx([0.55, 0.6, 0.65, 0.7])
    assert pool.steps(8)[-1] == 1.0


def test_it_starts_anew_at_a_little() -> None:
    """What was silenced is seen by traffic again with a small share."""
    pool = Watched()
    pool.healths[0].set("state", HARD)
    pool.steps(1)
    pool.healths[0].set("state", None)
    pool.steps(HOLD_NS // STEP_NS - 1)
    assert pool.steps(1)[0] == pytest.approx(RISE_FROM + 0.05)


def test_a_loaded_process_begins_without_the_wait() -> None:
    """It takes a little work at once, and more by and by; a hard cause has its word before."""
    pool = Watched()
    health = pool.healths[0]
    health.set("state", HARD)
    pool.steps(1)
    health.begin(now_ns=pool.now_ns)
    assert health.value == 0.0
    health.set("state", None)
    health.begin(now_ns=pool.now_ns)
    assert health.value == RISE_FROM
    assert pool.steps(2) == pytest.approx([RISE_FROM + 0.05, RISE_FROM + 0.1])


def test_suspicion_takes_no_more_than_its_share() -> None:
    """What looks wrong everywhere is likelier wrong with us."""
    pool = Watched(4)
    for health in pool.healths:
        health.set("errors", suspicion(0.1))
    pool.steps(20)
    assert [health.value for health in pool.healths] == pytest.approx([1 - SUSPICION_SHARE_MAX] * 4)
    for health in pool.healths[1:]:
        health.set("errors", None)
    assert pool.steps(40)[-1] == pytest.approx(0.1), "one alone is shed as far as it goes"


def test_the_share_is_of_what_can_serve() -> None:
    """Dead ones neither are shed by suspicion nor widen its share."""
    pool = Watched(3)
    pool.healths[1].set("state", HARD)
    pool.healths[2].set("state", HARD)
    pool.healths[0].set("errors", suspicion(0.1))
    assert pool.steps(20)[-1] == pytest.approx(0.5)


def test_neither_suspicion_nor_evidence_silences() -> None:
    """However many they are: only a hard cause may."""
    health = Health()
    for i in range(20):
        health.set(f"s{i}", suspicion(0.0))
        health.set(f"e{i}", evidence(0.1))
    assert health.factor(CauseKind.SUSPICION) == SUSPICION_FACTOR_MIN
    assert health.factor(CauseKind.EVIDENCE) == EVIDENCE_FACTOR_MIN
    assert not health.hard


def test_a_cause_that_takes_nothing_is_none() -> None:
    """A whole factor clears the cause."""
    health = Health()
    health.set("errors", suspicion(0.5))
    health.set("errors", suspicion(1.0))
    assert health.causes == {}
    health.set("errors", None)
