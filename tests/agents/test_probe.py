from __future__ import annotations

from steersman_agent.probe import RETRY_MAX_S, Baseline, Prober
from steersman_agent.rates import CounterRate
from steersman_agent.reply import Failure, PageReply, Reply
from steersman_agent.state import ReplicaState, Symptom

TIMED_OUT = Failure(Symptom.TIMED_OUT, "no answer within 500 ms")


def ok(ms: float = 30.0) -> PageReply:
    return PageReply(200, b"{}", ms / 1000)


def prober(*, interval_s: float = 10.0) -> Prober:
    return Prober(interval_s=interval_s, timeout_s=0.5)


def ask(one: Prober, reply: Reply, now_s: float) -> None:
    assert one.due(now_s)
    one.begin()
    assert not one.due(now_s)
    one.finish(reply, now_s)


def test_a_prompt_only_after_an_interval_without_evidence() -> None:
    """Counters that move are evidence; so is the prompt itself."""
    one = prober()
    one.observe((1.0,), 0.0, work=False)
    ask(one, ok(), 0.0)
    assert one.ttft_ms == 30.0
    assert not one.due(9.9)
    one.observe((2.0,), 9.9, work=False)
    assert not one.due(15.0)
    assert one.due(20.0)


def test_interval_zero_sends_none() -> None:
    """Counters alone judge then."""
    assert not prober(interval_s=0).due(1e9)


def test_an_idle_replica_that_swallows_prompts_is_hung_after_two() -> None:
    """The second prompt follows the first at once."""
    one = prober()
    one.observe((1.0,), 0.0, work=False)
    ask(one, TIMED_OUT, 0.5)
    ask(one, TIMED_OUT, 1.0)
    assert one.channel.state is ReplicaState.HUNG
    assert one.failures == 2


def test_pauses_between_prompts_to_a_hung_engine_grow_to_a_bound() -> None:
    """Each may cost it a permit."""
    one = prober()
    now_s = 0.0
    sent = []
    while now_s < 60:
        if one.due(now_s):
            sent.append(now_s)
            ask(one, TIMED_OUT, now_s)
        now_s += 0.1
    assert len(sent) < 20
    assert sent[-1] - sent[-2] >= RETRY_MAX_S


def test_work_without_progress_is_hung_after_two_timeouts_without_a_prompt() -> None:
    """2 × 500 ms of standstill, seen at the next poll: within 1.2 s."""
    one = prober()
    one.observe((1.0,), 0.0, work=True)
    now_s = 0.0
    while one.channel.state is not ReplicaState.HUNG:
        now_s += 0.1
        one.observe((1.0,), now_s, work=True)
        assert not one.due(now_s)
        assert now_s < 1.2
    assert "no counter moved" in one.channel.detail
    one.observe((2.0,), 5.0, work=True)
    one.observe((3.0,), 5.1, work=True)
    assert one.channel.state is ReplicaState.READY


def test_an_engine_whose_steps_take_seconds_is_hung_later() -> None:
    """Stillness that went on by itself is its way; what is longer than twice that is no step of its own."""
    one = prober()
    readings = 0.0

    def step(now_s: float) -> None:
        nonlocal readings
        readings += 1.0
        one.observe((readings,), now_s, work=True)

    step(0.0)
    step(0.9)  # seen soon enough: not hung, and learnt
    step(3.5)  # a long prompt's prefill
    for tenths in range(36, 85):
        one.observe((readings,), tenths / 10, work=True)
    assert one.channel.state is not ReplicaState.HUNG, "4.9 s, after 2.6 s that went on"
    for tenths in range(85, 92):
        one.observe((readings,), tenths / 10, work=True)
    assert one.channel.state is ReplicaState.HUNG
    assert "no counter moved for 5" in one.channel.detail


def test_patience_is_bounded_and_wears_off() -> None:
    """A minute of standing still is not waited for again; with quick steps the next hang is seen soon."""
    one = prober()
    one.observe((0.0,), 0.0, work=True)
    one.observe((1.0,), 60.0, work=True)
    for tenths in range(600, 801):
        one.observe((1.0,), tenths / 10, work=True)
    assert one.channel.state is ReplicaState.HUNG, "at most twice 10 s"
    for step in range(5_000):
        one.observe((2.0 + step,), 81.0 + step / 10, work=True)
    for tenths in range(15):
        one.observe((5_001.0,), 581.0 + tenths / 10, work=True)
    assert one.channel.state is ReplicaState.HUNG, "1.4 s"


