"""What holds of health whatever the causes and whenever they come."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.health import (
    HOLD_NS,
    RISE_FROM,
    RISE_PER_S,
    STEP_NS,
    SUSPICION_SHARE_MAX,
    Cause,
    CauseKind,
    Health,
    follow_pool,
)
from tests.stand.examples import examples

NAMES = st.sampled_from(["state", "probe", "errors", "latency", "telemetry", "gpu throttle"])
factors = st.floats(0.0, 1.0)
soft = st.builds(Cause, st.sampled_from([CauseKind.EVIDENCE, CauseKind.SUSPICION]), factors)
suspicions = st.builds(Cause, st.just(CauseKind.SUSPICION), factors)
causes = soft | st.just(Cause(CauseKind.HARD, 0.0))
#: (milliseconds since the last, endpoint, cause's name, cause or its end)
events = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 3), NAMES, st.none() | causes), min_size=1, max_size=60
)


@given(events)
@examples(300)
def test_the_number_keeps_its_rules(happened: list[tuple[int, int, str, Cause | None]]) -> None:
    """Within [0, 1]; a hard cause zeroes at once; no fall is faster nor rise quicker than the rule says."""
    healths = [Health() for _ in range(4)]
    now_ns = 0
    fell_ns = [-STEP_NS] * 4
    for after_ms, which, name, cause in happened:
        now_ns += after_ms * 1_000_000
        healths[which].set(name, cause)
        before = [health.value for health in healths]
        follow_pool(healths, now_ns=now_ns)
        for i, health in enumerate(healths):
            assert 0.0 <= health.value <= 1.0
            assert 0.0 <= health.target <= 1.0
            if health.hard:
                assert health.value == 0.0
                fell_ns[i] = now_ns
                continue
            assert health.value > 0.0 or before[i] == 0.0, "only a hard cause silences"
            if health.value < before[i]:
                assert health.value >= before[i] / 2
                assert now_ns - fell_ns[i] >= STEP_NS
                fell_ns[i] = now_ns
            elif health.value > before[i]:
                assert now_ns - fell_ns[i] >= HOLD_NS
                # A fall that was taken back before its step came leaves the time since the last step.
                risen = max(before[i], RISE_FROM) + RISE_PER_S * (after_ms / 1000 + STEP_NS / 1e9)
                assert health.value <= risen + 1e-9


@given(st.lists(st.lists(suspicions, max_size=4), min_size=1, max_size=12))
def test_suspicion_sheds_no_more_than_its_share(doubts: list[list[Cause]]) -> None:
    """However many endpoints are suspected of however much."""
    healths = [Health() for _ in doubts]
    for health, several in zip(healths, doubts, strict=True):
        for i, cause in enumerate(several):
            health.set(f"s{i}", cause)
    for step in range(40):
        follow_pool(healths, now_ns=step * STEP_NS)
        shed = sum(1.0 - health.value for health in healths)
        assert shed <= SUSPICION_SHARE_MAX * len(healths) + 1e-9


@given(st.integers(1, 40), st.integers(1, 40), factors)
def test_no_flapping(low: int, high: int, factor: float) -> None:
    """A signal that comes and goes at any pace turns the number at most twice a hold."""
    health = Health()
    values = []
    for step in range(400):
        health.set("errors", Cause(CauseKind.SUSPICION, factor) if step % (low + high) < low else None)
        follow_pool([health], now_ns=step * STEP_NS)
        values.append(health.value)
    moves = [b - a for a, b in pairwise(values) if a != b]
    turns = sum((a < 0) != (b < 0) for a, b in pairwise(moves))
    assert turns <= 2 * (400 * STEP_NS / HOLD_NS) + 2
    if low + high < HOLD_NS // STEP_NS:
        # Quicker than the hold, it settles where the signal points, but for a few slow steps up.
        late = values[200:]
        assert max(late) - min(late) <= RISE_PER_S * (high + 1) * STEP_NS / 1e9 + 1e-9


@given(st.lists(causes, max_size=6), causes)
def test_one_more_cause_never_helps(several: list[Cause], more: Cause) -> None:
    """The target is monotone in causes."""
    targets = []
    for each in (several, [*several, more]):
        health = Health()
        for i, cause in enumerate(each):
            health.set(str(i), cause)
        follow_pool([health], now_ns=0)
        targets.append(0.0 if health.hard else health.target)
    assert targets[1] <= targets[0]


@given(st.dictionaries(NAMES, causes), st.integers(0, 10_000))
def test_whole_again_when_all_is_over(several: dict[str, Cause], steps: int) -> None:
    """Without causes every number returns to 1, and stays."""
    health = Health()
    for name, cause in several.items():
        health.set(name, cause)
    now_ns = 0
    for _ in range(steps % 30):
        now_ns += STEP_NS
        follow_pool([health], now_ns=now_ns)
    for name in several:
        health.set(name, None)
    for _ in range((HOLD_NS + int(1e9 / RISE_PER_S)) // STEP_NS + 2):
        now_ns += STEP_NS
        follow_pool([health], now_ns=now_ns)
    assert (health.value, health.target) == (1.0, 1.0)
