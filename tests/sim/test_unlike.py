"""Engines that are not as modelled: lanes that share a card, other queues, other caches, stalls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from extproc.sim.engine import SimEngine
from extproc.sim.events import Finished, FirstToken, SimRequest
from extproc.sim.parallel import replica_of
from extproc.sim.prefix_cache import PrefixCache
from extproc.sim.replica import SimReplica
from extproc.sim.slots import ReplicaLimits
from extproc.sim.spec import ReplicaSpec
from tests.sim.conftest import TOY, drain


def engine(**limits: object) -> SimReplica:
    facts = {"kv_capacity_tokens": 10_000, **limits}
    return replica_of(TOY, ReplicaLimits(**facts), rng=Random(1))  # type: ignore[arg-type]


def ask(name: int, prompt: int = 100, output: int = 3, blocks: Sequence[str] = ()) -> SimRequest:
    return SimRequest(
        request_id=name, prompt_tokens=prompt, output_tokens=output, max_new_tokens=output, blocks=blocks
    )


def firsts(replica: SimReplica) -> dict[object, int]:
    return {each.request_id: each.at_ns for each in drain(replica) if isinstance(each, FirstToken)}


@pytest.mark.parametrize(("interference", "times"), [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)])
def test_a_second_prefill_costs_what_is_said(interference: float, times: float) -> None:
    """Beside one under way a prefill takes as much longer as the lanes share."""
    alone, side = engine(), engine(prefill_parallel=2, prefill_interference=interference)
    alone.submit(ask(0), now_ns=0)
    took = firsts(alone)[0]
    side.submit(ask(0), now_ns=0)
    side.submit(ask(1), now_ns=0)
    found = firsts(side)
    assert found[0] == took
    assert found[1] == pytest.approx(times * took, abs=2)


def test_lanes_that_decode_cost_a_prefill_nothing() -> None:
    """Only prompts under way share the card."""
    replica = engine(prefill_parallel=2, prefill_interference=1.0)
    replica.submit(ask(0, output=500), now_ns=0)
    first = firsts_until(replica, 0)
    replica.submit(ask(1), now_ns=first)
    assert firsts(replica)[1] - first == first


def firsts_until(replica: SimReplica, name: int) -> int:
    """Runs to a request's first token and no further."""
    while (at := replica.next_event_ns()) is not None:
        for event in replica.advance(at):
            if isinstance(event, FirstToken) and event.request_id == name:
                return event.at_ns
    raise AssertionError("no first token")


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_shortest_goes_first(parallel: int) -> None:
    """Behind those that run, whoever came when."""
    replica = engine(queue_order="shortest", max_batch_size=parallel, prefill_parallel=parallel)
    for name in range(parallel):
        replica.submit(ask(100 + name, output=50), now_ns=0)
    for name, prompt in enumerate((900, 50, 400, 50)):
        replica.submit(ask(name, prompt=prompt), now_ns=0)
    found = firsts(replica)
    waited = sorted((name for name in found if int(str(name)) < 100), key=lambda name: found[name])
    assert waited[0] == 1
    assert waited.index(3) < waited.index(0)
    assert waited.index(2) < waited.index(0) or parallel == 2


def test_every_fourth_request_is_urgent() -> None:
    """Urgent ones pass the others and keep their own order; no seed changes who they are."""
    replica = engine(queue_order="urgent", max_batch_size=1)
    replica.submit(ask(1_000, output=50), now_ns=0)
    for name in range(40):
        replica.submit(ask(name, prompt=20), now_ns=0)
    found = firsts(replica)
    order = sorted((int(str(name)) for name in found if name != 1_000), key=lambda name: found[name])
    descents = [at for at in range(1, 40) if order[at] < order[at - 1]]
    assert len(descents) == 1
    assert 3 <= descents[0] <= 20


