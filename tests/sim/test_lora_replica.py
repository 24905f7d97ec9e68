"""Simulated replicas with LoRA adapters: places, loads, what waits, and equality with others without them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.sim.events import Accepted, Event, Finished, FirstToken, SimRequest
from extproc.sim.lora_replica import LoraReplica
from extproc.sim.parallel import replica_of
from extproc.sim.slots import ReplicaLimits
from extproc.sim.timing import hardware_named

HARDWARE = hardware_named("a100-80g/llama-3-8b")
LOAD_MS = 400.0


def replica(*, places: int = 2, **limits: Any) -> LoraReplica:
    made = replica_of(
        HARDWARE,
        ReplicaLimits(kv_capacity_tokens=50_000, adapter_places=places, adapter_load_ms=LOAD_MS, **limits),
        rng=Random(1),
    )
    assert isinstance(made, LoraReplica)
    return made


def asked(number: int, adapter: str = "", *, output: int = 20) -> SimRequest:
    return SimRequest(
        request_id=number, prompt_tokens=100, output_tokens=output, max_new_tokens=output, adapter=adapter
    )


def played(engine: LoraReplica, *, until_ns: int | None = None) -> list[Event]:
    """All that happens by itself, up to a time."""
    found: list[Event] = []
    while (at_ns := engine.next_event_ns()) is not None and (until_ns is None or at_ns <= until_ns):
        found += engine.advance(at_ns)
    return found


def firsts(events: list[Event]) -> dict[Any, int]:
    return {each.request_id: each.at_ns for each in events if isinstance(each, FirstToken)}


def test_a_first_request_waits_for_the_load_and_the_next_does_not() -> None:
    """The step that admits it takes so much longer."""
    cold, warm, base = replica(), replica(), replica()
    base.submit(asked(0), now_ns=0)
    cold.submit(asked(0, "law"), now_ns=0)
    plain_ns, loaded_ns = firsts(played(base))[0], firsts(played(cold))[0]
    assert loaded_ns - plain_ns == LOAD_MS * 1e6
    warm.submit(asked(0, "law"), now_ns=0)
    played(warm)
    begin_ns = 10**10
    warm.submit(asked(1, "law"), now_ns=begin_ns)
    assert firsts(played(warm))[1] - begin_ns == plain_ns
    assert (warm.adapters.loads, warm.adapters.drops) == (1, 0)


def test_with_all_places_at_work_another_waits_and_others_pass_it() -> None:
    """The base and those that are loaded are not held up; the least recently used goes when it is idle."""
    engine = replica()
    for number, name in enumerate(["law", "code", "med", "law", ""]):
        assert isinstance(engine.submit(asked(number, name, output=500), now_ns=0), Accepted)
    early = firsts(played(engine, until_ns=2 * 10**9))
    assert set(early) == {0, 1, 3, 4}
    assert engine.waiting == 1
    assert set(engine.adapters.at_work) == {"law", "code"}
    rest = played(engine)
    assert 2 in firsts(rest)
    assert (engine.adapters.loads, engine.adapters.drops) == (3, 1)
    assert "med" in engine.adapters.loaded


def test_who_leaves_gives_the_place_back() -> None:
    """While it runs or waits."""
    engine = replica(places=1)
    engine.submit(asked(0, "law", output=900), now_ns=0)
    engine.submit(asked(1, "code"), now_ns=0)
    engine.submit(asked(2, "med"), now_ns=0)
    engine.cancel(0, now_ns=10**9)
    engine.cancel(2, now_ns=10**9)
    assert 1 in firsts(played(engine))
    assert (engine.adapters.at_work, engine.adapters.loaded) == ((), ("code",))


def test_adapters_need_one_lane() -> None:
    """Several would have places each."""
    with pytest.raises(ValueError, match="set prefill_parallel to 1"):
        ReplicaLimits(kv_capacity_tokens=1000, adapter_places=1, prefill_parallel=2)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["", "a", "b", "c"]), st.integers(1, 1500)), max_size=25
)


@given(REQUESTS, st.integers(1, 3))
def test_places_hold_and_everybody_is_served(requests: list[tuple[int, str, int]], places: int) -> None:
    """However they come: all end, no place is left taken, and no more than the places are loaded."""
    engine, now_ns, events = replica(places=places), 0, []
    for number, (gap_ms, name, output) in enumerate(requests):
        now_ns += gap_ms * 1_000_000
        events += played(engine, until_ns=now_ns)
        engine.submit(asked(number, name, output=output), now_ns=now_ns)
        assert len(engine.adapters.loaded) <= places
    events += played(engine)
    assert {each.request_id for each in events if isinstance(each, Finished)} == set(range(len(requests)))
    assert engine.adapters.at_work == ()
    assert len(engine.adapters.loaded) == engine.adapters.loads - engine.adapters.drops <= places


@given(REQUESTS)
def test_without_adapters_it_is_as_every_replica(requests: list[tuple[int, str, int]]) -> None:
    """Event by event, to the nanosecond."""
    limits = ReplicaLimits(kv_capacity_tokens=50_000)
    one, other = replica(), replica_of(HARDWARE, limits, rng=Random(1))
    now_ns = 0
    for number, (gap_ms, _, output) in enumerate(requests):
        now_ns += gap_ms * 1_000_000
        for each in (one, other):
            each.submit(asked(number, output=output), now_ns=now_ns)
    assert one.advance(10**13) == other.advance(10**13)
