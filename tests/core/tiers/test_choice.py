"""Edge or centre: the order of the rules, what is never lost, and what does not flap."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tiers import (
    HERE,
    REASONS,
    SMALLER,
    THERE,
    Leanings,
    SiteOffer,
    TierReason,
    TierRequest,
    TierRule,
    complexity_of,
    place,
)
from extproc.core.tiers.leanings import LEANINGS_MAX

MS = 1_000_000
S = 1_000 * MS
RULE = TierRule()
#: Between simple and complex: the times decide.
MIDDLE = TierRequest(prompt_tokens=2_000, output_tokens=200, ttft_ns=S, tpot_ns=100 * MS)
SIMPLE = replace(MIDDLE, prompt_tokens=100, complexity=0.1)
COMPLEX = replace(MIDDLE, complexity=0.9)


def offer(first_ms: float = 200, token_ms: float = 20, *, begins_ms: float = 0, **facts: Any) -> SiteOffer:
    """A place by its times in milliseconds."""
    times = {"first_ns": round(first_ms * MS), "token_ns": round(token_ms * MS)}
    return SiteOffer(**{"ready": True, "begins_ns": round(begins_ms * MS), **times, **facts})


NEAR, FAR = offer(), offer(240)
AWAY = replace(FAR, ready=False)


def test_every_reason_is_explained() -> None:
    """Reasons are closed words, each with a sentence, and a choice has it in its text."""
    assert set(REASONS) == set(get_args(TierReason))
    assert place(SIMPLE, NEAR, FAR, RULE).text() == "here: short and simple enough to stay"


@pytest.mark.parametrize(
    ("request_", "here", "there", "where", "reason"),
    [
        (SIMPLE, NEAR, FAR, HERE, "simple"),
        # Ten times as fast there: simple work stays all the same, while it is in time.
        (SIMPLE, offer(900, 90), offer(90, 9), HERE, "simple"),
        (replace(SIMPLE, complexity=None), NEAR, FAR, HERE, "simple"),
        (COMPLEX, NEAR, FAR, THERE, "complex"),
        (replace(MIDDLE, prompt_tokens=6_001), NEAR, FAR, THERE, "complex"),
        (replace(MIDDLE, output_tokens=2_049), NEAR, FAR, THERE, "complex"),
        # Full: later than half of wait_ns for who leans home, and later than here.
        (COMPLEX, NEAR, offer(900, begins_ms=600), HERE, "centre_full"),
        # Both full, the centre sooner: 200 tokens, 4.2 s here and 3.1 s there.
        (COMPLEX, offer(900, 20, begins_ms=600), offer(900, 10, begins_ms=600), THERE, "complex"),
        (MIDDLE, NEAR, FAR, HERE, "near"),
        # 200 + 199·20 = 4,180 ms here; a quarter is 1,045; there 300 + 199·14 = 3,086: 1,094 sooner.
        (MIDDLE, NEAR, offer(300, 14), THERE, "sooner"),
        (MIDDLE, NEAR, offer(300, 15), HERE, "near"),
        (MIDDLE, offer(1_100), offer(400), THERE, "late"),
        (MIDDLE, offer(200, 101), offer(400, 74), THERE, "late"),
        # In time there, but only just: three quarters of the target are asked of who has not gone before.
        (MIDDLE, offer(200, 101), offer(200, 99), HERE, "near"),
        (MIDDLE, offer(1_100), offer(1_050), HERE, "near"),
        (SIMPLE, offer(1_100), offer(400), THERE, "late"),
        (SIMPLE, offer(700, begins_ms=501), offer(400), THERE, "full"),
        (SIMPLE, offer(700, begins_ms=500), offer(400), HERE, "simple"),
        # As much of a crowd there, however fast: its first token would be as late.
        (SIMPLE, offer(700, begins_ms=501), offer(600, 2, begins_ms=501), HERE, "simple"),
        # Who went there last goes on while it begins there no more than the margin later, 250 ms.
        (replace(SIMPLE, leaning=THERE), offer(400, begins_ms=260), offer(600, begins_ms=500), THERE, "full"),
        (replace(SIMPLE, leaning=THERE), offer(400, begins_ms=250), offer(600), HERE, "simple"),
        (SIMPLE, offer(300, hot=True), offer(290), THERE, "hot"),
        (SIMPLE, offer(300, hot=True), offer(310), HERE, "simple"),
        (SIMPLE, replace(NEAR, ready=False), FAR, THERE, "broken"),
        (SIMPLE, None, FAR, THERE, "only_there"),
        (COMPLEX, NEAR, None, HERE, "only_here"),
        (COMPLEX, NEAR, AWAY, HERE, "centre_away"),
        (replace(COMPLEX, may_leave=False), NEAR, FAR, HERE, "tenant"),
        (replace(COMPLEX, hops=1), NEAR, FAR, HERE, "hops"),
        (replace(COMPLEX, service_class="voice"), NEAR, FAR, HERE, "class"),
        (replace(SIMPLE, service_class="batch"), NEAR, FAR, THERE, "class"),
        # Nothing here can take it: better there than lost.
        (replace(COMPLEX, service_class="voice"), replace(NEAR, ready=False), FAR, THERE, "broken"),
        (replace(SIMPLE, service_class="batch"), NEAR, AWAY, HERE, "centre_away"),
    ],
)
def test_where_and_why(
    request_: TierRequest, here: SiteOffer | None, there: SiteOffer | None, where: str, reason: str
) -> None:
    """The first rule that applies decides."""
    rule = replace(RULE, stays=frozenset({"voice"}), goes=frozenset({"batch"}))
    choice = place(request_, here, there, rule)
    assert (choice.where, choice.reason) == (where, reason)


@pytest.mark.parametrize(
    ("request_", "there", "reason"),
    [
        (COMPLEX, AWAY, "centre_away"),
        (replace(COMPLEX, hops=1), FAR, "hops"),
        (replace(COMPLEX, may_leave=False), FAR, "tenant"),
    ],
)
def test_a_smaller_model_in_its_place(request_: TierRequest, there: SiteOffer, reason: str) -> None:
    """Only where its own model cannot be had: with it here, or there and reachable, it is never taken."""
    choice = place(request_, None, there, RULE, smaller=NEAR)
    assert (choice.where, choice.reason) == (SMALLER, reason)
    assert place(request_, NEAR, there, RULE, smaller=NEAR).where == HERE
    assert place(COMPLEX, None, FAR, RULE, smaller=NEAR).where == THERE


def test_where_nothing_is_ready_the_place_says_so_that_has_the_model() -> None:
    """A model of the centre alone is asked for there, one of ours waits here; what may not leave stays."""
    assert place(SIMPLE, None, AWAY, RULE).where == THERE
    assert place(SIMPLE, replace(NEAR, ready=False), AWAY, RULE).where == HERE
    assert place(replace(SIMPLE, hops=1), None, AWAY, RULE).where == HERE


def test_without_fresh_word_the_margin_is_wider_and_the_choice_says_so() -> None:
    """A third sooner is enough by a digest, and not by what was learnt; a complex one goes all the same."""
    old = offer(300, 13, confident=False)
    assert place(MIDDLE, NEAR, replace(old, confident=True), RULE).reason == "sooner"
    stayed = place(MIDDLE, NEAR, old, RULE)
    assert (stayed.reason, stayed.unsure) == ("near", True)
    assert "no fresh word" in stayed.text()
    assert place(COMPLEX, NEAR, old, RULE).where == THERE


def test_a_price_that_a_second_is_not_worth() -> None:
    """1.1 s sooner for .02 more: worth it at .02 a second, not at .01; a cheaper centre always is."""
    there = offer(300, 14, cost=0.02)
    rule = replace(RULE, cost_per_s=0.02)
    assert place(MIDDLE, NEAR, there, rule).reason == "sooner"
    assert place(MIDDLE, NEAR, there, replace(rule, cost_per_s=0.01)).reason == "near"
    assert place(MIDDLE, replace(NEAR, cost=0.03), there, replace(rule, cost_per_s=0.0)).reason == "sooner"


def test_what_the_file_may_not_say() -> None:
    """Bounds that cross, shares that are none, and a class on both sides are named."""
    wrong = TierRule(
        prompt_tokens_simple=9_000,
        back_share=1.5,
        unsure_factor=0.5,
        stays=frozenset({"a"}),
        goes=frozenset({"a"}),
    )
    assert wrong.problems() == [
        "prompt_tokens_simple (9000) must be at most prompt_tokens_complex (6000)",
        "back_share must lie in 0..1, not 1.5",
        "unsure_factor must be at least 1, not 0.5",
        "a stand in stays and in goes; take each out of one",
    ]
    assert RULE.problems() == []


def test_complexity_is_families_score() -> None:
    """A proof is more complex than a greeting; token ids say nothing."""
    chat = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, segments=("hi, thanks",), prompt_bytes=10)
    hard = "Prove step by step that the series converges, derive the limit, and compare both proofs."
    proof = Request(
        kind=RouteKind.CHAT, dialect=Dialect.OPENAI, segments=(hard * 5,), prompt_bytes=len(hard) * 5
    )
    simple, difficult = complexity_of(chat), complexity_of(proof)
    assert simple is not None
    assert difficult is not None
    assert 0.0 < simple < difficult < 1.0
    assert complexity_of(Request(kind=RouteKind.COMPLETION, dialect=Dialect.OPENAI, prompt_tokens=9)) is None


# -- laws --------------------------------------------------------------------------------------------------

times = st.integers(0, 20 * S)
offers = st.builds(
    SiteOffer,
    ready=st.booleans(),
    begins_ns=times,
    first_ns=times,
    token_ns=st.integers(0, S),
    cost=st.floats(0, 10),
    confident=st.booleans(),
    hot=st.booleans(),
)
some = st.none() | offers
rules = st.builds(
    TierRule,
    sooner_ns=times,
    sooner_share=st.floats(0, 1),
    back_share=st.floats(0, 1),
    wait_ns=times,
    unsure_factor=st.floats(1, 4),
    cost_per_s=st.none() | st.floats(0, 10),
    stays=st.just(frozenset({"voice"})),
    goes=st.just(frozenset({"batch"})),
    hops_max=st.integers(0, 3),
)
requests = st.builds(
    TierRequest,
    prompt_tokens=st.integers(0, 20_000),
    output_tokens=st.integers(0, 5_000),
    complexity=st.none() | st.floats(0, 1),
    service_class=st.sampled_from(["", "voice", "batch"]),
    hops=st.integers(0, 3),
    may_leave=st.booleans(),
    ttft_ns=times,
    tpot_ns=st.integers(0, S),
    leaning=st.sampled_from([HERE, THERE]),
)


@given(requests, some, some, rules, some)
def test_a_request_with_a_place_is_never_lost(
    request: TierRequest,
    here: SiteOffer | None,
    there: SiteOffer | None,
    rule: TierRule,
    smaller: SiteOffer | None,
) -> None:
    """Whatever is offered, a place is chosen that is ready, where one is that it may go to."""
    choice = place(request, here, there, rule, smaller=smaller)
    stuck = request.hops >= rule.hops_max or not request.may_leave
    chosen = {HERE: here, THERE: there, SMALLER: smaller}[choice.where]
    open_to_it = [here, smaller] if stuck else [here, there, smaller]
    if any(each is not None and each.ready for each in open_to_it):
        assert chosen is not None
        assert chosen.ready
    if stuck:
        assert choice.where != THERE
    if choice.where == SMALLER:
        assert here is None or not here.ready
        assert stuck or there is None or not there.ready


@given(requests, offers, offers, rules, st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_noise_below_the_margin_turns_it_once_at_most(
    request: TierRequest, here: SiteOffer, there: SiteOffer, rule: TierRule, noise: list[float]
) -> None:
    """A link whose time varies by less than the hysteresis does not send the same request to and fro."""
    rule = replace(rule, sooner_share=0.0, back_share=0.5, cost_per_s=None)
    # The narrowest band: half of the margin, half of the wait, or a quarter of the target.
    band_ns = min(rule.sooner_ns // 2, rule.wait_ns // 2, request.ttft_ns // 4 or S)
    sides, leanings = [], Leanings()
    for each in noise:
        by_ns = int(each * (band_ns // 2 - 1))
        shaken = replace(
            there, first_ns=max(0, there.first_ns + by_ns), begins_ns=max(0, there.begins_ns + by_ns)
        )
        asked = replace(request, leaning=leanings.of("p", request, rule))
        choice = place(asked, here, shaken, rule)
        leanings.went("p", request, rule, choice)
        sides.append(choice.where)
    turns = sum(one != other for one, other in pairwise(sides))
    assert turns <= 1, sides


def test_leaning_is_by_kind_and_bounded() -> None:
    """Short and long prompts lean apart, a broken link teaches nothing, and the oldest is forgotten."""
    leanings = Leanings()
    choice = place(MIDDLE, NEAR, offer(300, 14), RULE)
    leanings.went("p", MIDDLE, RULE, choice)
    assert leanings.of("p", MIDDLE, RULE) == THERE
    assert leanings.of("p", SIMPLE, RULE) == leanings.of("other", MIDDLE, RULE) == HERE
    leanings.went("p", MIDDLE, RULE, place(MIDDLE, NEAR, AWAY, RULE))
    assert leanings.of("p", MIDDLE, RULE) == THERE
    for number in range(LEANINGS_MAX):
        leanings.went(f"q{number}", MIDDLE, RULE, choice)
    assert len(leanings) == LEANINGS_MAX
    assert leanings.of("p", MIDDLE, RULE) == HERE


def test_who_went_there_comes_back_later_than_it_left() -> None:
    """The same two offers leave each where it was: between half of the margin and all of it."""
    there = offer(300, 15.5)
    assert place(MIDDLE, NEAR, there, RULE).where == HERE
    assert place(replace(MIDDLE, leaning=THERE), NEAR, there, RULE).where == THERE
