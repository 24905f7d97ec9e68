from __future__ import annotations

from collections.abc import Callable

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.forecast import plan
from extproc.core.strategies import SchedulingContext, Work
from extproc.core.strategies.terms import forecasts

Fleet = Callable[..., list[Endpoint]]


@pytest.mark.parametrize("streaming", [0, 7])
@pytest.mark.parametrize(("queued_tokens", "tokens"), [(0, 300), (3_000, 9_000)])
@pytest.mark.parametrize("cached", [0, 200])
def test_a_forecast_is_what_the_plan_will_say(
    fleet: Fleet, streaming: int, queued_tokens: int, tokens: int, cached: int
) -> None:
    """The strategies and the reservation's plan predict the same time to first token and prefill."""
    (endpoint,) = fleet(1)
    load = endpoint.load
    load.streaming, load.queued_tokens, load.queued_ms = streaming, queued_tokens, queued_tokens / 10
    endpoint.speed.factor = 1.3
    work = Work(tokens, 100)
    at = SchedulingContext(cached={endpoint.address: cached})
    expected = plan(work, endpoint, cached=at.cached)
    ttft_ms, prefill_ms, step_ms = forecasts([endpoint], work, at)[0]
    assert ttft_ms == pytest.approx(expected.ttft_ms)
    assert prefill_ms == pytest.approx(expected.prefill_ms)
    assert step_ms == pytest.approx(1.3 * (10 + streaming + 1))


def test_a_long_prompt_lets_decode_steps_between(fleet: Fleet) -> None:
    """9,000 tokens beside one stream are three chunks of 4,095: two bases and two steps more."""
    (endpoint,) = fleet(1)
    endpoint.load.streaming = 1
    ttft_ms, _, _ = forecasts([endpoint], Work(9_000, 0), SchedulingContext())[0]
    assert ttft_ms == pytest.approx(0.5 * 11 + (5 + 900) + 2 * (5 + 11))


def test_what_others_run_counts_as_running(fleet: Fleet) -> None:
    """Peers' permits and foreign requests slow the step, and the first token by half of it."""
    mine, others = fleet(2)
    mine.load.streaming = 5
    others.peer_permits, others.foreign = 3, 2
    work = Work(100, 0)
    assert forecasts([mine], work, SchedulingContext()) == forecasts([others], work, SchedulingContext())


def test_another_zone_costs_its_handicap(fleet: Fleet) -> None:
    """A thousand tokens' prefill more."""
    here, there = fleet(2)
    here.zone, there.zone = "a", "b"
    near, far = forecasts(
        [here, there], Work(100, 0, zone="a", zone_penalty_tokens=1_000), SchedulingContext()
    )
    assert far[0] - near[0] == pytest.approx(100.0)
