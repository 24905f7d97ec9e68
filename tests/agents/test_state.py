from __future__ import annotations

from itertools import product

import pytest

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.state import TABLE, Channel, Signal, State, shown, worst

A, M, S, U = Signal.ANSWERED, Signal.MOVED, Signal.SLOW, Signal.UNWELL
L, T, R, W = Signal.LOADING, Signal.TIMED_OUT, Signal.REFUSED, Signal.WRONG_MODEL


def walk(*signals: Signal) -> list[State]:
    channel = Channel("test")
    states = []
    for at, signal in enumerate(signals):
        channel.feed(signal, float(at))
        states.append(channel.state)
    return states


@pytest.mark.parametrize(
    ("signals", "end"),
    [
        ((R, R), State.LOADING),  # refused before it was ever ready
        ((R, A), State.READY),
        ((A, R), State.GONE),  # refused after it was
        ((A, R, A), State.GONE),  # two successes to come back
        ((A, R, A, A), State.READY),
        ((A, T), State.READY),  # one timeout is an accident
        ((A, T, A, T), State.READY),
        ((A, T, T), State.HUNG),
        ((T, T), State.HUNG),
        ((A, T, T, A), State.HUNG),
        ((A, T, T, A, A), State.READY),
        ((A, T, T, M, M), State.READY),
        ((A, T, T, R), State.GONE),
        ((A, U), State.READY),
        ((A, U, U), State.DEGRADED),
        ((A, U, U, A, A), State.DEGRADED),
        ((A, U, U, A, A, A), State.READY),
        ((A, U, U, M, M, M, M), State.DEGRADED),  # working says nothing about how well
        ((A, U, U, A, M, A, M, A), State.READY),  # and does not get in the way of those who do
        ((A, T, M, T), State.READY),
        ((A, T, T, A, M), State.READY),
        ((A, S, U), State.DEGRADED),  # slow and unwell add up
        ((A, S, S), State.READY),
        ((A, S, S, S), State.DEGRADED),
        ((A, W), State.WRONG_MODEL),
        ((A, W, A), State.READY),
        ((A, L), State.LOADING),
        ((L, A), State.READY),
    ],
)
def test_the_way_through_the_table(signals: tuple[Signal, ...], end: State) -> None:
    """Hysteresis, row by row."""
    assert walk(*signals)[-1] is end


def test_every_state_but_draining_has_a_row() -> None:
    """Draining is laid over; a channel is never in it, and no rule leads there."""
    assert set(TABLE) == set(State) - {State.DRAINING}
    assert all(rule[1] in TABLE and rule[0] >= 1 for row in TABLE.values() for rule in row.values())


@pytest.mark.parametrize("state", TABLE)
def test_every_trouble_can_be_got_over(state: State) -> None:
    """From each state enough answers lead to ready: nothing is for ever."""
    channel = Channel("test")
    channel.state = state
    for _ in range(5):
        channel.feed(A, 0.0)
    assert channel.state is State.READY


def test_the_states_are_the_contracts() -> None:
    """Number for number."""
    assert {state.name.replace("UNKNOWN", "STATE_UNKNOWN"): int(state) for state in State} == dict(
        pb.State.items()
    )


def test_the_worst_channel_names_the_state_and_says_why() -> None:
    """A page that answers does not make up for a prompt that hangs."""
    metrics, generation = Channel("metrics"), Channel("generation")
    metrics.feed(A, 0.0)
    for _ in range(2):
        generation.feed(T, 0.0, "no answer")
    assert worst((metrics, generation)) is generation
    assert generation.detail == "generation: no answer"
    generation.reset(1.0)
    assert worst((metrics, generation)) is metrics


def test_heading_tells_that_more_evidence_is_awaited() -> None:
    """One timeout asks for the next look at once; a settled state does not."""
    channel = Channel("test")
    channel.feed(A, 0.0)
    assert not channel.heading
    channel.feed(T, 1.0)
    assert channel.heading
    channel.feed(T, 2.0)
    assert not channel.heading
    channel.feed(A, 3.0)
    assert channel.heading


def test_draining_covers_service_and_hides_no_trouble() -> None:
    """A drained replica that is gone is gone."""
    covered = {State.READY, State.DEGRADED}
    for state, draining in product(State, (False, True)):
        expected = State.DRAINING if draining and state in covered else state
        assert shown(state, draining=draining) is expected
