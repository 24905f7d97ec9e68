"""The hold path: who waits, in whose order, what ends a wait, and what the quota says of it."""

from __future__ import annotations

import pytest

from extproc.core.accounts import Accounts
from extproc.core.fleet import Member, PoolSpec
from extproc.core.outcome import Outcome, Reject, Routed
from extproc.core.quota import limits
from extproc.core.request import RouteKind
from extproc.core.scheduler import ClassSpec
from tests.stand.changed import replace
from tests.stand.holding import ACME, CHAT, GLOBEX, A, B, S, Scene, policy
from tests.stand.schedulers import step


def test_a_held_request_goes_where_a_permit_is_freed() -> None:
    """It is routed under the id it was held by, and enters the books then."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held(now_ns=S)
    assert hold.until_ns == 6 * S
    assert (len(scene.scheduler.ledger), len(scene.scheduler.dispatcher.queue)) == (1, 1)
    scene.ends(first, now_ns=2 * S)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id == decision.reservation.id
    assert hold.id in scene.scheduler.ledger
    assert [scene.scheduler.counts[name] for name in ("held", "released", "routed")] == [1, 1, 2]


def test_nobody_jumps_the_queue() -> None:
    """Who comes when a place is free but others wait for it goes behind them."""
    scene = Scene(permits=2)
    both = [scene.routed(), scene.routed()]
    wide = scene.held(GLOBEX, replace(CHAT, sequences=2))
    scene.ends(both[0])
    assert scene.released == [], "two permits are asked for, one is free"
    narrow = scene.scheduler.admit(CHAT, GLOBEX, now_ns=0)
    # The first of the line does not fit; the place is not left idle for it.
    assert isinstance(narrow, Routed)
    assert wide.id in scene.scheduler.dispatcher.queue
    later = scene.held(GLOBEX)
    scene.ends(both[1])
    assert scene.last()[0] == later.id
    assert wide.id in scene.scheduler.dispatcher.queue


def test_one_tenants_requests_leave_in_the_order_they_came() -> None:
    """First in, first out, while all can still meet their deadline."""
    scene = Scene()
    first = scene.routed()
    holds = [scene.held(now_ns=i) for i in range(4)]
    scene.ends(first, now_ns=10)
    assert [scene.next(now_ns=10).id for _ in holds] == [hold.id for hold in holds]
    assert scene.released == []
    assert len(scene.scheduler.ledger) == 0


def test_tenants_take_turns() -> None:
    """Three of one and one of another: the one does not wait for the three."""
    scene = Scene()
    first = scene.routed()
    holds = {scene.held(ACME).id: "acme" for _ in range(3)}
    holds |= {scene.held(GLOBEX).id: "globex"}
    scene.ends(first)
    order = [holds[scene.next().id] for _ in range(4)]
    assert order.index("globex") <= 1, order


def test_a_better_class_goes_first() -> None:
    """Whoever came first; an unknown class is the last."""
    scene = Scene(policy(ClassSpec(name="gold", hold_ns=S), ClassSpec(name="standard", hold_ns=S)))
    first = scene.routed()
    unknown = scene.held(replace(GLOBEX, service_class="forgotten"))
    standard = scene.held(ACME, now_ns=1)
    gold = scene.held(replace(ACME, service_class="gold"), now_ns=2)
    scene.ends(first, now_ns=3)
    order = [scene.next(now_ns=3).id for _ in range(3)]
    assert order[0] == gold.id
    assert set(order[1:]) == {unknown.id, standard.id}


def test_a_hold_that_ends_is_429_with_what_was_waited() -> None:
    """The message names pool and time, Retry-After is a second at least, the quota is as before."""
    scene = Scene()
    scene.routed()
    hold = scene.held(now_ns=S)
    assert scene.concurrent == 2
    scene.scheduler.step(now_ns=6 * S - 1)
    assert scene.released == []
    scene.scheduler.step(now_ns=6 * S)
    id_, shed = scene.last()
    assert id_ == hold.id
    assert isinstance(shed, Reject)
    assert (shed.status, shed.code) == (429, "overloaded")
    assert shed.message == "no replica of pool 'p' had room within 5.0 s"
    assert shed.retry_after_s is not None
    assert shed.retry_after_s >= 1
    assert scene.concurrent == 1
    assert [scene.scheduler.counts[name] for name in ("shed", "rejected.overloaded")] == [1, 1]


def test_who_leaves_gets_the_quota_back() -> None:
    """And is gone from the queue; leaving twice, or after the release, changes nothing."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held()
    scene.scheduler.leave(hold.id, now_ns=0)
    scene.scheduler.leave(hold.id, now_ns=0)
    assert (len(scene.scheduler.dispatcher.queue), scene.concurrent, scene.scheduler.counts["held.left"]) == (
        0,
        1,
        1,
    )
    scene.ends(first)
    assert scene.released == []


