"""Refused bodies are charged to who sent them."""

from __future__ import annotations

from extproc.core.refusals import REFUSAL_BYTES_MIN, SENDERS_MAX, RefusalBudget

S = 1_000_000_000


def test_a_minutes_worth_at_once_then_the_rate() -> None:
    """60 KiB a minute: 60 refusals of a KiB at once, and from then on one a second."""
    budget = RefusalBudget(60 * 1024)
    for _ in range(60):
        assert budget.spent_s("a", now_ns=0) == 0
        budget.charge("a", 1024, now_ns=0)
    assert budget.spent_s("a", now_ns=0) == 0
    budget.charge("a", 1024, now_ns=0)
    assert budget.spent_s("a", now_ns=0) == 1
    assert budget.spent_s("a", now_ns=S) == 0
    assert budget.spent_s("b", now_ns=0) == 0


def test_an_empty_body_costs_something() -> None:
    """It was looked at all the same."""
    budget = RefusalBudget(10 * REFUSAL_BYTES_MIN)
    for _ in range(11):
        budget.charge("a", 0, now_ns=0)
    assert budget.spent_s("a", now_ns=0) > 0


def test_senders_are_bounded() -> None:
    """The one that was refused longest ago is forgotten."""
    budget = RefusalBudget(1)
    for i in range(SENDERS_MAX + 5):
        budget.charge(str(i), 10**6, now_ns=0)
    assert len(budget) == SENDERS_MAX
    assert budget.spent_s("0", now_ns=0) == 0
    assert budget.spent_s(str(SENDERS_MAX), now_ns=0) > 0
