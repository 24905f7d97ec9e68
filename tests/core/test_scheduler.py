from __future__ import annotations

from typing import Any

import pytest

from extproc.core.fleet import Endpoint, Fleet, PoolSpec
from extproc.core.outcome import End, Outcome, Reject, Reservation, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.tenant import ANONYMOUS
from tests.stand.schedulers import make_pool, make_scheduler, step

S = 1_000_000_000
A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)


def spec(*addresses: str, permits: int = 4) -> PoolSpec:
    return make_pool(*addresses, permits=permits)


def scheduler_of(*addresses: str, instance: str = "i", permits: int = 4, **limits: int) -> Scheduler:
    limited = SchedulerLimits(**{"reservation_ttl_ns": 60 * S, **limits})
    fleet = Fleet([spec(*(addresses or (A, B, C)), permits=permits)])
    return make_scheduler(fleet, instance=instance, limits=limited)


def admitted(scheduler: Scheduler, now_ns: int = 0) -> Reservation:
    decision = scheduler.admit(CHAT, ANONYMOUS, now_ns=now_ns)
    assert isinstance(decision, Routed), decision
    return decision.reservation


def end(reservation: Reservation, **facts: Any) -> Outcome:
    defaults = {"status": 200, "served_by": reservation.address, "attempts": 1, "final": True}
    return Outcome(reservation=reservation, **{**defaults, **facts})


def beat(reservation: Reservation, served_by: str | None = None) -> Outcome:
    return end(reservation, final=False, served_by=reservation.address if served_by is None else served_by)


def endpoint(scheduler: Scheduler, address: str) -> Endpoint:
    found = scheduler.fleet.endpoint("p", address)
    assert found is not None
    return found


