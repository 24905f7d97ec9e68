"""What a request is forecast to meet: by hand, by the models of speed, and the same wherever it is told."""

from __future__ import annotations

from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given

from extproc.core.decide import resolve
from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Member, PoolSpec
from extproc.core.forecast import FOREIGN_CONTEXT_TOKENS, Forecast, forecast, forecasts, plan, start_ms
from extproc.core.load import MS_NS, Load
from extproc.core.outcome import LATER_MS, Outcome, Routed
from extproc.core.placement import place
from extproc.core.predict.prior import Prior
from extproc.core.predict.speed import Speed, SpeedModel
from extproc.core.predict.timing import Timing
from extproc.core.reports import ReplicaReport
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.strategies import SchedulingContext, Work, build
from extproc.core.strategies.base import weighted_ttft_ms
from extproc.core.tenant import ANONYMOUS
from tests.stand.changed import replace
from tests.stand.examples import examples
from tests.stand.fleets import contexts, fleets, one_at_a_time, works
from tests.stand.schedulers import make_scheduler

#: A step 10 + B + K/1000 ms, a prefill 5 + u/10 ms and a millionth of the squares.
MODEL = SpeedModel(Prior(Timing(10.0, 1.0, 1e-3, 5.0, 0.1, 1e-6), 100_000, True))
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_tokens=100, max_new_tokens=40)


def endpoint_of(**facts: Any) -> Endpoint:
    endpoint = Endpoint(address="10.0.0.0:80", pool="p")
    endpoint.speed = Speed(MODEL)
    one_at_a_time(endpoint)
    for name, value in facts.items():
        setattr(endpoint.load if name in Load.__slots__ else endpoint, name, value)
    return endpoint


def spelt_out(endpoint: Endpoint, work: Work, cached: int) -> Forecast:
    """The formula of the module's first lines, by the models' own functions: slow, and plain to read."""
    load, speed = endpoint.load, endpoint.speed
    tokens = max(1, work.input_tokens)
    held = min(cached, tokens - 1)
    others = endpoint.peer_permits + endpoint.foreign
    streams, context = load.streaming + others, load.context_tokens + others * FOREIGN_CONTEXT_TOKENS
    step = speed.step_ms(streams, context)
    prefill = speed.prefill_ms(tokens - held, held)
    wait = endpoint.admission.share(load.queued) if load.queued else 0.0
    due = int(wait * load.queued_tokens) + tokens - held
    chunks = ceil(due / max(1, endpoint.prefill_budget_tokens - streams))
    if load.queued and chunks == 1:
        prefill -= wait * speed.prefill_ms(0)
    ttft = wait * load.queued_ms + prefill
    if streams:
        ttft += step / 2 + (chunks - 1) * (speed.prefill_ms(0) + step)
    slots, there = endpoint.slots, endpoint.permits + endpoint.peer_permits + endpoint.foreign
    if slots.limit and endpoint.requests:
        ttft += max(0, there + work.sequences - slots.limit) * slots.life_ms / slots.limit
    tpot = speed.step_ms(streams + work.sequences, context + tokens + work.output_tokens / 2)
    return Forecast(ttft, tpot, step, prefill, tokens - held, held, streams, chunks)


@given(candidates=fleets, work=works, at=contexts)
@examples(120)
def test_the_scan_is_the_formula(candidates: list[Endpoint], work: Work, at: SchedulingContext) -> None:
    """Whatever the endpoints: what is spelt out for speed is what the models' functions say."""
    found = forecasts(candidates, work, cached=at.cached)
    for endpoint, values in zip(candidates, found, strict=True):
        expected = spelt_out(endpoint, work, at.cached.get(endpoint.address, 0))
        assert values == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert forecast(endpoint, work, cached=at.cached) == values


def sane(candidates: list[Endpoint], work: Work, at: SchedulingContext) -> list[Endpoint]:
    """Those whose first token comes within minutes: of others a score does not tell whether it is later."""
    firsts = weighted_ttft_ms(candidates, work, forecasts(candidates, work, cached=at.cached))
    return [e for e, first in zip(candidates, firsts, strict=True) if first < LATER_MS / 2]


