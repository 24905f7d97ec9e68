"""What first tokens and ends teach of the speed while nobody knows what delayed them: what they prove."""

from __future__ import annotations

import pytest

from tests.core.test_cached import comes, prompted
from tests.core.test_late_binding import Scene


@pytest.mark.parametrize(("share", "moves"), [(0.1, False), (0.5, False), (0.9, False), (5.0, True)])
def test_a_decode_beside_prefills_teaches_no_speed_between_their_bounds(
    share: float, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps as predicted, and any share of another's prefill: held up is not slow."""
    monkeypatch.setattr("tests.core.test_late_binding.one_at_a_time", lambda *_: None)
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    assert not endpoint.admission.stall_known
    stream = scene.routed(400)
    comes(scene, stream, stream.ttft_ms)
    other = scene.routed(900)
    comes(scene, other, 0.0)
    before, step_ms = endpoint.speed.factor, endpoint.speed.step_ms(2, 1_400)
    scene.now_ns += round((99 * step_ms + share * endpoint.speed.prefill_ms(900)) * 1e6)
    scene.ends(stream)
    assert (endpoint.speed.factor != before) == moves


@pytest.mark.parametrize(("share", "moves"), [(0.1, False), (0.5, False), (0.9, False), (3.0, True)])
def test_a_first_token_behind_a_prompt_that_may_be_cached_teaches_no_speed_between_the_bounds(
    share: float, moves: bool
) -> None:
    """It waits for none of what is ahead, or for all of it, and nobody knows how long that takes."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    for _ in range(3):
        endpoint.admission.saw(1, 200.0, 100.0, 0.0)
    first, twin = prompted(scene, 1000), prompted(scene, 1000)
    assert first.address == twin.address
    last = scene.routed(1100)
    before = endpoint.speed.factor
    ahead_ms = 2 * endpoint.speed.prefill_ms(1280)
    comes(scene, last, last.ttft_ms + share * ahead_ms)
    assert (endpoint.speed.factor != before) == moves


def test_prompts_that_were_placed_by_one_wrong_speed_tell_of_one_error() -> None:
    """Each is judged by the speed that is known when its first token comes: three that take 2.5 times as long
    as was planned make it about 2.5 times slower, and not 2.5 times for each."""
    scene = Scene()
    (endpoint,) = scene.scheduler.fleet.endpoints
    endpoint.speed.model.admission.heard = True
    before_ms = endpoint.speed.prefill_ms(1_000)
    for _ in range(8):
        endpoint.admission.saw(1, 200.0, 100.0, 0.0)
        endpoint.admission.saw(2, 200.0, 100.0, 0.0)
    placed = [scene.routed(1_000) for _ in range(3)]
    began_ns = scene.now_ns
    for each in placed:
        scene.now_ns = began_ns + round(2.5 * placed[0].ttft_ms * 1e6)
        scene.scheduler.settlement.first_token(each.id, now_ns=scene.now_ns)
    assert endpoint.speed.observations >= 2
    assert 1.5 <= endpoint.speed.prefill_ms(1_000) / before_ms <= 3.0
