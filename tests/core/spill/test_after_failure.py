"""Who is served at home and goes to the provider if home fails: which requests, and what is kept free."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.core.fleet import Member
from extproc.core.outcome import Hold, Routed
from extproc.core.request import RouteKind
from extproc.core.spill.values import RateLimits
from tests.core.spill.test_spill import ACME, ASKED, MOST, OWN, PAID, PRIVATE, RULE, Charges, Fleetlet, S
from tests.stand.changed import replace


def at_home(**facts: Any) -> tuple[Fleetlet, Routed]:
    """One that is served at home, and elsewhere if that fails."""
    made = Fleetlet(replace(RULE, after_failure=True, **facts), limits=RateLimits(requests_per_minute=9))
    routed = made.asked()
    assert isinstance(routed, Routed)
    return made, routed


def test_the_provider_stands_behind_home() -> None:
    """As the last of its tries, of tenants that allow it, in their regions, with its model's name there."""
    made, routed = at_home()
    assert routed.addresses == (OWN, PAID)
    assert (routed.reservation.pool, routed.reservation.then, routed.second_model) == ("p", "paid", "gpt")
    assert routed.cluster == "onward.p/paid/1/standard"
    assert routed.headers == ()
    made.ended(routed, now_ns=0)
    for tenant in (PRIVATE, replace(ACME, regions=frozenset({"eu"}))):
        kept = made.scheduler.resolve(ASKED, tenant, "x", now_ns=0)
        assert getattr(kept, "then", None) is None
    for change in ({"once": True}, {"kind": RouteKind.TOKENIZE}, {"prompt_tokens": 4}):
        kept = made.scheduler.resolve(replace(ASKED, **change), ACME, "x", now_ns=0)
        assert getattr(kept, "then", None) is None


@pytest.mark.parametrize("end", ["home", "failed", "cancelled", "expired"])
def test_what_it_can_cost_after_a_failure_is_kept_free(end: str) -> None:
    """Until it ends; then it has cost what it was charged there, or nothing at home."""
    made, routed = at_home(budget_per_hour=MOST)
    assert made.books.spent("p", now_ns=0) == MOST
    assert made.books.under_way == 0
    # Another has no room in the budget: it is served at home alone.
    made.scheduler.fleet.set_members(
        {"p": [Member(OWN, max_concurrent=9)], "paid": [Member(PAID, max_concurrent=9)]}
    )
    alone = made.asked()
    assert isinstance(alone, Routed)
    assert alone.addresses == (OWN,)
    charged: list[float] = []
    made.scheduler.events.observers = (*made.scheduler.events.observers, Charges(charged))
    if end == "home":
        made.ended(routed, now_ns=S)
    elif end == "failed":
        made.ended(routed, now_ns=S, failed_home="503", served_by=PAID, attempts=2)
    elif end == "cancelled":
        made.scheduler.cancel(routed.reservation.id, now_ns=S)
    else:
        made.scheduler.step(now_ns=10_000 * S)
    now_ns = 10_000 * S if end == "expired" else S
    spent = {"home": 0.0, "failed": 20.0, "cancelled": 0.0, "expired": MOST}[end]
    assert made.books.spent("p", now_ns=now_ns) == spent
    assert charged == ({"home": [0.0], "failed": [20.0]}.get(end, []))
    assert made.books.counts == ({("p", "paid", "failed"): 1} if end == "failed" else {})
    endpoint = made.scheduler.fleet.endpoint("p", OWN)
    assert endpoint is not None
    assert endpoint.failed_lately(now_ns) is (end == "failed")


def test_who_waits_with_room_kept_free_takes_that_when_it_goes() -> None:
    """What was kept for its home's failure is its own, and counts once."""
    made, first = at_home(budget_per_hour=2 * MOST)
    made.scheduler.fleet.set_members({"p": [Member(OWN, max_concurrent=1)], "paid": []})
    made.ended(first, now_ns=0)
    taking = made.asked(tenant=PRIVATE)
    assert isinstance(taking, Routed)
    made.scheduler.fleet.set_members(
        {"p": [Member(OWN, max_concurrent=1)], "paid": [Member(PAID, max_concurrent=1)]}
    )
    there = made.asked(replace(ASKED, model="gpt"))
    assert isinstance(there, Routed)
    waits = made.asked()
    assert isinstance(waits, Hold)
    assert made.books.spent("p", now_ns=0) == MOST
    made.ended(there, now_ns=S)
    told: dict[str, Any] = {}
    made.scheduler.dispatcher.on_release = told.__setitem__
    made.scheduler.step(now_ns=2 * S)
    assert told[waits.id].reservation.pool == "paid"
    assert made.books.spent("p", now_ns=2 * S) == MOST
    assert made.books.under_way == 1
