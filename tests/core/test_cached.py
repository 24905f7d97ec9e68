"""What engines say of their prefix cache, and how it corrects the index of the one endpoint that spoke."""

from __future__ import annotations

import pytest

from extproc.core.fleet import Fleet, Member, PoolSpec
from extproc.core.outcome import Reservation
from extproc.core.reports import ReplicaReport, ReportedState
from tests.core.test_late_binding import Scene

TELLING = "10.0.0.1:80"


def asked(scene: Scene, first_block: int, *, cached: int | None, tokens: int = 1280) -> Reservation:
    """A prompt of 20 blocks from `first_block` on, served; so much of it was said to be cached."""
    prefix = tuple(range(first_block, first_block + 20))
    reservation = scene.routed(tokens, prefix=prefix, prefix_block_tokens=64.0)
    scene.now_ns += 100_000_000
    scene.scheduler.settlement.first_token(reservation.id, now_ns=scene.now_ns)
    scene.ends(reservation, cached_tokens=cached)
    return reservation


def test_a_cache_that_finds_nothing_is_believed_to_hold_nothing() -> None:
    """An engine whose cache is off says 0 of every prompt: soon hardly a block is believed."""
    scene = Scene(engine="vllm", kv_capacity_tokens=100_000)
    pool = scene.scheduler.fleet.pools["p"]
    for _ in range(24):
        asked(scene, 1000, cached=0)
    (endpoint,) = pool.endpoints
    assert pool.prefixes.blocks(endpoint.address) <= 2
    assert endpoint.cache.source == "usage"
    assert endpoint.cache.corrections["usage_gone"] >= 5


def test_the_learnt_size_comes_near_a_tenth_of_what_was_told() -> None:
    """A cache of a tenth of the KV memory that is told is found out by the blocks that it no longer has."""
    scene = Scene(engine="vllm", kv_capacity_tokens=100_000)
    real: dict[int, None] = {}
    for turn in range(400):
        which = (turn % 16) * 1000
        hit = which in real
        real.pop(which, None)
        real[which] = None
        while len(real) > 8:  # 8 prompts of 1,280 tokens: 10,240
            del real[next(iter(real))]
        asked(scene, which, cached=1280 if hit else 0)
    (endpoint,) = scene.scheduler.fleet.pools["p"].endpoints
    assert endpoint.cache_tokens < 25_000


def test_more_than_predicted_makes_the_cache_larger_again() -> None:
    """A cache taken for small that says it held a whole prompt is taken to hold that much at least."""
    scene = Scene(engine="vllm", kv_capacity_tokens=100_000)
    (endpoint,) = scene.scheduler.fleet.pools["p"].endpoints
    endpoint.cache_tokens = 64
    asked(scene, 1000, cached=1280)
    assert endpoint.cache_tokens >= 1280
    assert endpoint.cache.corrections["usage_found"] == 1


def test_a_response_that_is_continued_tells_nothing_of_the_cache() -> None:
    """What it begins with is its replica's to know: its words are no beginning, and what was found of the
    conversation is no size."""
    scene = Scene(engine="vllm", kv_capacity_tokens=100_000)
    (endpoint,) = scene.scheduler.fleet.pools["p"].endpoints
    endpoint.cache_tokens = 64
    prefix = tuple(range(20))
    reservation = scene.routed(1280, prefix=prefix, prefix_block_tokens=64.0, follows="resp_1", beside=True)
    scene.now_ns += 100_000_000
    scene.scheduler.settlement.first_token(reservation.id, now_ns=scene.now_ns)
    scene.ends(reservation, cached_tokens=1280)
    assert endpoint.cache_tokens == 64
    assert not endpoint.cache.corrections
    assert not scene.scheduler.fleet.pools["p"].prefixes.blocks(endpoint.address)


def test_what_is_as_predicted_leaves_the_index_alone() -> None:
    """Engines' blocks are other than ours: a difference of a block is none."""
    scene = Scene(engine="vllm", kv_capacity_tokens=100_000)
    pool = scene.scheduler.fleet.pools["p"]
    asked(scene, 1000, cached=0)
    asked(scene, 1000, cached=1216)
    assert pool.prefixes.blocks(TELLING) == 20
    assert not pool.endpoints[0].cache.corrections


@pytest.mark.parametrize("cached", [None, 10_000_000])
def test_what_is_not_said_or_cannot_be_corrects_nothing(cached: int | None) -> None:
    """An engine without the option, and one that claims more than the prompt, leave the guess as it was."""
    scene = Scene(engine="vllm")
    asked(scene, 1000, cached=cached)
    (endpoint,) = scene.scheduler.fleet.pools["p"].endpoints
    assert endpoint.cache.source == "guessed"


