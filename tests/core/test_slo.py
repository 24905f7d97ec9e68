"""What a request's end says of its class's targets: the one meaning of attained."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.outcome import End, Outcome
from extproc.core.slo import ClassSpec, sample_of
from tests.stand.schedulers import make_reservation

MS = 1_000_000
#: 1 s to the first token, 100 ms for each further one.
CLASS = ClassSpec()


def outcome(**facts: Any) -> Outcome:
    reservation = make_reservation(
        address="a",
        output_tokens=50,
        permits=facts.pop("permits", 1),
        stream=True,
        held_ms=facts.pop("held_ms", 0.0),
    )
    return Outcome(reservation=reservation, final=True, **facts)


@pytest.mark.parametrize(
    ("facts", "attained", "error"),
    [
        # 11 tokens: the first at 500 ms, ten more within 1,000 ms.
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 11}, True, False),
        ({"ttft_ns": 1_100 * MS, "duration_ns": 1_400 * MS, "output_tokens": 11}, False, False),
        ({"ttft_ns": 500 * MS, "duration_ns": 1_600 * MS, "output_tokens": 11}, False, False),
        # One token has no further one; two sequences share the count.
        ({"ttft_ns": 500 * MS, "duration_ns": 902 * MS, "output_tokens": 1}, True, False),
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 22, "permits": 2}, True, False),
        # Nobody counted its tokens.
        ({"ttft_ns": 500 * MS, "duration_ns": 60_000 * MS}, True, False),
        # Not streamed: the whole within the sum of both, 1,000 + 10 × 100 ms.
        ({"duration_ns": 1_900 * MS, "output_tokens": 11}, True, False),
        ({"duration_ns": 2_100 * MS, "output_tokens": 11}, False, False),
        ({"end": End.ERROR, "duration_ns": MS}, False, True),
        # What the engine did not like of the request is its client's mistake; what it had no room for is not.
        ({"end": End.REFUSED, "status": 400, "duration_ns": MS}, None, False),
        ({"end": End.REFUSED, "status": 429, "duration_ns": MS}, False, False),
        ({"end": End.REFUSED, "refused": True}, False, True),
        # A client that left: judged by its first token, or by the lack of one that was due.
        ({"end": End.CLIENT_GONE, "ttft_ns": 900 * MS, "duration_ns": 9_000 * MS}, True, False),
        ({"end": End.CLIENT_GONE, "duration_ns": 900 * MS}, None, None),
        ({"end": End.CLIENT_GONE, "duration_ns": 1_100 * MS}, False, None),
        # Costs no place on a replica.
        ({"duration_ns": 60_000 * MS, "permits": 0}, None, None),
    ],
)
def test_what_attains(facts: dict[str, Any], attained: bool | None, error: bool | None) -> None:
    """By both targets of the class; what fails is missed, who left early says nothing."""
    sample = sample_of(outcome(**facts), CLASS)
    assert (sample.attained, sample.error) == (attained, error)


@pytest.mark.parametrize(
    ("facts", "ttft_ms", "tpot_ms", "total_ms"),
    [
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 10}, 500, 100, 1_400),
        # Of one sequence: both have ten tokens.
        (
            {"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 20, "permits": 2},
            500,
            100,
            1_400,
        ),
        # Nobody counted, or there is no further token.
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS}, 500, None, 1_400),
        ({"ttft_ns": 500 * MS, "duration_ns": 1_400 * MS, "output_tokens": 1}, 500, None, 1_400),
        ({"duration_ns": 1_400 * MS, "output_tokens": 10}, None, None, 1_400),
        ({"end": End.ERROR, "ttft_ns": 500 * MS, "duration_ns": 1_400 * MS}, 500, None, None),
        ({"end": End.CLIENT_GONE, "ttft_ns": 500 * MS, "duration_ns": 1_400 * MS}, 500, None, None),
        # Its first chunk said that the engine is overloaded: that is no token.
        ({"end": End.REFUSED, "refused": True, "ttft_ns": 500 * MS}, None, None, None),
    ],
)
def test_times(
    facts: dict[str, Any], ttft_ms: float | None, tpot_ms: float | None, total_ms: float | None
) -> None:
    """The first token of every stream that began to answer; the others of what ended well."""
    sample = sample_of(outcome(**facts), CLASS)
    assert (sample.ttft_ms, sample.tpot_ms, sample.total_ms) == (ttft_ms, tpot_ms, total_ms)


def test_who_gives_up() -> None:
    """By its class's first token, longer for a long prompt."""
    assert [CLASS.given_up(100, ms * MS) for ms in (1_000, 1_001)] == [None, False]
    assert [CLASS.given_up(9_000, ms * MS) for ms in (5_000, 5_001)] == [None, False]
