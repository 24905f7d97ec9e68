from __future__ import annotations

from random import Random
from statistics import fmean, stdev

import pytest

from extproc.sim.events import (
    Accepted,
    Cancelled,
    Event,
    Finished,
    FirstToken,
    Overloaded,
    Requeued,
    Resumed,
    SimRequest,
    Stepped,
)
from extproc.sim.replica import ReplicaLimits, SimReplica
from extproc.sim.spec import ReplicaSpec
from extproc.sim.timing import hardware_named
from tests.sim.conftest import MS, TOY, MakeReplica, drain


def request(
    request_id: str, prompt: int = 8, out: int = 4, *, limit: int | None = None, blocks: str = ""
) -> SimRequest:
    return SimRequest(
        request_id=request_id,
        prompt_tokens=prompt,
        output_tokens=out,
        max_new_tokens=limit or out,
        blocks=blocks,
    )


def finished(events: list[Event]) -> dict[object, Finished]:
    return {event.request_id: event for event in events if isinstance(event, Finished)}


def firsts(events: list[Event]) -> dict[object, int]:
    return {event.request_id: event.at_ns for event in events if isinstance(event, FirstToken)}


def test_one_request_takes_its_prefill_and_its_decode_steps(make_replica: MakeReplica) -> None:
    """8 tokens at 1 ms, then 3 steps of 10 ms for the other tokens."""
    replica = make_replica()
    assert replica.submit(request("a"), now_ns=5 * MS) == Accepted(1)
    assert replica.next_event_ns() == 13 * MS
    assert drain(replica) == [
        FirstToken("a", 13 * MS),
        Finished(
            request_id="a",
            at_ns=43 * MS,
            prompt_tokens=8,
            cached_tokens=0,
            output_tokens=4,
            submitted_ns=5 * MS,
            admitted_ns=5 * MS,
            first_token_ns=13 * MS,
        ),
    ]
    assert (replica.permits_in_use, replica.running, replica.kv_used_tokens) == (0, 0, 0)


