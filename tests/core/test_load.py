from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.load import MS_NS, PLACED_KEPT, UNHEARD_MIN_NS, Job, Load, Plan, unheard_ns
from tests.stand.examples import examples

S = 1_000_000_000


def plan_of(tokens: int = 1000, prefill_ms: float = 70.0, output: float = 100.0, **more: object) -> Plan:
    given_: dict[str, object] = {
        "uncached_tokens": tokens,
        "cached_tokens": 0,
        "prefill_ms": prefill_ms,
        "kv_tokens": tokens + 200,
        "output_tokens": output,
    }
    return Plan(**{**given_, **more})  # type: ignore[arg-type] (a test's table of fields)


def sums(load: Load) -> tuple[int, int, float, int, int, int]:
    return (
        load.queued,
        load.queued_tokens,
        load.queued_ms,
        load.streaming,
        load.context_tokens,
        load.reserved_tokens,
    )


def test_a_request_goes_from_prefill_to_decode_to_nothing() -> None:
    """Queued work until the first token, context from then on, and no trace at its end."""
    load = Load()
    job = load.enter(plan_of(), 1, now_ns=0)
    assert sums(load) == (1, 1000, 70.0, 0, 0, 1200)
    load.first("a", job, now_ns=70 * MS_NS)
    # Context: the prompt, and half of the hundred tokens that it may write.
    assert sums(load) == (0, 0, 0.0, 1, 1050, 1200)
    load.first("a", job, now_ns=80 * MS_NS)
    assert load.streaming == 1, "a first token comes once"
    load.leave("a", job, now_ns=S)
    assert sums(load) == (0, 0, 0.0, 0, 0, 0)


def test_how_a_decode_went() -> None:
    """Means over a stream's life: sequences beside it, and what of others was prefilled meanwhile."""
    load = Load()
    one = load.enter(plan_of(), 1, now_ns=0)
    load.first("a", one, now_ns=0)
    two = load.enter(plan_of(prefill_ms=50.0), 1, now_ns=0)
    load.first("b", two, now_ns=S)
    decoded = load.leave("a", one, now_ns=2 * S)
    assert decoded is not None
    # One second alone, one beside the other.
    assert (decoded.elapsed_ms, decoded.batch, decoded.interference_ms) == (2000.0, 1.5, 50.0)
    assert decoded.context_tokens == 1575.0


def test_who_never_had_a_first_token_decoded_nothing() -> None:
    """It leaves the queue, and there is nothing to learn of."""
    load = Load()
    assert load.leave("a", load.enter(plan_of(), 1, now_ns=0), now_ns=S) is None
    assert sums(load) == (0, 0, 0.0, 0, 0, 0)


def test_the_guard_counts_what_is_still_to_be_prefilled() -> None:
    """Half of the time to spare of the stream that has least, less the prefill queued in front of it."""
    load = Load()
    assert load.tightest_ms(20.0, now_ns=0) == math.inf
    load.first("a", load.enter(plan_of(output=100.0), 1, now_ns=0), now_ns=0)
    # .5·(100 − 20)·100
    assert load.tightest_ms(20.0, now_ns=0) == 4000.0
    load.enter(plan_of(prefill_ms=1500.0), 1, now_ns=0)
    assert load.tightest_ms(20.0, now_ns=0) == 2500.0


def test_who_has_second_least_to_spare_is_known_beside() -> None:
    """Whatever their order; infinite for one alone, or where the others are lost."""
    load = Load()
    for at, output in enumerate((300.0, 100.0, 200.0)):
        load.first(str(at), load.enter(plan_of(prefill_ms=0.0, output=output), 1, now_ns=0), now_ns=0)
        assert load.tightest_ms(20.0, now_ns=0) == (12_000.0, 4_000.0, 4_000.0)[at]
        assert load.next_tightest_ms == (math.inf, 12_000.0, 8_000.0)[at]