def test_a_cache_is_smaller_than_the_memory() -> None:
    """`cache_share` bounds what stays behind; 0 keeps nothing."""
    for share, kept in ((1.0, 1_600), (0.1, 1_000), (0.0, 0)):
        replica = engine(cache_share=share)
        for name in range(4):
            blocks = [f"{name}:{at}" for at in range(25)]
            replica.submit(ask(name, prompt=400, blocks=blocks), now_ns=replica._now)
            assert any(isinstance(event, Finished) for event in drain(replica))
        assert kept - 16 < replica.cache.used_tokens <= kept


@pytest.mark.parametrize(("eviction", "left"), [("lru", "a"), ("fifo", "b")])
def test_a_cache_forgets_in_its_own_order(eviction: str, left: str) -> None:
    """What was used last stays with LRU, what came last with FIFO."""
    cache = PrefixCache(block_tokens=16, eviction=eviction)
    cache.insert(["a"])
    cache.insert(["b"])
    cache.release(cache.acquire(["a"]))
    assert cache.evict(1) == 1
    assert [cache.match([name]) for name in ("a", "b")] == [left == "a", left == "b"]


def test_a_random_cache_keeps_some_of_the_old_and_loses_some_of_the_new() -> None:
    """And the same calls forget the same blocks."""
    kept = []
    for _ in range(2):
        cache = PrefixCache(block_tokens=16, eviction="random")
        for name in range(100):
            cache.insert([name])
        cache.evict(50)
        kept.append([name for name in range(100) if cache.match([name])])
    assert kept[0] == kept[1]
    assert len(kept[0]) == 50
    assert kept[0] != list(range(50, 100))


def test_idle_and_room_are_told_apart() -> None:
    """One prompt under way takes a lane's room; decoding does not; a hang takes both."""
    replica = engine(prefill_parallel=2, max_batch_size=4)
    assert (replica.idle, replica.has_room) == (True, True)
    replica.submit(ask(0, output=50), now_ns=0)
    assert (replica.idle, replica.has_room) == (False, True)
    replica.submit(ask(1, output=50), now_ns=0)
    assert (replica.idle, replica.has_room) == (False, False)
    first = firsts_until(replica, 0)
    assert (replica.idle, replica.has_room) == (False, True)
    replica.set_fault(now_ns=first, hang=True)
    assert (replica.idle, replica.has_room) == (False, False)
    assert not engine_after_refusal().idle


def engine_after_refusal() -> SimReplica:
    replica = engine()
    replica.set_fault(now_ns=0, refuse=True)
    return replica


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prefill_interference": 1.5}, "prefill_interference must lie in 0..1"),
        ({"cache_share": -0.1}, "cache_share must lie in 0..1"),
        ({"queue_order": "lifo"}, "queue_order must be one of fifo, shortest, urgent"),
        ({"eviction": "mru"}, "eviction must be one of lru, fifo, random"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, object], said: str) -> None:
    """By limits and by specs alike."""
    with pytest.raises(ValueError, match=said):
        engine(**wrong)
    with pytest.raises(ValueError, match=said):
        ReplicaSpec(name="a", **wrong)  # type: ignore[arg-type]


def test_a_stall_must_be_shorter_than_its_period() -> None:
    """Else it never ends."""
    with pytest.raises(ValueError, match="stall_s"):
        ReplicaSpec(name="a", stall_s=60.0)


def test_a_live_engine_stalls_and_goes_on() -> None:
    """Each period it hangs for a while, by itself, in simulated time."""
    spec = ReplicaSpec(name="a", stall_s=2.0, stall_every_s=4.0, time_scale=100.0)

    async def watched() -> list[bool]:
        live, seen = SimEngine(spec), [False]
        try:
            async with asyncio.timeout(30):
                while len(seen) < 4:
                    if live.replica.hung != seen[-1]:
                        seen.append(live.replica.hung)
                    await asyncio.sleep(0.001)
        finally:
            live.close()
        return seen

    assert asyncio.run(watched()) == [False, True, False, True]