def test_usage_moves_its_own_endpoint_alone() -> None:
    """An engine that lies about its cache moves what is believed of itself, not of its neighbour."""
    scene = Scene(2, engine="vllm", kv_capacity_tokens=100_000)
    pool = scene.scheduler.fleet.pools["p"]
    for address in (TELLING, "10.0.0.2:80"):
        pool.prefixes.insert(address, tuple(range(5000, 5100)), capacity_blocks=1000)
    liar = asked(scene, 1000, cached=0).address
    for _ in range(6):
        if asked(scene, 1000, cached=0).address != liar:
            break
    (other,) = {TELLING, "10.0.0.2:80"} - {liar}
    assert pool.prefixes.blocks(other) >= 100
    assert pool.prefixes.blocks(liar) < 120


def report(**facts: object) -> ReplicaReport:
    return ReplicaReport(address=TELLING, pool="p", boot_id=7, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"engine_starts": 0}, {"engine_starts": 1}),
        ({"state": ReportedState.LOADING}, {"state": ReportedState.READY}),
    ],
)
def test_a_restart_empties_both_indexes_and_what_was_learnt(
    before: dict[str, object], after: dict[str, object]
) -> None:
    """An engine that began anew holds nothing, nothing is coming, and its size is unlearnt."""
    fleet = Fleet([PoolSpec(name="p", models=("m",), strategy="steer", endpoints=(Member(TELLING),))])
    pool = fleet.pools["p"]
    (endpoint,) = pool.endpoints
    fleet.heard(report(**before), now_ns=1)
    pool.prefixes.insert(TELLING, (1, 2, 3), capacity_blocks=9)
    pool.coming.insert(TELLING, (1, 2, 3), capacity_blocks=9)
    endpoint.cache_tokens, endpoint.cache.told = 64, True
    fleet.heard(report(**after), now_ns=2)
    assert pool.prefixes.blocks(TELLING) == pool.coming.blocks(TELLING) == 0
    assert endpoint.cache_tokens == 0
    assert endpoint.cache.source == "guessed"
    assert endpoint.cache.corrections["emptied"] == 1


def comes(scene: Scene, reservation: Reservation, after_ms: float) -> None:
    """Its first token, so long after now; engines of this scene do not tell what they found cached."""
    scene.now_ns += round(after_ms * 1e6)
    scene.scheduler.settlement.first_token(reservation.id, now_ns=scene.now_ns)


def prompted(scene: Scene, first_block: int) -> Reservation:
    return scene.routed(1280, prefix=tuple(range(first_block, first_block + 20)), prefix_block_tokens=64.0)


def test_a_first_token_too_early_makes_the_cache_larger_at_once() -> None:
    """What was given there, and is taken to have left, was there: the cache holds that much at least."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    once = prompted(scene, 1000)
    comes(scene, once, once.ttft_ms)
    scene.ends(once)
    endpoint.cache_tokens = 128
    scene.scheduler.fleet.pools["p"].prefixes.shrink(TELLING, capacity_blocks=2)
    again = prompted(scene, 1000)
    assert again.cached_tokens == 128
    comes(scene, again, 0.3 * again.ttft_ms)
    assert endpoint.cache_tokens == 1280
    assert endpoint.cache.corrections == {"early": 1}


@pytest.mark.parametrize("share", [0.8, 1.0, 3.0])
def test_a_first_token_in_time_or_late_says_that_it_had_left(share: float) -> None:
    """A prompt that is computed anew after its prefix has left the cache makes it no larger."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    once = prompted(scene, 1000)
    comes(scene, once, once.ttft_ms)
    scene.ends(once)
    endpoint.cache_tokens = 128
    scene.scheduler.fleet.pools["p"].prefixes.shrink(TELLING, capacity_blocks=2)
    again = prompted(scene, 1000)
    comes(scene, again, share * again.ttft_ms)
    assert endpoint.cache_tokens == 128


@pytest.mark.parametrize(("beyond", "late"), [(0.4, 0), (0.6, 1)])
def test_a_miss_is_what_no_wait_explains(beyond: float, late: int) -> None:
    """Behind a long prompt, whatever is believed of how its engine admits: only what is later than that and
    half of what the cache spares tells that the cache did not hold it."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    once = prompted(scene, 1000)
    comes(scene, once, once.ttft_ms)
    scene.ends(once)
    for ahead in (1, 2):
        for _ in range(3):
            endpoint.admission.saw(ahead, 200.0, 100.0, 0.0)
    long, again = scene.routed(2000), prompted(scene, 1000)
    assert again.cached_tokens >= 1216
    ahead_ms = endpoint.speed.prefill_ms(2000)
    spared_ms = endpoint.speed.prefill_ms(1280) - endpoint.speed.prefill_ms(1280 - again.cached_tokens)
    comes(scene, again, again.ttft_ms + ahead_ms + beyond * spared_ms)
    assert endpoint.cache.corrections["late"] == late
    assert long.address == again.address
