"""An engine of several lanes: side by side, one cache, one queue before them, events in order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from extproc.sim.events import Accepted, Cancelled, Finished, FirstToken, Overloaded, SimRequest, Stepped
from extproc.sim.parallel import ParallelReplica, replica_of
from extproc.sim.replica import SimReplica
from extproc.sim.slots import ReplicaLimits
from tests.sim.conftest import TOY, drain


def engine(parallel: int = 4, **limits: int | None) -> SimReplica:
    facts = {"kv_capacity_tokens": 10_000, "prefill_parallel": parallel, **limits}
    return replica_of(TOY, ReplicaLimits(**facts), rng=Random(1), step_events=True)  # type: ignore[arg-type]


def ask(name: int, prompt: int = 100, output: int = 3, **more: object) -> SimRequest:
    return SimRequest(
        request_id=name,
        prompt_tokens=prompt,
        output_tokens=output,
        max_new_tokens=output,
        **more,  # type: ignore[arg-type]
    )


def firsts(events: Sequence[object]) -> dict[object, int]:
    return {each.request_id: each.at_ns for each in events if isinstance(each, FirstToken)}


def test_four_prompts_take_as_long_as_one() -> None:
    """What one lane does costs the others nothing; with one lane they come one after the other."""
    side, alone, serial = engine(), engine(), engine(1, max_batch_prefill_tokens=100)
    alone.submit(ask(1), now_ns=0)
    took = firsts(drain(alone))[1]
    for replica in (side, serial):
        for name in range(4):
            assert isinstance(replica.submit(ask(name), now_ns=0), Accepted)
    assert set(firsts(drain(side)).values()) == {took}
    assert max(firsts(drain(serial)).values()) > 2 * took
    assert type(serial) is SimReplica


def test_what_finds_no_lane_waits_first_come_first_served() -> None:
    """`max_batch_size` is shared out; the next begins when one ends, and says how long it waited."""
    replica = engine(2, max_batch_size=2)
    for name in range(4):
        replica.submit(ask(name), now_ns=0)
    assert (replica.running, replica.waiting, replica.permits_in_use) == (2, 2, 4)
    events = drain(replica)
    ended = [each for each in events if isinstance(each, Finished)]
    assert [each.request_id for each in ended] == [0, 1, 2, 3]
    assert ended[2].admitted_ns == ended[0].at_ns
    assert ended[2].queue_ns > 0
    assert [each.at_ns for each in events] == sorted(each.at_ns for each in events)


def test_a_step_is_of_its_lane_alone() -> None:
    """A shell that counts tokens by steps counts each sequence's own."""
    replica = engine(2)
    replica.submit(ask(0, output=5), now_ns=0)
    replica.submit(ask(1, prompt=2_000, output=2), now_ns=0)
    events = drain(replica)
    lanes = {each.request_id: each.lane for each in events if isinstance(each, FirstToken)}
    assert lanes[0] != lanes[1]
    made = [each for each in events if isinstance(each, Stepped) and each.lane == lanes[0] and each.batch]
    assert len(made) == 5


def test_the_cache_is_one_for_all_lanes() -> None:
    """What one lane has served, another finds."""
    replica = engine(2)
    blocks = ("a", "b", "c")
    replica.submit(ask(0, blocks=blocks), now_ns=0)
    end_ns = max(each.at_ns for each in drain(replica))
    replica.submit(ask(1, prompt=500, output=50), now_ns=end_ns)
    replica.submit(ask(2, blocks=blocks), now_ns=end_ns)
    found = {each.request_id: each.cached_tokens for each in drain(replica) if isinstance(each, FirstToken)}
    assert found == {1: 0, 2: 48}


def test_a_client_leaves_before_a_lane_and_in_one() -> None:
    """Both are told, and nothing is left behind."""
    replica = engine(2, max_batch_size=2)
    for name in range(3):
        replica.submit(ask(name, output=50), now_ns=0)
    assert replica.cancel(2, now_ns=1)
    assert replica.cancel(0, now_ns=1)
    assert not replica.cancel(7, now_ns=1)
    gone = {each.request_id for each in drain(replica) if isinstance(each, Cancelled)}
    assert gone == {0, 2}
    assert replica.permits_in_use == 0
    with pytest.raises(KeyError):
        replica.tokens_made(0)


def test_faults_are_of_all_lanes() -> None:
    """Hung, nothing moves; refusing, nothing is taken; slow, everything is."""
    replica = engine(2)
    replica.submit(ask(0), now_ns=0)
    replica.set_fault(now_ns=0, hang=True)
    assert replica.next_event_ns() is None
    replica.set_fault(now_ns=1_000, hang=False, refuse=True)
    assert isinstance(replica.submit(ask(1), now_ns=1_000), Overloaded)
    replica.set_fault(now_ns=1_000, refuse=False, slowdown=3.0)
    assert replica.slowdown == 3.0
    assert drain(replica)


def test_permits_bound_all_lanes_together() -> None:
    """The engine's own limit, not a lane's."""
    replica = engine(2, max_concurrent_requests=3)
    assert isinstance(replica, ParallelReplica)
    answers = [replica.submit(ask(name), now_ns=0) for name in range(4)]
    assert [type(each) for each in answers] == [Accepted, Accepted, Accepted, Overloaded]


def test_memory_that_another_lane_gives_back_starts_who_waits() -> None:
    """A lane whose request does not fit looks again when any lane frees memory."""
    replica = engine(2, kv_capacity_tokens=1_000)
    replica.submit(ask(0, prompt=900, output=3), now_ns=0)
    replica.submit(ask(1, prompt=900, output=3), now_ns=0)
    ended = [each.request_id for each in drain(replica) if isinstance(each, Finished)]
    assert ended == [0, 1]
