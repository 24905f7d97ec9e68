"""What holds of a replica whatever is done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.predict.timing import Timing
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
from extproc.sim.timing import Hardware
from tests.sim.conftest import MS, TOY
from tests.stand.examples import examples

# Every term of the timing counts, so that each step of a run takes longer than the one before.
UNEVEN = Hardware(
    name="uneven",
    source="made up",
    kv_capacity_tokens=10_000,
    overhead_ms=0.1,
    timing=Timing(3.7, 0.31, 0.0123, 1.3, 0.71, 0.0),
)

Actions = list[tuple[object, ...]]
SUBMIT = st.tuples(
    st.just("submit"),
    st.integers(1, 60),  # prompt
    st.sampled_from([45, 30, 8, 1]),  # limit
    st.integers(0, 20),  # how much shorter the answer is
    st.text(alphabet="ab", max_size=15),  # blocks
)
WAIT = st.tuples(st.just("wait"), st.integers(0, 300 * MS))
ACTIONS = st.lists(
    # Mostly load and time: a replica that hangs or refuses most of the time shows little.
    st.one_of(
        SUBMIT,
        WAIT,
        SUBMIT,
        WAIT,
        SUBMIT,
        WAIT,
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("hang"), st.integers(0, 80 * MS)),
        st.tuples(st.just("slow"), st.sampled_from([1.0, 0.5, 3.7])),
        st.tuples(st.just("refuse"), st.integers(0, 80 * MS)),
    ),
    min_size=12,
    max_size=40,
)
LIMITS = st.builds(
    ReplicaLimits,
    kv_capacity_tokens=st.sampled_from([120, 600]),
    max_concurrent_requests=st.just(6),
    max_batch_prefill_tokens=st.sampled_from([32, 2]),
    max_batch_size=st.sampled_from([None, 3, 2, 1]),
    slice_tokens=st.sampled_from([1024, 8]),
    block_tokens=st.just(4),
)


PLAIN = SimRequest(request_id=-1, prompt_tokens=1, output_tokens=1, max_new_tokens=1)


@dataclass
class Played:
    """One run: what came out, and the gauges at every stop."""

    replica: SimReplica
    events: list[Event] = field(default_factory=list)
    gauges: list[tuple[int, ...]] = field(default_factory=list)
    accepted: set[int] = field(default_factory=set)

    def run_to(self, until_ns: int) -> None:
        self.events.extend(self.replica.advance(until_ns))
        self.check()

    def check(self) -> None:
        replica = self.replica
        assert 0 <= replica.batch_current_max_tokens <= replica.kv_used_tokens
        assert replica.kv_used_tokens <= replica.limits.kv_capacity_tokens
        assert 0 <= replica.permits_in_use <= 6
        assert 0 <= replica.running <= (replica.limits.max_batch_size or 6)
        assert replica.waiting >= 0

    def note(self) -> None:
        replica = self.replica
        self.gauges.append(
            (
                replica.steps,
                replica.tokens_total,
                replica.running,
                replica.waiting,
                replica.permits_in_use,
                replica.kv_used_tokens,
                replica.batch_current_max_tokens,
                *(replica.tokens_made(index) for index in sorted(self.live())),
            )
        )

    def live(self) -> set[int]:
        gone = {event.request_id for event in self.events if isinstance(event, Finished | Cancelled)}
        return {index for index in self.accepted if index not in gone}


def play(
    actions: Actions,
    *,
    limits: ReplicaLimits,
    stopping: bool = True,
    step_events: bool = False,
    noise: float = 0.0,
    hardware: Hardware = UNEVEN,
) -> Played:
    """Drive a small replica, at every event or (not `stopping`) only where something is done."""
    replica = SimReplica(hardware, limits, rng=Random(3), noise=noise, step_events=step_events)
    played = Played(replica)
    now_ns = 0

    for index, action in enumerate(actions):
        match action:
            case ("submit", int(prompt), int(limit), int(shorter), str(blocks)):
                sim = SimRequest(
                    request_id=index,
                    prompt_tokens=prompt,
                    output_tokens=max(1, limit - shorter),
                    max_new_tokens=limit,
                    blocks=blocks[: prompt // 4],
                )
                if isinstance(replica.submit(sim, now_ns=now_ns), Accepted):
                    played.accepted.add(index)
            case ("cancel", int(which)):
                replica.cancel(which, now_ns=now_ns)
            case ("wait", int(wait_ns)):
                now_ns += wait_ns
                while stopping and (due_ns := replica.next_event_ns()) is not None and due_ns <= now_ns:
                    played.run_to(due_ns)
            case ("slow", float(slowdown)):
                replica.set_fault(now_ns=now_ns, slowdown=slowdown)
            case ("hang", int(wait_ns)):
                replica.set_fault(now_ns=now_ns, hang=True)
                now_ns += wait_ns
                replica.set_fault(now_ns=now_ns, hang=False)
            case ("refuse", int(wait_ns)):
                replica.set_fault(now_ns=now_ns, refuse=True)
                assert isinstance(replica.submit(PLAIN, now_ns=now_ns), Overloaded)
                now_ns += wait_ns
                replica.set_fault(now_ns=now_ns, refuse=False)
        played.run_to(now_ns)
        played.note()
    while (due_ns := replica.next_event_ns()) is not None:
        played.run_to(due_ns)
    return played


@examples(150)
@given(ACTIONS, LIMITS, st.booleans())
def test_the_books_balance_whatever_happens(
    actions: Actions, limits: ReplicaLimits, step_events: bool
) -> None:
    """KV within capacity, all accepted requests end once, nothing is held at rest, tokens add up."""
    played = play(actions, limits=limits, step_events=step_events, noise=0.2)
    replica, events = played.replica, played.events
    ended = [event.request_id for event in events if isinstance(event, Finished | Cancelled)]
    assert sorted(ended, key=repr) == sorted(played.accepted, key=repr)
    assert (replica.permits_in_use, replica.waiting, replica.running) == (0, 0, 0)
    assert replica.batch_current_max_tokens == 0
    assert replica.kv_used_tokens == replica.cache.used_tokens
    made = sum(event.output_tokens for event in events if isinstance(event, Finished))
    made += sum(event.tokens_made for event in events if isinstance(event, Cancelled))
    assert made == replica.tokens_total
    times = [event.at_ns for event in events]
    assert times == sorted(times)


@examples(60)
@given(ACTIONS, LIMITS, st.booleans())
def test_equal_inputs_give_equal_events_however_time_is_cut(
    actions: Actions, limits: ReplicaLimits, step_events: bool
) -> None:
    """Looking only where something is done shows the same events as stopping at each."""
    runs = [
        play(actions, limits=limits, stopping=stopping, step_events=step_events, noise=0.2)
        for stopping in (True, False)
    ]
    assert runs[0].events == runs[1].events
    assert runs[0].gauges == runs[1].gauges


@examples(400)
@given(ACTIONS, LIMITS, st.sampled_from([UNEVEN, TOY]))
def test_leaps_show_what_single_steps_show(
    actions: Actions, limits: ReplicaLimits, hardware: Hardware
) -> None:
    """Without noise: the same events at the same nanosecond, and the same gauges at every call."""
    leaping = play(actions, limits=limits, hardware=hardware)
    stepping = play(actions, limits=limits, hardware=hardware, step_events=True)
    assert leaping.events == [event for event in stepping.events if not isinstance(event, Stepped)]
    assert leaping.gauges == stepping.gauges
    assert leaping.replica.steps == stepping.replica.steps


@examples(60)
@given(ACTIONS, LIMITS)
def test_a_shell_that_counts_steps_knows_every_token(actions: Actions, limits: ReplicaLimits) -> None:
    """The order within a step lets a reader derive each sequence's tokens without asking."""
    made: dict[object, int] = {}
    running: set[object] = set()
    for event in play(actions, limits=limits, step_events=True, noise=0.2).events:
        match event:
            case Stepped():
                for key in running:
                    made[key] += 1
            case FirstToken(key, _):
                made[key] = 1
                running.add(key)
            case Resumed(key, _, tokens):
                made[key] += 1
                assert made[key] == tokens
                running.add(key)
            case Requeued(key, _, tokens):
                made[key] += key in running and made[key] < tokens
                assert made[key] == tokens
                running.discard(key)
            case Finished():
                key = event.request_id
                made[key] += event.at_ns > event.first_token_ns and made[key] < event.output_tokens
                assert made[key] == event.output_tokens
                running.discard(key)
            case Cancelled(key, _, _):
                running.discard(key)
