"""Tokens of answers that nobody counted: by events and bytes, learned, bounded by what was asked."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.meter import (
    PROMPT_NAMED_TOKENS,
    SURE_ERROR,
    Meter,
    Meters,
    metered,
    output_bound,
    prompt_bound,
)
from extproc.core.outcome import Counted, End, Outcome, Reservation
from extproc.core.scheduler import Scheduler, SchedulerLimits

RESERVATION = Reservation(
    id="i-1",
    tenant="acme",
    model="m",
    pool="p",
    address="10.0.0.1:80",
    input_tokens=10,
    output_tokens=200,
    permits=1,
    prompt_bytes=40,
    stream=True,
    max_new_tokens=1_000,
    route="chat",
)
FRAME = 215


def outcome(**facts: object) -> Outcome:
    """A stream that ended well."""
    known: dict[str, object] = {"reservation": RESERVATION, "final": True, "status": 200, **facts}
    return Outcome(**known)  # type: ignore[arg-type]


def fresh() -> Meter:
    return Meter(per_event=1.0, per_byte=0.0)


def test_before_anything_was_counted_an_event_is_a_token() -> None:
    """The engines' default."""
    assert fresh().tokens(117, 117 * FRAME) == 117
    assert not fresh().sure


@pytest.mark.parametrize(("per_event", "within"), [(1, 0.001), (2, 0.06), (8, 0.16)])
def test_tokens_in_an_event_are_learned(per_event: int, within: float) -> None:
    """From answers of different lengths and texts; a meter that is not good enough is not sure of itself."""
    rng, meter = Random(1), fresh()
    for _ in range(50):
        tokens = 64 + int(rng.expovariate(1 / 300))
        events = -(-tokens // per_event)
        meter.saw(events, events * FRAME + round(tokens * rng.gauss(4.3, 0.5)), tokens)
    estimate = meter.tokens(200 // per_event, 200 // per_event * FRAME + 860)
    assert estimate == pytest.approx(200, rel=within)
    assert meter.sure is (meter.error <= SURE_ERROR) is (per_event < 8)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(-1, 10**8)), max_size=20),
    st.integers(0, 10**6),
    st.integers(0, 10**9),
)
def test_whatever_was_said_an_estimate_stays_in_its_bounds(
    said: list[tuple[int, int, int]], events: int, size: int
) -> None:
    """At least half the events, at most the bytes."""
    meter = fresh()
    for each in said:
        meter.saw(*each)
    estimate = meter.tokens(events, size)
    assert estimate >= 0
    if size > 0:
        assert min(events // 2, size) <= estimate <= size


def test_a_stream_that_was_left_is_charged_its_events() -> None:
    """Whoever ended it; what the engine counted goes before."""
    left = metered(outcome(end=End.CLIENT_GONE, events=80, response_bytes=80 * FRAME), Meters())
    assert (left.output_tokens, left.counted) == (80, Counted.ESTIMATED)
    assert metered(left, Meters()) == left, "the same again"
    said = outcome(end=End.CLIENT_GONE, events=80, output_tokens=79)
    assert metered(said, Meters()) is said


def test_where_events_were_not_counted_bytes_tell() -> None:
    """A picker's gateway logs bytes alone."""
    meters = Meters()
    for tokens in (100, 200, 300):
        meters.saw(outcome(output_tokens=tokens, response_bytes=tokens * 180))
    left = metered(outcome(end=End.CLIENT_GONE, response_bytes=90 * 180), meters)
    assert left.output_tokens == pytest.approx(90, rel=0.05)


def test_an_error_before_any_token_produced_nothing() -> None:
    """After some it produced them."""
    assert metered(outcome(end=End.ERROR, events=0, response_bytes=90), Meters()).output_tokens is None
    assert metered(outcome(end=End.ERROR, events=7, response_bytes=900), Meters()).output_tokens == 7
    assert metered(outcome(end=End.REFUSED, events=0, response_bytes=90), Meters()).output_tokens is None
    assert metered(outcome(end=End.REFUSED, events=7, response_bytes=900), Meters()).output_tokens == 7


@pytest.mark.parametrize(
    ("limit", "permits", "said", "impossible"),
    [
        (1_000, 1, 1_000, False),
        (1_000, 1, 1_001, False),  # the end's own token
        (1_000, 1, 1_002, True),
        (1_000, 4, 4_004, False),
        (1_000, 4, 4_005, True),
        (None, 1, 131_072, False),
        (None, 1, 100_000_000, True),
    ],
)
def test_a_count_above_what_was_asked_is_no_count(
    limit: int | None, permits: int, said: int, impossible: bool
) -> None:
    """It is estimated as if the engine had said nothing, and never above the limit."""
    reservation = structs.replace(RESERVATION, max_new_tokens=limit, permits=permits)
    found = metered(
        outcome(reservation=reservation, output_tokens=said, events=50, response_bytes=50 * FRAME), Meters()
    )
    assert found.impossible is impossible
    assert found.output_tokens == (50 if impossible else said)
    assert found.output_tokens is not None
    assert found.output_tokens <= output_bound(reservation) + permits


def test_a_prompt_has_no_more_tokens_than_bytes_and_templates() -> None:
    """What an engine says beyond is its fault, and what was predicted is charged."""
    most = prompt_bound(outcome(request_bytes=500))
    assert (
        metered(outcome(request_bytes=500, prompt_tokens=most, output_tokens=1), Meters()).prompt_tokens
        == most
    )
    lied = metered(outcome(request_bytes=500, prompt_tokens=most + 1, output_tokens=1), Meters())
    assert (lied.prompt_tokens, lied.output_tokens, lied.impossible) == (None, 1, True)


@pytest.mark.parametrize(
    ("said", "impossible"), [(100_000, False), (PROMPT_NAMED_TOKENS, False), (PROMPT_NAMED_TOKENS + 1, True)]
)
def test_a_prompt_that_is_more_than_its_text_has_a_contexts_tokens(said: int, impossible: bool) -> None:
    """An image by its address or a response before it is no engine's fault: `prompt_bytes` is 0."""
    reservation = structs.replace(RESERVATION, prompt_bytes=0)
    found = metered(
        outcome(reservation=reservation, request_bytes=200, prompt_tokens=said, output_tokens=1), Meters()
    )
    assert found.impossible is impossible
    assert found.prompt_tokens == (None if impossible else said)


@pytest.mark.parametrize(
    ("events", "charged", "counted"),
    [(40, 40, Counted.ESTIMATED), (1, 0, Counted.ENGINE), (None, 0, Counted.ENGINE)],
)
@pytest.mark.parametrize("final", [True, False])
def test_zeros_of_an_engine_that_streamed_are_no_count(
    events: int | None, charged: int, counted: Counted, final: bool
) -> None:
    """One that ends at once may have an event without a token; one that wrote forty had some."""
    said = outcome(
        end=End.OK, final=final, events=events, response_bytes=8_000, output_tokens=0, counted=Counted.ENGINE
    )
    judged = metered(said, Meters())
    assert (judged.output_tokens, judged.counted, judged.impossible) == (charged, counted, False)


def test_estimates_teach_nothing() -> None:
    """Only what an engine counted does, of whole answers."""
    meters = Meters()
    meters.saw(metered(outcome(events=50, response_bytes=50 * FRAME), meters))
    meters.saw(outcome(end=End.CLIENT_GONE, events=50, response_bytes=50 * FRAME, output_tokens=49))
    assert meters.streamed("chat").seen == 0.0


def test_lengths_learn_from_streams_that_said_no_usage() -> None:
    """A whole one teaches by its events; one that was left does not."""
    pool = PoolSpec(
        name="p", models=("m",), strategy="steer", endpoints=(("10.0.0.1:80", "", 8),), engine="vllm"
    )
    scheduler = Scheduler(
        Fleet([pool]), instance="s", default_model="m", limits=SchedulerLimits(), rng=Random(1)
    )
    lengths = scheduler.fleet.pools["p"].lengths
    before = lengths.expected("acme", "m", None)
    for number in range(30):
        for end, events in ((End.OK, 40), (End.CLIENT_GONE, 700)):
            reservation = structs.replace(RESERVATION, id=f"o-{end.value}-{number}")
            scheduler.settlement.settle(
                outcome(reservation=reservation, end=end, events=events, response_bytes=events * FRAME),
                now_ns=1,
            )
    assert before > 200
    assert lengths.expected("acme", "m", 1_000) == 40
