"""steer: who waits for a prefix that is being computed, and who does not (core/strategies/waiting.py)."""

from __future__ import annotations

from extproc.core.outcome import Hold, Routed
from tests.core.test_late_binding import MS, Scene

#: 1,600 tokens of a prompt of 1,664.
SHARED = tuple(range(1, 101))


def own(serial: int) -> tuple[int, ...]:
    """A prompt that begins with SHARED and ends as no other does."""
    return (*SHARED, *(1_000 * serial + i for i in range(4)))


def asks(scene: Scene, serial: int) -> Routed | Hold:
    """One more of those that begin alike."""
    decision = scene.ask(1_664, prefix=own(serial), prefix_block_tokens=16.0)
    assert isinstance(decision, Routed | Hold)
    return decision


def side_by_side(engine: str = "vllm") -> Scene:
    """Two engines that are known to take several prompts at once; vLLM caches a prompt at its prefill."""
    scene = Scene(2, engine=engine)
    for endpoint in scene.scheduler.fleet.endpoints:
        for _ in range(9):
            endpoint.admission.saw(1, 1_000.0, 100.0, 0.0)
        assert endpoint.admission.side_by_side
        endpoint.speed.model.admission.heard = True
    return scene


def test_one_computes_a_prefix_and_the_others_wait_for_it() -> None:
    """Both would be computed at once; the second waits for the first's first token, and finds it cached."""
    scene = side_by_side()
    first = asks(scene, 1)
    assert isinstance(first, Routed)
    expected_ms = first.reservation.ttft_ms
    scene.now_ns = int(0.8 * expected_ms * MS)
    second = asks(scene, 2)
    assert isinstance(second, Hold)
    scene.now_ns = int(expected_ms * MS)
    scene.scheduler.settlement.first_token(first.reservation.id, now_ns=scene.now_ns)
    ((name, decision),) = scene.released
    assert name == second.id
    assert isinstance(decision, Routed)
    assert decision.addresses[0] == first.addresses[0]
    assert decision.reservation.cached_tokens >= 1_600


def test_a_prefix_that_comes_too_late_is_computed_again() -> None:
    """What has taken three times what was expected is not waited for: something is wrong there."""
    scene = side_by_side()
    first = asks(scene, 1)
    assert isinstance(first, Routed)
    scene.now_ns = int(3.1 * first.reservation.ttft_ms * MS)
    assert isinstance(asks(scene, 2), Routed)


def test_other_prompts_do_not_wait_for_it() -> None:
    """A prompt that begins otherwise is placed at once, also while others wait."""
    scene = side_by_side()
    first = asks(scene, 1)
    assert isinstance(first, Routed)
    scene.now_ns = int(0.8 * first.reservation.ttft_ms * MS)
    assert isinstance(asks(scene, 2), Hold)
    other = scene.ask(1_664, prefix=tuple(range(5_000, 5_104)), prefix_block_tokens=16.0)
    assert isinstance(other, Routed)


def test_nobody_waits_here_for_an_engine_that_takes_one_prompt_at_a_time() -> None:
    """In its own queue the second finds cached what the first has computed: nothing is gained by waiting."""
    scene = Scene(2, engine="vllm")
    first = asks(scene, 1)
    assert isinstance(first, Routed)
    scene.now_ns = int(0.8 * first.reservation.ttft_ms * MS)
    assert isinstance(asks(scene, 2), Routed)


def test_an_engine_that_caches_at_the_end_is_waited_for_to_its_end() -> None:
    """TGI caches a prompt when its request ends: with a long answer to come the prefix is computed again."""
    scene = side_by_side(engine="tgi")
    first = asks(scene, 1)
    assert isinstance(first, Routed)
    scene.now_ns = int(0.8 * first.reservation.ttft_ms * MS)
    assert isinstance(asks(scene, 2), Routed)