def test_who_waits_goes_before_who_comes_when_room_came_unnoticed() -> None:
    """A new replica that no pump has seen yet: the next arrival finds the older one's turn first."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.set_members({"p": [Member(A, max_concurrent=1), Member(B, max_concurrent=1)]})
    later = scene.held(GLOBEX)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id
    assert later.id in scene.scheduler.dispatcher.queue


def test_without_a_hold_time_full_is_a_refusal() -> None:
    """hold_ms 0: 429 at once, and nothing of the quota is kept."""
    scene = Scene(policy(ClassSpec(hold_ns=0)))
    scene.routed()
    reject = scene.rejected()
    assert (reject.status, reject.code, reject.retry_after_s) == (429, "overloaded", 1)
    assert (len(scene.scheduler.dispatcher.queue), scene.concurrent, scene.scheduler.counts["held"]) == (
        0,
        1,
        0,
    )


@pytest.mark.parametrize("kind", [RouteKind.TOKENIZE, RouteKind.INFO])
def test_what_costs_no_place_never_waits(kind: RouteKind) -> None:
    """On a full replica, past those who wait."""
    scene = Scene()
    scene.routed()
    scene.held()
    free = scene.routed(GLOBEX, replace(CHAT, kind=kind))
    assert (free.permits, len(scene.scheduler.dispatcher.queue)) == (0, 1)


def test_over_its_bound_a_tenants_newest_is_shed() -> None:
    """It is told at once, with the quota back; who waited before still waits."""
    scene = Scene(policy(tenant_held_max=1))
    scene.routed()
    hold = scene.held()
    reject = scene.rejected()
    assert (reject.status, reject.code) == (429, "overloaded")
    assert hold.id in scene.scheduler.dispatcher.queue
    assert (len(scene.scheduler.dispatcher.queue), scene.concurrent) == (1, 2)


def test_over_the_classes_bound_the_fullest_tenant_gives_way() -> None:
    """Somebody else's newest is shed for the new one, and hears of it."""
    scene = Scene(policy(class_held_max=(2,)))
    scene.routed()
    holds = [scene.held(ACME) for _ in range(2)]
    own = scene.held(GLOBEX)
    id_, shed = scene.last()
    assert isinstance(shed, Reject)
    assert id_ == holds[1].id
    assert own.id in scene.scheduler.dispatcher.queue
    assert scene.concurrent == 3


def test_a_spent_quota_is_refused_before_the_wait() -> None:
    """Who may not have it does not wait for it; the waiting count against concurrency."""
    scene = Scene(replace(policy(), accounts=Accounts(tenants={"acme": limits(concurrent_requests=2)})))
    scene.routed()
    scene.held()
    reject = scene.rejected()
    assert (reject.status, reject.code) == (429, "quota_exceeded")
    assert len(scene.scheduler.dispatcher.queue) == 1


def test_a_reload_with_other_classes_sheds_who_waits() -> None:
    """429 and the quota back: their places in the order are no more. What runs is untouched."""
    scene = Scene()
    first = scene.routed()
    holds = {scene.held().id, scene.held(GLOBEX).id}
    scene.scheduler.apply(
        replace(scene.scheduler.settings, policy=policy(ClassSpec(name="gold"), ClassSpec(name="standard"))),
        now_ns=S,
    )
    assert {id_ for id_, _ in scene.released} == holds
    assert all(isinstance(each, Reject) and each.status == 429 for _, each in scene.released)
    assert (len(scene.scheduler.dispatcher.queue), scene.concurrent, len(scene.scheduler.ledger)) == (0, 1, 1)
    scene.released.clear()
    hold = scene.held(now_ns=S)
    scene.ends(first, now_ns=S)
    assert scene.last()[0] == hold.id


def test_a_reload_with_the_same_classes_lets_them_wait() -> None:
    """New bounds hold for the next; nobody loses a place."""
    scene = Scene()
    first = scene.routed()
    hold = scene.held()
    scene.scheduler.apply(replace(scene.scheduler.settings, policy=policy(tenant_held_max=1)), now_ns=0)
    assert scene.released == []
    assert scene.rejected().status == 429
    scene.ends(first)
    assert scene.last()[0] == hold.id


def test_a_pool_that_is_no_more_ends_the_wait() -> None:
    """404 at the next pump, not at the hold's end."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.apply([PoolSpec(name="q", models=("n",), strategy="least_work", endpoints=())])
    scene.scheduler.dispatcher.pump_all(now_ns=S)
    id_, reject = scene.last()
    assert isinstance(reject, Reject)
    assert (id_, reject.status) == (hold.id, 404)
    assert scene.concurrent == 1


def test_a_new_replica_takes_who_waits() -> None:
    """A pump after a change of members."""
    scene = Scene()
    scene.routed()
    hold = scene.held()
    scene.scheduler.fleet.set_members({"p": [Member(A, max_concurrent=1), Member(B, max_concurrent=1)]})
    scene.scheduler.dispatcher.pump_all(now_ns=S)
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert (id_, decision.reservation.address) == (hold.id, B)


def test_a_long_wait_keeps_its_quota() -> None:
    """A hold may last longer than a reservation lives unheard of: who left or was shed pays nothing."""
    scene = Scene(policy(ClassSpec(hold_ns=200 * S)))
    first = scene.routed()
    hold = scene.held()
    heartbeat = Outcome(reservation=first, final=False, served_by=A)
    for seconds in range(0, 150, 10):
        scene.scheduler.settlement.settle(heartbeat, now_ns=seconds * S)
        scene.scheduler.step(now_ns=seconds * S)
    assert scene.concurrent == 2
    scene.scheduler.leave(hold.id, now_ns=150 * S)
    assert scene.concurrent == 1
    assert scene.quotas.totals["expired"] == 0
    assert scene.quotas.counts["cancelled"] == 1


def test_room_that_an_expiry_makes_is_used_before_anybody_is_shed() -> None:
    """Both fall due at once: the held request is routed."""
    scene = Scene(policy(ClassSpec(hold_ns=60 * S)))
    scene.routed()
    hold = scene.held()
    assert len(step(scene.scheduler, now_ns=60 * S)) == 1
    id_, decision = scene.last()
    assert isinstance(decision, Routed)
    assert id_ == hold.id
