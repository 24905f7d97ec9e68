"""What others use of a card, told apart from the engine's own use."""

from __future__ import annotations

from steersman_agent.figures import GpuFigures, MigDevice, ProcessUse, ReplicaView
from steersman_agent.gpus import own_pids_of
from steersman_agent.others import BUSY_READINGS_MAX, IDLE_READINGS_MIN, Others, working
from steersman_agent.state import ReplicaState

GIB = 2**30


def card(percent: int, *uses: tuple[int, int], mig: bool = False) -> GpuFigures:
    return GpuFigures(
        uuid="GPU-0",
        index=0,
        utilization_percent=percent,
        processes=tuple(ProcessUse(pid=pid, memory_bytes=gib * GIB) for pid, gib in uses),
        mig_devices=(MigDevice(uuid="MIG-0"),) if mig else (),
    )


def told(
    others: Others, gpu: GpuFigures, own: frozenset[int] | None, works: bool | None
) -> tuple[object, object]:
    (seen,) = others.look([gpu], own, {"GPU-0": works})
    memory = seen.memory_others_bytes
    return memory if memory is None else memory // GIB, seen.utilization_others_percent


def view(running: int | None, waiting: int | None = 0, uuid: str = "GPU-0") -> ReplicaView:
    return ReplicaView(
        address="10.0.0.1:80",
        pool="p",
        zone="",
        region="",
        engine="vllm",
        state=ReplicaState.READY,
        detail="",
        models=(),
        adapters=(),
        running=running,
        waiting=waiting,
        gpu_uuids=(uuid,),
    )


def test_the_engines_own_use_is_no_others() -> None:
    """A card that is full and busy with its own engine alone is nobody else's."""
    others = Others()
    for works in (True, False, True):
        assert told(others, card(100, (7, 70)), frozenset({7}), works) == (0, 0)


def test_a_stranger_is_seen_while_the_replica_is_idle_and_remembered_while_it_works() -> None:
    """NVML tells who holds memory, and not who computes: a busy card says that only of an idle replica."""
    others, busy = Others(), card(100, (7, 20), (9, 59))
    seen = [told(others, busy, frozenset({7}), False) for _ in range(IDLE_READINGS_MIN)]
    assert seen == [*[(59, None)] * (IDLE_READINGS_MIN - 1), (59, 100)]
    assert told(others, busy, frozenset({7}), True) == (59, 100)
    assert told(others, card(0, (7, 20)), frozenset({7}), True) == (0, 0), "it has left"
    for _ in range(BUSY_READINGS_MAX + 1):
        told(others, busy, frozenset({7}), True)
    assert told(others, busy, frozenset({7}), True) == (59, None), "too long ago"


def test_in_a_container_memory_is_unknown_and_idle_work_is_still_seen() -> None:
    """Its own processes are not seen there, so whose memory it is cannot be told."""
    others = Others()
    for _ in range(IDLE_READINGS_MIN):
        seen = told(others, card(80), None, False)
    assert seen == (None, 80)


def test_slices_and_cards_without_a_replica_are_left_alone() -> None:
    """A slice does not disturb its neighbour."""
    assert told(Others(), card(100, (9, 59), mig=True), frozenset(), False) == (None, None)
    (seen,) = Others().look([card(100, (9, 59))], frozenset(), {})
    assert seen.memory_others_bytes is None


def test_who_works_on_a_card() -> None:
    """Any of its replicas; unknown where one does not say and none surely works."""
    assert working([view(0), view(1)]) == {"GPU-0": True}
    assert working([view(0), view(0)]) == {"GPU-0": False}
    assert working([view(0), view(None, None)]) == {"GPU-0": None}
    assert working([view(None, None), view(0, 2)]) == {"GPU-0": True}
    assert working([view(0), view(1, uuid="GPU-1")]) == {"GPU-0": False, "GPU-1": True}


def test_own_processes_are_known_when_every_replicas_are() -> None:
    """One that is not found might be the stranger."""
    assert own_pids_of({1: frozenset({7}), 2: frozenset({8, 9})}, (1, 2)) == frozenset({7, 8, 9})
    assert own_pids_of({1: frozenset({7})}, (1, 2)) is None
    assert own_pids_of({1: frozenset({7}), 2: frozenset()}, (1, 2)) is None
    assert own_pids_of({}, ()) is None
