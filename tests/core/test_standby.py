"""Retries are bound by permits as first tries are."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.endpoint import FAILED_LATELY_NS, Endpoint
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.ledger import STANDBY_NS
from extproc.core.outcome import Hold, Outcome, Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy, Scheduler, SchedulerLimits
from extproc.core.tenant import ANONYMOUS
from tests.stand.schedulers import step

ASK = Request(kind=RouteKind.GENERATE, dialect=Dialect.TGI, prompt_bytes=40, max_new_tokens=5)


def scheduler_of(*limits: int, retries: int = 2, engine: str = "tgi", hold_ns: int = 0) -> Scheduler:
    members = tuple((f"10.0.0.{i}:80", "", limit) for i, limit in enumerate(limits))
    spec = PoolSpec(name="p", models=("m",), strategy="least_request", endpoints=members, engine=engine)
    policy = Policy(classes=(ClassSpec(hold_ns=hold_ns, retries=retries),))
    return Scheduler(
        Fleet([spec]), instance="i", default_model="m", limits=SchedulerLimits(), rng=Random(1), policy=policy
    )


def test_the_largest_promise_for_one_endpoint_is_kept() -> None:
    """One endpoint is lost at a time: sums for different ones do not add up."""
    endpoint = Endpoint(address="x", pool="p", max_concurrent=8)
    for first, permits in (("a", 2), ("b", 1), ("b", 2), ("c", 1)):
        endpoint.stand_by(first, permits)
    assert endpoint.standby == 3
    endpoint.stand_down("b", 2)
    assert endpoint.standby == 2
    endpoint.stand_down("a", 2)
    endpoint.stand_down("b", 1)
    assert endpoint.standby == 1
    endpoint.stand_down("c", 1)
    assert endpoint.standby == 0


@pytest.mark.parametrize(("limit", "most"), [(1, 0), (2, 1), (4, 2), (128, 64)])
def test_half_is_left_to_what_comes_anew(limit: int, most: int) -> None:
    """A replica of one permit is nobody's second choice: an idle one must not wait for a failure."""
    endpoint = Endpoint(address="x", pool="p", max_concurrent=limit)
    taken = 0
    while endpoint.may_stand_by("a", 1):
        endpoint.stand_by("a", 1)
        taken += 1
    assert taken == most


def test_the_list_is_as_long_as_the_class_has_retries() -> None:
    """And Envoy is told no more than the list holds."""
    for retries in (0, 1, 2, 5):
        routed = scheduler_of(*[128] * 8, retries=retries).admit(ASK, ANONYMOUS, now_ns=0)
        assert isinstance(routed, Routed)
        assert (len(routed.addresses), routed.retries) == (retries + 1, retries)
    alone = scheduler_of(128, retries=5).admit(ASK, ANONYMOUS, now_ns=0)
    assert isinstance(alone, Routed)
    assert alone.retries == 0


def test_whoever_is_lost_no_other_is_overfilled() -> None:
    """However many come at once: the requests of any one endpoint go over to their next without passing a
    limit."""
    scheduler = scheduler_of(2, 2, 4, 8)
    placed = [
        each for _ in range(30) if isinstance(each := scheduler.admit(ASK, ANONYMOUS, now_ns=0), Routed)
    ]
    assert len(placed) > 8
    for lost in scheduler.fleet.pools["p"].endpoints:
        after = {e.address: e.permits for e in scheduler.fleet.pools["p"].endpoints}
        for each in placed:
            if each.addresses[0] == lost.address and each.retries:
                after[each.addresses[1]] += 1
        for endpoint in scheduler.fleet.pools["p"].endpoints:
            if endpoint is not lost:
                assert after[endpoint.address] <= endpoint.max_concurrent


