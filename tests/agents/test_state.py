from __future__ import annotations

from itertools import product

import pytest

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.state import TABLE, Channel, ReplicaState, Symptom, shown, worst

A, M, S, U = Symptom.ANSWERED, Symptom.MOVED, Symptom.SLOW, Symptom.UNWELL
L, T, R, W = Symptom.LOADING, Symptom.TIMED_OUT, Symptom.REFUSED, Symptom.WRONG_MODEL


def walk(*signals: Symptom) -> list[ReplicaState]:
    channel = Channel("test")
    states = []
    for at, signal in enumerate(signals):
        channel.feed(signal, float(at))
        states.append(channel.state)
    return states


@pytest.mark.parametrize(
    ("signals", "end"),
    [
        ((R, R), ReplicaState.LOADING),  # refused before it was ever ready
        ((R, A), ReplicaState.READY),
        ((A, R), ReplicaState.GONE),  # refused after it was
        ((A, R, A), ReplicaState.GONE),  # two successes to come back
        ((A, R, A, A), ReplicaState.READY),
        ((A, T), ReplicaState.READY),  # one timeout is an accident
        ((A, T, A, T), ReplicaState.READY),
        ((A, T, T), ReplicaState.HUNG),
        ((T, T), ReplicaState.HUNG),
        ((A, T, T, A), ReplicaState.HUNG),
        ((A, T, T, A, A), ReplicaState.READY),
        ((A, T, T, M, M), ReplicaState.READY),
        ((A, T, T, R), ReplicaState.GONE),
        ((A, U), ReplicaState.READY),
        ((A, U, U), ReplicaState.DEGRADED),
        ((A, U, U, A, A), ReplicaState.DEGRADED),
        ((A, U, U, A, A, A), ReplicaState.READY),
        ((A, U, U, M, M, M, M), ReplicaState.DEGRADED),  # working says nothing about how well
        ((A, U, U, A, M, A, M, A), ReplicaState.READY),  # and does not get in the way of those who do
        ((A, T, M, T), ReplicaState.READY),
        ((A, T, T, A, M), ReplicaState.READY),
        ((A, S, U), ReplicaState.DEGRADED),  # slow and unwell add up
        ((A, S, S), ReplicaState.READY),
        ((A, S, S, S), ReplicaState.DEGRADED),
        ((A, W), ReplicaState.WRONG_MODEL),
        ((A, W, A), ReplicaState.READY),
        ((A, L), ReplicaState.LOADING),
        ((L, A), ReplicaState.READY),
    ],
)
def test_the_way_through_the_table(signals: tuple[Symptom, ...], end: ReplicaState) -> None:
    """Hysteresis, row by row."""
    assert walk(*signals)[-1] is end


def test_every_state_but_draining_has_a_row() -> None:
    """Draining is laid over; a channel is never in it, and no rule leads there."""
    assert set(TABLE) == set(ReplicaState) - {ReplicaState.DRAINING}
    assert all(rule[1] in TABLE and rule[0] >= 1 for row in TABLE.values() for rule in row.values())


@pytest.mark.parametrize("state", TABLE)
def test_every_trouble_can_be_got_over(state: ReplicaState) -> None:
    """From each state enough answers lead to ready: nothing is for ever."""
    channel = Channel("test")
    channel.state = state
    for _ in range(5):
        channel.feed(A, 0.0)
    assert channel.state is ReplicaState.READY


def test_the_states_are_the_contracts() -> None:
    """Number for number."""
    assert {state.name.replace("UNKNOWN", "STATE_UNKNOWN"): int(state) for state in ReplicaState} == dict(
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
    covered = {ReplicaState.READY, ReplicaState.DEGRADED}
    for state, draining in product(ReplicaState, (False, True)):
        expected = ReplicaState.DRAINING if draining and state in covered else state
        assert shown(state, draining=draining) is expected