def loads(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    return [(e.requests, e.permits, e.tokens) for e in scheduler.fleet.endpoints]


NOTHING = [(0, 0, 0)] * 3


def test_the_way_of_a_request() -> None:
    """A decision reserves on its first endpoint; the record's end releases it, once."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    assert reservation.id == "i-1"
    assert loads(scheduler) == [(1, 1, 150), (0, 0, 0), (0, 0, 0)]
    assert scheduler.settlement.settle(end(reservation), now_ns=S)
    assert loads(scheduler) == NOTHING
    assert not scheduler.settlement.settle(end(reservation), now_ns=S)
    assert loads(scheduler) == NOTHING
    assert dict(scheduler.counts) == {"routed": 1, "settled.ok": 1, "settled.duplicate": 1}


def test_a_reject_reserves_nothing() -> None:
    """And is counted by its code."""
    scheduler = scheduler_of(A, permits=1)
    admitted(scheduler)
    assert isinstance(scheduler.admit(CHAT, ANONYMOUS, now_ns=0), Reject)
    assert (len(scheduler.ledger), scheduler.counts["rejected.overloaded"]) == (1, 1)


def test_expiry() -> None:
    """Without news a reservation lives its time; with a heartbeat it lives on."""
    scheduler = scheduler_of()
    first, second = admitted(scheduler), admitted(scheduler)
    scheduler.settlement.settle(beat(first), now_ns=50 * S)
    assert [gone.id for gone in step(scheduler, now_ns=60 * S)] == [second.id]
    assert step(scheduler, now_ns=109 * S) == []
    assert [gone.id for gone in step(scheduler, now_ns=110 * S)] == [first.id]
    assert loads(scheduler) == NOTHING


def test_a_record_after_expiry_still_counts() -> None:
    """Its end is seen for the first time, though nothing is left to release."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    scheduler.step(now_ns=60 * S)
    assert scheduler.settlement.settle(end(reservation), now_ns=61 * S)
    assert not scheduler.settlement.settle(end(reservation), now_ns=61 * S)
    assert loads(scheduler) == NOTHING


def test_a_heartbeat_after_expiry_brings_the_load_back() -> None:
    """The request turned out to run: it is adopted again."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    scheduler.step(now_ns=60 * S)
    scheduler.settlement.settle(beat(reservation), now_ns=61 * S)
    assert loads(scheduler)[0] == (1, 1, 150)
    assert scheduler.counts["adopted"] == 1


def test_a_heartbeat_after_the_end_brings_nothing_back() -> None:
    """Records may overtake each other."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    scheduler.settlement.settle(end(reservation), now_ns=S)
    scheduler.settlement.settle(beat(reservation), now_ns=S)
    assert loads(scheduler) == NOTHING


def test_a_successor_adopts_running_streams() -> None:
    """After a restart the heartbeats tell what runs where, and the end releases it."""
    reservation = admitted(scheduler_of(instance="dead"))
    scheduler = scheduler_of(instance="new")
    scheduler.settlement.settle(beat(reservation), now_ns=0)
    scheduler.settlement.settle(beat(reservation), now_ns=0)
    assert loads(scheduler)[0] == (1, 1, 150)
    assert scheduler.settlement.settle(end(reservation), now_ns=S)
    assert loads(scheduler) == NOTHING


def test_adoption_is_bounded() -> None:
    """No more than the ledger may follow."""
    elsewhere = scheduler_of(instance="dead")
    scheduler = scheduler_of(reservations_max=1)
    for reservation in (admitted(elsewhere), admitted(elsewhere)):
        scheduler.settlement.settle(beat(reservation), now_ns=0)
    assert len(scheduler.ledger) == 1


def test_adoption_needs_the_endpoint() -> None:
    """A heartbeat from a replica that is not in this fleet is nobody's load."""
    reservation = admitted(scheduler_of("10.9.9.9:80", instance="dead"))
    scheduler = scheduler_of()
    scheduler.settlement.settle(beat(reservation), now_ns=0)
    assert (len(scheduler.ledger), loads(scheduler)) == (0, NOTHING)


def test_a_retry_takes_its_load_along() -> None:
    """A heartbeat from another endpoint moves it; one from nowhere leaves it where it was."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    scheduler.settlement.settle(beat(reservation, B), now_ns=0)
    assert loads(scheduler) == [(0, 0, 0), (1, 1, 150), (0, 0, 0)]
    scheduler.settlement.settle(beat(reservation, ""), now_ns=0)
    scheduler.settlement.settle(beat(reservation, "10.9.9.9:80"), now_ns=0)
    assert loads(scheduler) == [(0, 0, 0), (1, 1, 150), (0, 0, 0)]
    scheduler.settlement.settle(end(reservation, served_by=B, attempts=2), now_ns=0)
    assert loads(scheduler) == NOTHING
    assert scheduler.counts["moved"] == 1


def test_a_cancelled_decision_is_undone() -> None:
    """Before delivery, and once."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    scheduler.cancel(reservation.id, now_ns=0)
    scheduler.cancel(reservation.id, now_ns=0)
    assert (loads(scheduler), scheduler.counts["cancelled"]) == (NOTHING, 1)


def test_what_is_held_by_an_endpoint_that_left_is_released_onto_it() -> None:
    """A reload between decision and end harms no sum, also when the endpoint comes back."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    old = endpoint(scheduler, A)
    scheduler.fleet.apply([spec(B, C)])
    assert scheduler.settlement.settle(end(reservation), now_ns=S)
    assert (old.requests, old.permits, old.tokens) == (0, 0, 0)
    scheduler.fleet.apply([spec(A, B, C)])
    assert loads(scheduler) == NOTHING


def test_the_memory_of_ends_is_bounded() -> None:
    """Beyond it the oldest is forgotten; a lowered bound holds at once."""
    scheduler = scheduler_of(settled_remembered_max=4)
    reservations = []
    for _ in range(5):
        reservations.append(admitted(scheduler))
        scheduler.settlement.settle(end(reservations[-1]), now_ns=0)
    assert [scheduler.ledger.ended(r.id) for r in reservations] == [False, True, True, True, True]
    scheduler.ledger.remembered_max = 2
    assert scheduler.settlement.settle(end(reservations[0]), now_ns=0), (
        "forgotten: counted a second time, releasing nothing"
    )
    assert [scheduler.ledger.ended(r.id) for r in reservations] == [True, False, False, False, True]
    assert loads(scheduler) == NOTHING


@pytest.mark.parametrize(
    ("facts", "suspect"),
    [
        ({}, False),
        ({"status": 429, "end": End.REFUSED}, False),
        ({"status": 503, "end": End.ERROR}, True),
        ({"status": 503, "end": End.ERROR, "served_by": ""}, True),
        ({"served_by": B, "attempts": 2}, True),
        ({"served_by": B, "attempts": 1}, False),
        ({"status": 0, "end": End.CLIENT_GONE}, False),
        ({"status": 0, "end": End.CLIENT_GONE, "served_by": "", "attempts": 2}, True),
    ],
)
def test_passive_health(facts: dict[str, Any], suspect: bool) -> None:
    """Who fails, or makes Envoy go elsewhere, is suspect; a client's leaving and a 4xx say nothing bad."""
    scheduler = scheduler_of()
    scheduler.settlement.settle(end(admitted(scheduler), **facts), now_ns=S)
    assert (endpoint(scheduler, A).suspect_until_ns > S) is suspect
    assert endpoint(scheduler, B).suspect_until_ns == 0


def test_an_answer_restores_trust() -> None:
    """One answered request ends the suspicion."""
    scheduler = scheduler_of()
    reservation = admitted(scheduler)
    endpoint(scheduler, A).failed(0)
    scheduler.settlement.settle(end(reservation), now_ns=S)
    assert endpoint(scheduler, A).suspect_until_ns == 0


def test_only_whole_answers_teach() -> None:
    """Lengths of cut, failed and refused answers are no evidence; an empty answer is."""
    scheduler = scheduler_of()
    before = scheduler.fleet.pools["p"].calibration.output_tokens
    for ending in (End.CLIENT_GONE, End.ERROR, End.REFUSED):
        scheduler.settlement.settle(
            end(admitted(scheduler), end=ending, output_tokens=9_999, prompt_tokens=9_999), now_ns=0
        )
    calibration = scheduler.fleet.pools["p"].calibration
    assert calibration.output_tokens == before
    assert calibration.bytes_per_token == 4.0
    scheduler.settlement.settle(end(admitted(scheduler), output_tokens=0, prompt_tokens=200), now_ns=0)
    assert calibration.output_tokens < before
    assert calibration.bytes_per_token < 4.0