@given(
    st.lists(st.sampled_from(["admit", "first", "settle", "cancel", "expire"]), max_size=60), st.integers()
)
def test_every_promise_is_given_back(steps: list[str], seed: int) -> None:
    """Whatever becomes of the requests, an empty scheduler keeps nothing for retries."""
    scheduler, chance, now_ns = scheduler_of(3, 5, 9), Random(seed), 0
    flying: list[Routed] = []
    for what in steps:
        now_ns += 1_000_000
        if what == "admit":
            answer = scheduler.admit(ASK, ANONYMOUS, now_ns=now_ns)
            assert isinstance(answer, Routed | Reject | Hold)
            if isinstance(answer, Routed):
                flying.append(answer)
        elif what == "expire":
            now_ns += 10**12
            step(scheduler, now_ns=now_ns)
            flying.clear()
        elif flying:
            each = flying.pop(chance.randrange(len(flying)))
            if what == "first":
                scheduler.settlement.first_token(each.reservation.id, now_ns=now_ns)
                flying.append(each)
            elif what == "cancel":
                scheduler.cancel(each.reservation.id, now_ns=now_ns)
            else:
                served = chance.choice(each.addresses)
                beat = Outcome(reservation=each.reservation, final=False, served_by=served, attempts=2)
                scheduler.settlement.settle(beat, now_ns=now_ns)
                scheduler.settlement.settle(
                    Outcome(reservation=each.reservation, final=True, status=200), now_ns=now_ns
                )
    for each in flying:
        scheduler.cancel(each.reservation.id, now_ns=now_ns)
    assert all(e.standby == 0 and e.permits == 0 for e in scheduler.fleet.pools["p"].endpoints)


def test_once_it_answers_a_request_is_tried_nowhere_else() -> None:
    """Its first token gives back what was kept for it."""
    scheduler = scheduler_of(8, 8)
    routed = scheduler.admit(ASK, ANONYMOUS, now_ns=0)
    assert isinstance(routed, Routed)
    second = scheduler.fleet.endpoint("p", routed.addresses[1])
    assert second is not None
    assert second.standby == 1
    scheduler.settlement.first_token(routed.reservation.id, now_ns=1)
    assert second.standby == 0


def test_what_is_kept_is_given_back_after_a_while() -> None:
    """An answer that is long in coming holds the permits of one replica, not of two."""
    scheduler = scheduler_of(8, 8)
    assert isinstance(scheduler.admit(ASK, ANONYMOUS, now_ns=0), Routed)
    endpoints = scheduler.fleet.pools["p"].endpoints
    assert sum(each.standby for each in endpoints) == 1
    scheduler.step(now_ns=STANDBY_NS - 1)
    assert sum(each.standby for each in endpoints) == 1
    scheduler.step(now_ns=STANDBY_NS)
    assert [(each.permits, each.standby) for each in endpoints] in ([(1, 0), (0, 0)], [(0, 0), (1, 0)])


def test_an_engine_that_queues_is_named_when_full() -> None:
    """A retry waits in it: nothing is kept free for that, and the list is as long as it may be."""
    scheduler = scheduler_of(2, 2, engine="vllm")
    routed = [scheduler.admit(ASK, ANONYMOUS, now_ns=0) for _ in range(4)]
    assert all(isinstance(each, Routed) and len(each.addresses) == 2 for each in routed)
    assert [(e.permits, e.standby) for e in scheduler.fleet.pools["p"].endpoints] == [(2, 0), (2, 0)]


def test_what_failed_lately_is_no_only_choice() -> None:
    """Where no other can keep a permit for its retry, another takes it, or it waits for one."""
    scheduler = scheduler_of(8, 1, hold_ns=10**9)
    bad, other = scheduler.fleet.pools["p"].endpoints
    bad.failed(0)
    now_ns = bad.suspect_until_ns + 1
    first = scheduler.admit(ASK, ANONYMOUS, now_ns=now_ns)
    assert isinstance(first, Routed)
    assert first.addresses == (other.address,)
    assert isinstance(scheduler.admit(ASK, ANONYMOUS, now_ns=now_ns), Hold)
    later_ns = bad.failed_ns + FAILED_LATELY_NS if bad.failed_ns is not None else 0
    assert not bad.failed_lately(later_ns)


def test_a_refusal_inside_an_answer_is_no_failed_attempt() -> None:
    """No other could have been tried: it makes an endpoint suspect, and no worse a choice after that."""
    endpoint = Endpoint(address="x", pool="p")
    endpoint.failed(5, refused=True)
    assert endpoint.suspect_until_ns > 5
    assert not endpoint.failed_lately(5)
