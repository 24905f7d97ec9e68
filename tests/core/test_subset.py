"""Requests that may go to some endpoints only, and those with targets of their own."""

from __future__ import annotations

from random import Random

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.ledger import Ledger
from extproc.core.outcome import End, Hold, Outcome, Reject, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import ANONYMOUS
from tests.stand.changed import replace
from tests.stand.schedulers import decided, make_scheduler

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
MS = 1_000_000
ASK = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, segments=("x" * 400,))


def fleet_of(limit: int = 4, strategy: str = "least_work") -> Fleet:
    endpoints = tuple((address, "", limit) for address in (A, B, C))
    return Fleet([PoolSpec(name="p", models=("m",), strategy=strategy, endpoints=endpoints)])


def ask(fleet: Fleet, only: frozenset[str] | None, *, rng: int = 1) -> Routed | Reject:
    return decided(
        replace(ASK, only=only),
        ANONYMOUS,
        fleet,
        Ledger(ttl_ns=1, remembered_max=8),
        id="i-1",
        default_model="m",
        reservations_max=8,
        now_ns=0,
        rng=Random(rng),
    )


def test_the_choice_and_its_retries_are_of_the_subset() -> None:
    """Whatever the strategy; the reason says how many were outside."""
    for strategy in ("least_work", "steer", "random", "round_robin"):
        for rng in range(5):
            answer = ask(fleet_of(strategy=strategy), frozenset({B, C, "9.9.9.9:1"}), rng=rng)
            assert isinstance(answer, Routed)
            assert set(answer.addresses) <= {B, C}
            assert answer.reason.removed["outside the subset"] == 1
    everyone = ask(fleet_of(), None)
    assert isinstance(everyone, Routed)
    assert set(everyone.addresses) == {A, B, C}


def test_a_subset_that_allows_nobody_is_503() -> None:
    """Empty, of strangers, or of endpoints that are not ready."""
    drained = fleet_of()
    drained.drain(B, draining=True)
    for fleet, only in (
        (fleet_of(), frozenset[str]()),
        (fleet_of(), frozenset({"9.9.9.9:1"})),
        (drained, frozenset({B})),
    ):
        answer = ask(fleet, only)
        assert isinstance(answer, Reject)
        assert (answer.status, answer.code) == (503, "no_ready_endpoint")


def test_a_held_request_waits_for_its_subset_alone() -> None:
    """A place elsewhere does not release it, one among its own does."""
    fleet = fleet_of(limit=1)
    scheduler = make_scheduler(fleet, policy=Policy(classes=(ClassSpec(hold_ns=1_000 * MS),)))
    released: dict[str, Routed | Reject] = {}
    scheduler.dispatcher.on_release = lambda id, decision: released.update({id: decision})  # noqa: A006 (the scheduler's own word)
    running = {}
    for address in (A, B):
        answer = scheduler.admit(replace(ASK, only=frozenset({address})), ANONYMOUS, now_ns=0)
        assert isinstance(answer, Routed)
        assert answer.addresses == (address,)
        running[address] = answer.reservation
    held = scheduler.admit(replace(ASK, only=frozenset({B})), ANONYMOUS, now_ns=0)
    assert isinstance(held, Hold)
    scheduler.settlement.settle(
        Outcome(reservation=running[A], final=True, status=200, end=End.OK), now_ns=10 * MS
    )
    assert not released, "C is free, and now A"
    scheduler.settlement.settle(
        Outcome(reservation=running[B], final=True, status=200, end=End.OK), now_ns=20 * MS
    )
    (decision,) = released.values()
    assert isinstance(decision, Routed)
    assert decision.addresses == (B,)


def test_a_subset_that_allows_nobody_is_told_at_once_even_where_others_wait() -> None:
    """It is not put into the line of its pool."""
    fleet = fleet_of(limit=1)
    scheduler = make_scheduler(fleet, policy=Policy())
    for _ in range(3):
        assert isinstance(scheduler.admit(ASK, ANONYMOUS, now_ns=0), Routed)
    assert isinstance(scheduler.admit(ASK, ANONYMOUS, now_ns=0), Hold)
    answer = scheduler.admit(replace(ASK, only=frozenset()), ANONYMOUS, now_ns=0)
    assert isinstance(answer, Reject)
    assert answer.status == 503


def test_targets_of_its_own() -> None:
    """They stand in place of the class's, each by itself."""
    scheduler = make_scheduler(fleet_of(), policy=Policy())
    plain = scheduler.resolve(ASK, ANONYMOUS, "i-1", now_ns=0)
    own = scheduler.resolve(replace(ASK, ttft_ms=250), ANONYMOUS, "i-2", now_ns=0)
    both = scheduler.resolve(replace(ASK, ttft_ms=250, tpot_ms=7), ANONYMOUS, "i-3", now_ns=0)
    assert not isinstance(plain, Reject)
    assert not isinstance(own, Reject)
    assert not isinstance(both, Reject)
    assert (plain.work.ttft_ms, plain.work.tpot_ms) == (1_000, 100)
    assert (own.work.ttft_ms, own.work.tpot_ms, own.work.deadline_ns) == (250, 100, 250 * MS)
    assert (both.work.ttft_ms, both.work.tpot_ms) == (250, 7)
