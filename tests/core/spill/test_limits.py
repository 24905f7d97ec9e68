"""A provider's own word on its rate limits: how it is read, and what is left of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.spill.limits import TOLD_S_MAX, UNSAID_S, ProviderAccount, ToldLimits, told_limits

S = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("59 1s 149984 6m0s -", ToldLimits(59, 1.0, 149_984, 360.0)),  # OpenAI
        ("14399 17.28s 5000 20ms -", ToldLimits(14_399, 17.28, 5_000, 0.02)),
        ("0 60 - - 20", ToldLimits(0, 60.0, None, UNSAID_S, 20.0)),  # seconds alone
        ("7 - - - -", ToldLimits(7, UNSAID_S)),
        ("7 8h12m - - -", ToldLimits(7, TOLD_S_MAX)),
        ("- - - - 3", ToldLimits(retry_after_s=3.0)),
        ("- - - - -", None),
        ("-5 1s soon 1s Wed,_21_Oct", None),
        ("1 2 3", None),
        ("7 1s2 - - -", ToldLimits(7, UNSAID_S)),
    ],
)
def test_as_providers_write_them(text: str, told: ToldLimits | None) -> None:
    """Counts, Go's durations, plain seconds; what is none of these was not said."""
    assert told_limits(text) == told


@given(st.text(max_size=400))
def test_any_text_is_read_or_passed_over(text: str) -> None:
    """A provider's headers are no more trusted than any."""
    told = told_limits(text)
    assert told is None or 0 <= told.requests_s <= TOLD_S_MAX


def test_what_went_since_counts_against_it() -> None:
    """Figures are of the request that brought them: what went there after it has used some of them."""
    account = ProviderAccount()
    account.went("a", 100.0)
    account.went("b", 50.0)
    account.gone("a", ToldLimits(2, 10.0, 400, 10.0), now_ns=0)
    assert account.left(now_ns=0) == {"requests": 1, "tokens": 350}
    assert account.has_room(350.0, share=1, now_ns=0)
    assert not account.has_room(351.0, share=1, now_ns=0)
    assert not account.has_room(1.0, share=2, now_ns=0), "two services draw on the one that is left"
    account.went("c", 1.0)
    assert not account.has_room(1.0, share=1, now_ns=9 * S)
    assert account.has_room(1e9, share=1, now_ns=10 * S), "whole again"
    account.gone("b", ToldLimits(5, 10.0), now_ns=20 * S)
    assert account.left(now_ns=20 * S) == {"requests": 4, "tokens": None}


@given(
    st.lists(st.sampled_from(["go", "end", "say"]), max_size=60),
    st.integers(min_value=0, max_value=20),
)
def test_no_more_goes_than_a_provider_has(steps: list[str], room: int) -> None:
    """A provider that counts at a request's coming and says so with its end is never asked for more."""
    account, left, under_way, number = ProviderAccount(), room, [], 0
    account.went("first", 0.0)
    account.gone("first", ToldLimits(room, 1e6), now_ns=0)
    for step in steps:
        if step == "go" and account.has_room(0.0, share=1, now_ns=0):
            number += 1
            account.went(str(number), 0.0)
            left -= 1
            under_way.append((str(number), left))
        elif step != "go" and under_way:
            # In any order, with what was left when it began to answer.
            request, then = under_way.pop(0 if step == "end" else -1)
            account.gone(request, ToldLimits(then, 1e6) if step == "say" else None, now_ns=0)
        assert left >= 0
