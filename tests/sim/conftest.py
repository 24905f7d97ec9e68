"""A toy replica with round numbers, and a way to run simulated servers under real clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from extproc.core.predict.timing import Timing
from extproc.sim.events import Event
from extproc.sim.listening import ReplicaSpec, RunningReplicas, start_replicas
from extproc.sim.replica import ReplicaLimits, SimReplica
from extproc.sim.timing import Hardware
from tests.stand.waits import PATIENCE_S

MS = 1_000_000

# One millisecond a prompt token, ten a decode step: times in tests can be done in the head.
TOY = Hardware(
    name="toy",
    source="made up",
    kv_capacity_tokens=10_000,
    timing=Timing(10.0, 0.0, 0.0, 0.0, 1.0, 0.0),
)

MakeReplica = Callable[..., SimReplica]


@pytest.fixture
def make_replica() -> MakeReplica:
    """A toy replica; keyword arguments are its limits, or `noise`, `slowdown`, `step_events`."""

    def make(**settings: Any) -> SimReplica:
        own = {name: settings.pop(name) for name in ("noise", "slowdown", "step_events") if name in settings}
        limits = {"kv_capacity_tokens": 10_000, "block_tokens": 4, **settings}
        return SimReplica(TOY, ReplicaLimits(**limits), rng=Random(7), **own)

    return make


def drain(replica: SimReplica, *, until_ns: int | None = None) -> list[Event]:
    """All events until the replica rests (or until a time)."""
    events: list[Event] = []
    while (due_ns := replica.next_event_ns()) is not None and (until_ns is None or due_ns <= until_ns):
        events += replica.advance(due_ns)
    return events


@contextmanager
def serving(*specs: ReplicaSpec) -> Iterator[RunningReplicas]:
    """Replicas on a loop of their own in a thread, for clients that block."""
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def run() -> None:
        stop = asyncio.Event()
        async with await start_replicas(specs) as running:
            box.update(running=running, stop=stop, loop=asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S), "the replicas did not start"
    try:
        yield box["running"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