def test_a_prefill_advances_the_running_and_is_followed_by_a_decode_step(make_replica: MakeReplica) -> None:
    """b's prompt costs a one slow step, in which a makes a token too; c waits for the next loop."""
    replica = make_replica(step_events=True)
    replica.submit(request("a", 8, 4), now_ns=0)
    replica.submit(request("b", 20, 2), now_ns=1 * MS)
    replica.advance(8 * MS)  # a's first token; b's prefill begins
    replica.submit(request("c", 5, 1), now_ns=9 * MS)
    events = drain(replica)
    steps = [
        (event.at_ns // MS, event.prefill_tokens, event.batch)
        for event in events
        if isinstance(event, Stepped)
    ]
    # 8+20 prefill of b with a along; a decode step of both; c's prefill with a along: a's last token.
    assert steps == [(28, 20, 2), (38, 0, 2), (43, 5, 2)]
    assert {key: end.at_ns // MS for key, end in finished(events).items()} == {"b": 38, "a": 43, "c": 43}


def test_permits_bound_what_is_accepted_until_it_ends(make_replica: MakeReplica) -> None:
    """The permit is held in the queue, in the batch and until the last token."""
    replica = make_replica(max_concurrent_requests=2)
    assert isinstance(replica.submit(request("a"), now_ns=0), Accepted)
    assert isinstance(replica.submit(request("b"), now_ns=0), Accepted)
    assert replica.submit(request("c"), now_ns=0) == Overloaded(2)
    ends = finished(drain(replica))
    assert set(ends) == {"a", "b"}
    assert isinstance(replica.submit(request("c"), now_ns=ends["b"].at_ns), Accepted)


def test_the_queue_stops_at_the_first_that_does_not_fit(make_replica: MakeReplica) -> None:
    """A large request at the head keeps back a small one that would fit: head-of-line blocking."""
    replica = make_replica(kv_capacity_tokens=100)
    replica.submit(request("a", 40, 20), now_ns=0)
    replica.submit(request("large", 50, 10), now_ns=1)
    replica.submit(request("small", 4, 1), now_ns=2)
    events = drain(replica)
    ends = finished(events)
    assert ends["large"].admitted_ns >= ends["a"].at_ns
    assert ends["small"].admitted_ns >= ends["large"].admitted_ns


def test_kv_is_reserved_for_the_limit_and_not_for_the_answer(make_replica: MakeReplica) -> None:
    """prompt + max_new − 1, though the answer is one token; beyond a slice only the slice counts."""
    replica = make_replica()
    replica.submit(request("a", 8, 1, limit=500), now_ns=0)
    assert replica.batch_current_max_tokens == 8 + 500 - 1
    replica = make_replica()
    replica.submit(request("a", 8, 1, limit=5000), now_ns=0)
    assert replica.batch_current_max_tokens == 8 + 1024 - 1


def test_a_long_prompt_is_prefilled_in_chunks(make_replica: MakeReplica) -> None:
    """25 tokens with room for 10: three steps, the last of them short and open to the next prompt."""
    replica = make_replica(max_batch_prefill_tokens=10, step_events=True)
    replica.submit(request("a", 25, 2), now_ns=0)
    replica.submit(request("b", 4, 2), now_ns=0)
    events = drain(replica)
    prefills = [event.prefill_tokens for event in events if isinstance(event, Stepped)]
    assert prefills == [10, 10, 9, 0]
    assert firsts(events) == {"a": 29 * MS, "b": 29 * MS}


def test_running_sequences_take_from_the_prefill_budget(make_replica: MakeReplica) -> None:
    """Room for prompts is the budget less one token for each that decodes."""
    replica = make_replica(max_batch_prefill_tokens=10, step_events=True)
    for name in "abc":
        replica.submit(request(name, 2, 30), now_ns=0)
    drain(replica, until_ns=30 * MS)
    replica.submit(request("d", 12, 1), now_ns=30 * MS)
    assert [event.prefill_tokens for event in drain(replica) if isinstance(event, Stepped)][:4] == [
        0,
        7,
        5,
        0,
    ]


def test_a_full_batch_keeps_the_queue_waiting(make_replica: MakeReplica) -> None:
    """Two run at once, though there is room for the third; it goes in when one has left."""
    replica = make_replica(max_batch_size=2)
    replica.submit(request("a", 8, 4), now_ns=0)
    replica.submit(request("b", 8, 9), now_ns=0)
    replica.advance(20 * MS)
    replica.submit(request("c", 8, 2), now_ns=20 * MS)
    assert (replica.running, replica.waiting) == (2, 1)
    ends = finished(drain(replica))
    assert ends["c"].admitted_ns == ends["a"].at_ns


def test_a_full_batch_skips_who_left(make_replica: MakeReplica) -> None:
    """A departed head holds no place: who comes after it runs."""
    replica = make_replica(max_batch_size=1)
    for name in "abc":
        replica.submit(request(name, 8, 4), now_ns=0)
    replica.cancel("b", now_ns=1 * MS)
    ends = finished(drain(replica))
    assert ends["c"].admitted_ns == ends["a"].at_ns


def test_prompts_are_cached_at_the_end_only(make_replica: MakeReplica) -> None:
    """Two at once with one prefix both pay; a third, after them, does not."""
    replica = make_replica()
    replica.submit(request("a", 10, 3, blocks="xy"), now_ns=0)
    replica.submit(request("b", 10, 3, blocks="xy"), now_ns=0)
    ends = finished(drain(replica))
    assert (ends["a"].cached_tokens, ends["b"].cached_tokens) == (0, 0)
    assert replica.cache.used_tokens == replica.kv_used_tokens == 8
    replica.submit(request("c", 10, 3, blocks="xz"), now_ns=1000 * MS)
    assert replica.batch_current_max_tokens == 10 + 3 - 1 - 4
    events = drain(replica)
    assert events[0] == FirstToken("c", 1006 * MS, cached_tokens=4)
    end = finished(events)["c"]
    assert end.cached_tokens == 4
    assert end.prefill_ns == 6 * MS


def test_a_wholly_cached_prompt_still_computes_one_token(make_replica: MakeReplica) -> None:
    """The forward pass needs an input."""
    replica = make_replica()
    replica.submit(request("a", 8, 1, blocks="xy"), now_ns=0)
    drain(replica)
    replica.submit(request("b", 8, 1, blocks="xy"), now_ns=1000 * MS)
    end = finished(drain(replica))["b"]
    assert (end.cached_tokens, end.prefill_ns) == (7, 1 * MS)


def test_the_cache_makes_room_for_the_running(make_replica: MakeReplica) -> None:
    """Unpinned blocks are evicted, oldest first, before anyone waits."""
    replica = make_replica(kv_capacity_tokens=40)
    replica.submit(request("a", 16, 1, blocks="abcd"), now_ns=0)
    replica.submit(request("b", 16, 1, blocks="efgh"), now_ns=100 * MS)
    drain(replica)
    assert replica.cache.used_tokens == 32
    replica.submit(request("c", 16, 9, blocks="efgi"), now_ns=200 * MS)
    assert replica.running == 1
    assert (replica.cache.match("abcd"), replica.cache.match("efgh")) == (3, 4)
    assert replica.kv_used_tokens <= 40


def test_no_prefix_cache_where_it_is_off(make_replica: MakeReplica) -> None:
    """Nothing stays behind."""
    replica = make_replica(prefix_caching=False)
    replica.submit(request("a", 8, 1, blocks="xy"), now_ns=0)
    drain(replica)
    assert replica.kv_used_tokens == 0


def test_a_long_generation_queues_again_after_a_slice(make_replica: MakeReplica) -> None:
    """Behind who waits meanwhile, with its prompt cached and its own tokens to prefill anew."""
    replica = make_replica(slice_tokens=4, max_batch_prefill_tokens=100)
    replica.submit(request("a", 8, 6, blocks="xy"), now_ns=0)
    events = drain(replica)
    assert events[:3] == [
        FirstToken("a", 8 * MS),
        Requeued("a", 38 * MS, 4),
        Resumed("a", 42 * MS, 5),  # 12 tokens, 8 of them cached
    ]
    end = finished(events)["a"]
    assert (end.at_ns, end.output_tokens, end.cached_tokens) == (52 * MS, 6, 0)
    assert replica.permits_in_use == 0


def test_a_requeued_request_waits_behind_others(make_replica: MakeReplica) -> None:
    """It gives its KV back and goes to the queue's end."""
    replica = make_replica(slice_tokens=4, kv_capacity_tokens=30)
    replica.submit(request("a", 10, 8), now_ns=0)
    replica.submit(request("b", 24, 3), now_ns=1)
    events = drain(replica)
    resumed = next(event for event in events if isinstance(event, Resumed))
    assert resumed.at_ns > finished(events)["b"].at_ns


def test_a_batch_that_requeues_as_a_whole_does_not_strand_the_queue(make_replica: MakeReplica) -> None:
    """The decode step owed after a prefill falls due only while there is a batch (found by the property)."""
    replica = make_replica(kv_capacity_tokens=120, max_batch_prefill_tokens=32, slice_tokens=8)
    replica.submit(request("a", 24, 17), now_ns=0)
    replica.submit(request("b", 1, 17), now_ns=0)
    assert set(finished(drain(replica))) == {"a", "b"}


def test_cancelling_a_running_request_waits_for_its_next_token(make_replica: MakeReplica) -> None:
    """Permit and KV are held until then."""
    replica = make_replica()
    replica.submit(request("a", 8, 100), now_ns=0)
    replica.advance(30 * MS)
    assert replica.tokens_made("a") == 3
    assert replica.cancel("a", now_ns=31 * MS)
    assert not replica.cancel("a", now_ns=31 * MS)
    assert (replica.permits_in_use, replica.batch_current_max_tokens) == (1, 107)
    assert drain(replica) == [Cancelled("a", 38 * MS, 4)]
    assert (replica.permits_in_use, replica.kv_used_tokens, replica.running) == (0, 0, 0)


def test_cancelling_a_queued_request_frees_its_permit_at_once(make_replica: MakeReplica) -> None:
    """It never runs, and who was behind it does."""
    replica = make_replica(kv_capacity_tokens=30)
    replica.submit(request("a", 10, 10), now_ns=0)
    replica.submit(request("b", 20, 5), now_ns=0)
    replica.submit(request("c", 5, 2), now_ns=0)
    assert replica.cancel("b", now_ns=1)
    assert (replica.permits_in_use, replica.waiting) == (2, 1)
    events = drain(replica)
    assert events[0] == Cancelled("b", 1, 0)
    assert set(finished(events)) == {"a", "c"}
    assert firsts(events)["c"] < finished(events)["a"].at_ns


def test_cancelling_during_prefill_is_noticed_at_the_first_token(make_replica: MakeReplica) -> None:
    """Chunks without a token tell nobody."""
    replica = make_replica(max_batch_prefill_tokens=10)
    replica.submit(request("a", 25, 5), now_ns=0)
    replica.cancel("a", now_ns=3 * MS)
    assert drain(replica) == [Cancelled("a", 25 * MS, 1)]


def test_cancelling_the_unknown_is_false(make_replica: MakeReplica) -> None:
    """Never submitted, or already over."""
    replica = make_replica()
    assert not replica.cancel("nobody", now_ns=0)


def test_departed_entries_do_not_pile_up_behind_a_blocked_head(make_replica: MakeReplica) -> None:
    """Clients that come and go while the head waits leave a bounded queue."""
    replica = make_replica(kv_capacity_tokens=30)
    replica.submit(request("a", 20, 11), now_ns=0)
    replica.submit(request("head", 20, 5), now_ns=0)
    for index in range(1000):
        replica.submit(request(f"{index}"), now_ns=1)
        replica.cancel(f"{index}", now_ns=1)
    assert len(replica._queue) < 100


def test_slowdown_stretches_the_next_steps(make_replica: MakeReplica) -> None:
    """The step under way keeps its length."""
    replica = make_replica()
    replica.submit(request("a", 8, 3), now_ns=0)
    replica.set_fault(now_ns=1 * MS, slowdown=3.0)
    assert finished(drain(replica))["a"].at_ns == (8 + 30 + 30) * MS


def test_a_hang_freezes_and_resumes(make_replica: MakeReplica) -> None:
    """Nothing happens while it lasts, though requests queue; then the step goes on where it was."""
    replica = make_replica()
    replica.submit(request("a", 8, 2), now_ns=0)
    replica.set_fault(now_ns=3 * MS, hang=True)
    replica.submit(request("b", 4, 1), now_ns=4 * MS)
    assert replica.next_event_ns() is None
    assert replica.advance(900 * MS) == []
    replica.set_fault(now_ns=1000 * MS, hang=False)
    events = drain(replica)
    assert firsts(events) == {"a": 1005 * MS, "b": 1009 * MS}


def test_a_hang_inside_a_leap_delays_all_that_follows(make_replica: MakeReplica) -> None:
    """Whole and part steps keep their lengths; the hang's is added once."""
    replica = make_replica()
    replica.submit(request("a", 8, 50), now_ns=0)
    replica.set_fault(now_ns=123 * MS, hang=True)
    assert replica.tokens_made("a") == 12
    replica.set_fault(now_ns=1123 * MS, hang=False)
    assert finished(drain(replica))["a"].at_ns == (8 + 490 + 1000) * MS


def test_a_hang_while_idle_starts_the_queue_when_it_ends(make_replica: MakeReplica) -> None:
    """Work that came meanwhile begins then."""
    replica = make_replica()
    replica.set_fault(now_ns=0, hang=True)
    replica.submit(request("a", 4, 1), now_ns=1 * MS)
    replica.set_fault(now_ns=10 * MS, hang=False)
    assert firsts(drain(replica)) == {"a": 14 * MS}


def test_refuse_answers_overloaded_to_everything(make_replica: MakeReplica) -> None:
    """Though permits are free."""
    replica = make_replica()
    replica.set_fault(now_ns=0, refuse=True)
    assert replica.submit(request("a"), now_ns=0) == Overloaded(0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request("a", 9_000, 2_000), "needs 10999 KV tokens"),
        (SimRequest(request_id="a", prompt_tokens=1, output_tokens=5, max_new_tokens=4), "impossible token"),
        (request("a", 7, 1, blocks="xy"), "more blocks"),
        (request("live"), "is live"),
    ],
)
def test_what_could_never_run_is_the_callers_error(
    make_replica: MakeReplica, bad: SimRequest, message: str
) -> None:
    """It would block the queue for ever."""
    replica = make_replica()
    replica.submit(request("live"), now_ns=0)
    with pytest.raises(ValueError, match=message):
        replica.submit(bad, now_ns=0)
    assert replica.permits_in_use == 1