def test_what_was_not_looked_at_has_not_stood_still() -> None:
    """The agent stalled for a minute; the request that it finds then has just come, and is answered late."""
    one = prober(interval_s=0)
    one.observe((1.0,), 0.0, work=False)
    for now_s in (60.0, 60.1, 60.2):
        one.observe((1.0,), now_s, work=True)
    assert not one.channel.heading
    one.observe((1.0,), 120.0, work=True)
    assert one.channel.state is not ReplicaState.HUNG, "a long silence between two looks is one silence"
    one.observe((1.0,), 120.1, work=True)
    assert one.channel.state is not ReplicaState.HUNG


def test_standing_still_without_work_is_no_trouble() -> None:
    """Idle is not hung."""
    one = prober(interval_s=0)
    for tenth in range(100):
        one.observe((1.0,), tenth / 10, work=False)
    assert one.channel.state is ReplicaState.UNKNOWN


def test_a_late_prompt_beside_moving_counters_is_no_evidence() -> None:
    """Others are being served: it only waited its turn."""
    one = prober()
    one.observe((1.0,), 0.0, work=False)
    one.begin()
    one.observe((2.0,), 0.3, work=True)
    one.finish(TIMED_OUT, 0.5)
    assert one.failures == 0


def test_refusing_while_full_is_right_and_while_empty_is_not() -> None:
    """429 with work in flight says nothing; on an idle replica it is trouble."""
    one = prober()
    one.observe((), 0.0, work=True)
    ask(one, PageReply(429, b""), 0.0)
    assert one.failures == 0
    one.observe((), 20.0, work=False)
    ask(one, PageReply(429, b""), 20.0)
    assert one.channel.state is ReplicaState.DEGRADED


def test_a_prompt_that_the_engine_will_not_have_tells_nothing() -> None:
    """No key, no such route: not the engine's fault; asked again by the interval."""
    one = prober()
    one.observe((), 0.0, work=False)
    for now_s in (0.0, 10.0, 20.0):
        ask(one, PageReply(401, b""), now_s)
        assert not one.due(now_s + 9)
    assert (one.channel.state, one.failures, one.unwanted) == (ReplicaState.UNKNOWN, 0, 401)


def test_a_degraded_replica_is_prompted_even_beside_traffic() -> None:
    """It has to show that it can: three answers bring it back."""
    one = prober()
    one.observe((1.0,), 0.0, work=False)
    ask(one, PageReply(500, b""), 0.0)
    assert one.channel.state is ReplicaState.DEGRADED
    now_s, answers = 0.0, 0
    while one.channel.state is ReplicaState.DEGRADED:
        now_s += 0.1
        one.observe((now_s,), now_s, work=True)
        if one.due(now_s):
            ask(one, ok(), now_s)
            answers += 1
        assert now_s < 5
    assert answers == 3
    assert one.channel.state is ReplicaState.READY


def test_slow_is_against_its_own_custom() -> None:
    """Three of 300 ms where 30 are the custom; a replica that always takes 300 is not slow."""
    one, now_s = prober(), 0.0
    for _ in range(5):
        ask(one, ok(), now_s)
        now_s += 10
    for _ in range(3):
        ask(one, ok(300), now_s)
        now_s += 10
    assert one.channel.state is ReplicaState.DEGRADED
    assert "300 ms" in one.channel.detail
    always = Baseline()
    assert not any(always.slow(300) for _ in range(10))


def test_trouble_does_not_become_the_custom() -> None:
    """Twenty slow prompts move the custom by less than its half of the way."""
    baseline = Baseline()
    for _ in range(10):
        baseline.slow(30)
    assert all(baseline.slow(300) for _ in range(20))


def test_a_rate_is_over_the_window_and_absent_when_idle() -> None:
    """100 tokens a second; nothing to measure by once it idles; zero when it stands still with work."""
    rate = CounterRate()
    for tenth in range(100):
        rate.add(tenth * 10.0, tenth / 10)
    measured = rate.per_s(work=True)
    assert measured is not None
    assert abs(measured - 100) < 1e-6
    for tenth in range(100, 200):
        rate.add(990.0, tenth / 10)
    assert rate.per_s(work=False) is None
    assert rate.per_s(work=True) == 0.0
    rate.add(5.0, 21.0)  # the engine began anew
    assert rate.per_s(work=True) is None