@given(candidates=fleets, work=works, at=contexts)
@examples(100)
def test_the_default_ranks_by_the_forecast(
    candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """Steer's scores are the forecast first tokens, with zone and health, where they are not alike."""
    candidates = sane(candidates, work, at)
    assume(candidates)
    scores = build("steer", {"copy_price": 0.0}).rank(candidates, work, count=1, rng=Random(1), at=at).scores
    firsts = weighted_ttft_ms(candidates, work, forecasts(candidates, work, cached=at.cached))
    for endpoint, score, first in zip(candidates, scores, firsts, strict=True):
        later = LATER_MS if score >= LATER_MS else 0.0
        assert score == min(scores) or score == pytest.approx(first + later, rel=1e-9), endpoint


@pytest.mark.parametrize("name", ["steer", "queue"])
@given(candidates=fleets, work=works, at=contexts)
@examples(100)
def test_late_binding_says_why_exactly_where_it_gives_nothing(
    name: str, candidates: list[Endpoint], work: Work, at: SchedulingContext
) -> None:
    """The conditions in words and those of the scan never differ."""
    candidates = sane(candidates, work, at)
    assume(candidates)
    strategy = build(name)
    scores = strategy.rank(candidates, work, count=1, rng=Random(1), at=at).scores
    for endpoint, score in zip(candidates, scores, strict=True):
        assert bool(strategy.holds_back(endpoint, candidates, work, at=at)) == (score >= LATER_MS)


def test_by_hand() -> None:
    """3 + 2 foreign streams, 500 tokens queued, a prompt of 200 of which 50 are cached."""
    endpoint = endpoint_of(
        streaming=3, context_tokens=1_000, queued=1, queued_tokens=500, queued_ms=55.0, foreign=2
    )
    found = forecast(endpoint, Work(200, 40), cached={endpoint.address: 50})
    step = 10 + 5 + (1_000 + 2 * 1_024) / 1_000
    prefill = 0.1 * 150 + 1e-6 * (200**2 - 50**2)
    assert found.step_ms == pytest.approx(step)
    assert found.prefill_ms == pytest.approx(prefill)
    assert found.ttft_ms == pytest.approx(55 + prefill + step / 2)
    assert found.tpot_ms == pytest.approx(step + 1 + (200 + 20) / 1_000)
    assert (found.uncached_tokens, found.cached_tokens, found.streaming, found.chunks) == (150, 50, 5, 1)
    assert start_ms(endpoint) == pytest.approx(55 + step / 2)


def test_a_long_prompt_lets_decode_steps_between() -> None:
    """9,000 tokens beside one stream are three chunks of 4,095: two bases and two steps more."""
    found = forecast(endpoint_of(streaming=1), Work(9_000, 0))
    assert found.chunks == 3
    assert found.ttft_ms == pytest.approx(0.5 * 11 + (5 + 900 + 81) + 2 * (5 + 11))


@pytest.mark.parametrize("strategy", ["steer", "cost", "latency", "least_request", "prefix"])
def test_foreign_streams_count_the_same_wherever_a_forecast_is_told(strategy: str) -> None:
    """40 foreign streams: the score, the terms, the plan that teaches, and the explanation have one step."""
    pool = PoolSpec(name="p", models=("m",), strategy=strategy, endpoints=(Member("10.0.0.0:80"),))
    scheduler = make_scheduler(pool)
    (endpoint,) = scheduler.fleet.endpoints
    endpoint.speed, endpoint.foreign = Speed(MODEL), 40
    step = 10 + 40 + 40 * 1_024 / 1_000
    facts: dict[str, Any] = {"id": "x", "default_model": "m", "reservations_max": 9}
    routing = resolve(CHAT, ANONYMOUS, scheduler.fleet, scheduler.ledger, **facts)
    assert not hasattr(routing, "status")
    placed = place(routing, scheduler.fleet, now_ns=0, rng=Random(1))
    assert isinstance(placed, Routed)
    assert placed.plan is not None
    own = placed.plan.tpot_ms - step
    assert own == pytest.approx(1 + (100 + 40 / 2) / 1_000)
    assert placed.plan.ttft_ms == pytest.approx(step / 2 + 5 + 10 + 0.01)
    (row,) = scheduler.explain(CHAT, ANONYMOUS, now_ns=0).rows
    assert row.forecast["step_ms"] == pytest.approx(step)
    assert row.forecast["ttft_ms"] == pytest.approx(placed.plan.ttft_ms)
    assert row.forecast["tpot_ms"] == pytest.approx(placed.plan.tpot_ms)
    told = {"steer": step, "cost": placed.plan.tpot_ms}
    if strategy in told:
        assert row.terms["step_ms"] == pytest.approx(told[strategy])
    if strategy == "latency":
        assert row.terms["predicted_ttft_ms"] == pytest.approx(placed.plan.ttft_ms)


def test_what_a_request_will_hold_is_what_it_then_holds() -> None:
    """Of three sequences the prompt once, and half of what each may write."""
    work, endpoint = Work(100, 60, sequences=3), endpoint_of()
    expected = forecast(endpoint, work)
    job = endpoint.load.enter(plan(work, endpoint, expected), 3, now_ns=0)
    endpoint.load.first("x", job, now_ns=1)
    assert endpoint.load.context_tokens == 130
    assert expected.tpot_ms == pytest.approx(endpoint.speed.step_ms(3, 130))


def test_where_others_wait_a_first_token_tells_nothing_of_the_speed() -> None:
    """More wait in the engine than are queued by us: how much prefill that is nobody here knows.

    One report may still count what has just begun: three in a row tell of others.
    """
    work, endpoint = Work(1_000, 60), endpoint_of()
    for sure in (True, True, False):
        endpoint.heard(ReplicaReport(address="x", pool="p", running=0, waiting=2), now_ns=0)
        assert plan(work, endpoint, forecast(endpoint, work)).sure is sure
    first = plan(work, endpoint, forecast(endpoint, work))
    endpoint.load.enter(first, 1, now_ns=0)
    second = plan(work, endpoint, forecast(endpoint, work))
    endpoint.load.enter(second, 1, now_ns=0)
    third = plan(work, endpoint, forecast(endpoint, work))
    assert [each.sure for each in (first, second, third)] == [False, False, True]


def test_what_others_run_is_not_learnt_as_slowness() -> None:
    """An engine as fast as its model, with 40 foreign streams: after 40 requests its factor is still 1."""
    pool = PoolSpec(name="p", models=("m",), strategy="steer", endpoints=(Member("10.0.0.0:80"),))
    scheduler = make_scheduler(pool)
    (endpoint,) = scheduler.fleet.endpoints
    endpoint.speed, endpoint.foreign = Speed(SpeedModel(Prior(replace(MODEL.timing), 100_000, True))), 40
    now_ns = 0
    for _ in range(40):
        routed = scheduler.admit(replace(CHAT, stream=True), ANONYMOUS, now_ns=now_ns)
        assert isinstance(routed, Routed)
        assert routed.plan is not None
        first_ns = now_ns + int(routed.plan.ttft_ms * MS_NS)
        scheduler.settlement.first_token(routed.reservation.id, now_ns=first_ns)
        now_ns = first_ns + int(39 * routed.plan.tpot_ms * MS_NS)
        ended = Outcome(
            reservation=routed.reservation,
            final=True,
            status=200,
            served_by="10.0.0.0:80",
            attempts=1,
            prompt_tokens=100,
            output_tokens=40,
        )
        assert scheduler.settlement.settle(ended, now_ns=now_ns)
    assert endpoint.speed.observations >= 80
    assert endpoint.speed.factor == pytest.approx(1.0, rel=0.02)
    assert endpoint.speed.model.timing.step_ms(1, 120) == pytest.approx(MODEL.timing.step_ms(1, 120), rel=0.1)