def test_a_stream_that_is_lost_guards_nothing() -> None:
    """Its target cannot be met any more, so it is no reason to keep others waiting."""
    load = Load()
    load.first("a", load.enter(plan_of(output=10.0), 1, now_ns=0), now_ns=0)
    load.enter(plan_of(prefill_ms=500.0), 1, now_ns=0)
    # .5·80·10 = 400 ms to spare, and 500 ms queued.
    assert load.tightest_ms(20.0, now_ns=0) == math.inf


def test_a_stream_that_outlives_its_prediction_is_expected_to_go_on() -> None:
    """What is left is looked up again by what it has made."""
    load = Load()
    residuals = [50.0] * 64
    load.first("a", load.enter(plan_of(output=50.0, residuals=residuals), 1, now_ns=0), now_ns=0)
    assert load.tightest_ms(20.0, now_ns=0) == 2000.0
    # After two seconds at 20 ms it has made a hundred; fifty more are to come: .5·80·150.
    assert load.tightest_ms(20.0, now_ns=2 * S) == 6000.0


@pytest.mark.parametrize(
    ("ttft_ms", "times", "expected_ns"),
    [(400.0, 3.0, 1200 * MS_NS), (400.0, 1.0, 400 * MS_NS), (1.0, 3.0, UNHEARD_MIN_NS)],
)
def test_how_long_a_first_token_is_waited_for(ttft_ms: float, times: float, expected_ns: int) -> None:
    """So many times the prediction, never next to nothing."""
    assert unheard_ns(plan_of(ttft_ms=ttft_ms), times=times) == expected_ns


def test_who_was_there_when_a_prefill_began() -> None:
    """All that were placed before it, without those that had ended by then."""
    load = Load()
    jobs = [load.enter(plan_of(), 1, now_ns=0) for _ in range(3)]
    last = load.enter(plan_of(), 2, now_ns=1 * S)
    load.enter(plan_of(), 1, now_ns=1 * S)
    load.leave("a", jobs[0], now_ns=2 * S)
    load.leave("b", jobs[1], now_ns=4 * S)
    assert load.taken == 4
    assert [load.beside(last, at_s * S, at_end=False) for at_s in (1, 2, 3, 4)] == [3, 2, 2, 1]
    # One of the ends made room for it: the nearest.
    assert [load.beside(last, at_ms * MS_NS, at_end=True) for at_ms in (1_000, 2_900, 3_100)] == [2, 2, 1]
    for _ in range(PLACED_KEPT):
        load.leave("c", load.enter(plan_of(), 1, now_ns=5 * S), now_ns=5 * S)
    assert load.beside(last, 3 * S, at_end=False) == 0, "not known any more"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "first", "leave", "guard"]),
            st.integers(0, 9),
            st.integers(1, 5_000),
            st.integers(0, 500),
        ),
        max_size=60,
    )
)
@examples(150)
def test_the_sums_are_those_of_the_jobs(acts: list[tuple[str, int, int, int]]) -> None:
    """In whatever order requests come, speak and go, the sums are what is there, and never negative."""
    load, jobs, now_ns = Load(), dict[str, Job](), 0
    for act, number, tokens, ms in acts:
        now_ns += ms * MS_NS
        name = f"r{number}"
        if act == "enter" and name not in jobs:
            jobs[name] = load.enter(plan_of(tokens, tokens / 10), 1, now_ns=now_ns)
        elif act == "first" and name in jobs:
            load.first(name, jobs[name], now_ns=now_ns)
        elif act == "leave" and name in jobs:
            load.leave(name, jobs.pop(name), now_ns=now_ns)
        elif act == "guard":
            assert load.tightest_ms(20.0, now_ns=now_ns) >= 0.0
        waiting = [job for job in jobs.values() if job.queued]
        running = [job for job in jobs.values() if not job.queued]
        assert load.queued == len(waiting)
        assert load.queued_tokens == sum(job.plan.uncached_tokens for job in waiting)
        assert load.queued_ms == pytest.approx(sum(job.plan.prefill_ms for job in waiting))
        assert load.streaming == len(running)
        assert load.context_tokens == sum(job.context_tokens for job in running)
        assert load.reserved_tokens == sum(job.plan.kv_tokens for job in jobs.values())