def test_a_batch_holds_one_sequence_at_least() -> None:
    """A spec hands its limit on, None included, and refuses one that could run nothing."""
    assert ReplicaSpec(name="a", max_batch_size=3).limits().max_batch_size == 3
    assert ReplicaSpec(name="a").limits().max_batch_size is None
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, not 0"):
        ReplicaSpec(name="a", max_batch_size=0)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, not 0"):
        ReplicaLimits(kv_capacity_tokens=100, max_batch_size=0)


def test_time_does_not_run_backwards(make_replica: MakeReplica) -> None:
    """A driver that does so has a bug."""
    replica = make_replica()
    replica.advance(10)
    with pytest.raises(ValueError, match="backwards"):
        replica.advance(9)


def test_decode_steps_without_a_change_are_one_leap(make_replica: MakeReplica) -> None:
    """A thousand steps cost two stops; gauges read in between are right all the same."""
    replica = make_replica()
    replica.submit(request("a", 8, 1000), now_ns=0)
    assert replica.advance(8 * MS) == [FirstToken("a", 8 * MS)]
    assert replica.next_event_ns() == (8 + 9990) * MS
    assert replica.advance(508 * MS + 1) == []
    assert (replica.steps, replica.tokens_total, replica.tokens_made("a")) == (51, 51, 51)
    assert replica.next_event_ns() == (8 + 9990) * MS
    assert finished(drain(replica))["a"].at_ns == (8 + 9990) * MS
    assert (replica.steps, replica.tokens_total) == (1000, 1000)


def test_an_arrival_cuts_a_leap_at_the_end_of_the_step_under_way(make_replica: MakeReplica) -> None:
    """It is admitted there, as if every step had been taken by itself."""
    replica = make_replica()
    replica.submit(request("a", 8, 100), now_ns=0)
    replica.submit(request("b", 4, 1), now_ns=35 * MS)
    assert replica.tokens_made("a") == 3
    events = drain(replica)
    assert firsts(events)["b"] == (38 + 4) * MS
    assert finished(events)["a"].at_ns == (8 + 99 * 10 - 10 + 4) * MS  # b's prefill made one token of a's


def test_arrivals_behind_a_blocked_head_cut_nothing(make_replica: MakeReplica) -> None:
    """The queue's end changes nothing for the batch."""
    replica = make_replica(kv_capacity_tokens=120)
    replica.submit(request("a", 10, 100), now_ns=0)
    replica.submit(request("head", 50, 10), now_ns=10 * MS)
    replica.advance(100 * MS)
    assert replica.next_event_ns() == (10 + 990) * MS
    replica.submit(request("tail", 1, 1), now_ns=200 * MS)
    assert replica.next_event_ns() == (10 + 990) * MS


def test_a_leap_varies_as_its_steps_together_would() -> None:
    """Mean and spread of 100 noisy decode steps are alike whether leapt over or taken one by one."""

    def times(*, step_events: bool) -> list[float]:
        limits = ReplicaLimits(kv_capacity_tokens=450_000)
        found = []
        for seed in range(400):
            replica = SimReplica(TOY, limits, rng=Random(seed), noise=0.2, step_events=step_events)
            replica.submit(request("a", 1, 101), now_ns=0)
            found.append(finished(drain(replica))["a"].decode_ns / MS)
        return found

    for sample in (times(step_events=False), times(step_events=True)):
        assert fmean(sample) == pytest.approx(1000, rel=0.005)
        assert stdev(sample) == pytest.approx(10 * 0.2 * 100**0.5, rel=0.1)


def test_real_hardware_reproduces_its_model() -> None:
    """A lone 1,000-token prompt on an A100: prefill, then decode steps whose context grows."""
    hardware = hardware_named("a100-80g/llama-3-8b")
    replica = SimReplica(hardware, ReplicaLimits(kv_capacity_tokens=450_000), rng=Random(0))
    replica.submit(request("a", 1000, 3), now_ns=0)
    end = finished(drain(replica))["a"]
    assert end.prefill_ns / MS == pytest.approx(hardware.prefill_ms(1000), abs=1e-3)
    expected = hardware.decode_ms(1, 1001) + hardware.decode_ms(1, 1002)
    assert end.decode_ns / MS == pytest.approx(expected, abs=1e-3)
