"""What a retry's answer teaches: of who served, and nothing of who failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet
from extproc.core.outcome import Outcome, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import ANONYMOUS
from tests.stand.schedulers import make_pool, make_scheduler, step

MS = 1_000_000
A, B = "10.0.0.1:80", "10.0.0.2:80"
PREFIX = tuple(range(1, 17))
#: A prompt of 16 blocks of 64 tokens.
ASK = Request(
    kind=RouteKind.CHAT,
    dialect=Dialect.OPENAI,
    stream=True,
    prompt_tokens=1_024,
    max_new_tokens=8,
    prefix=PREFIX,
    prefix_block_tokens=64.0,
)


def placed(scheduler: Scheduler, now_ns: int = 0) -> Routed:
    decision = scheduler.admit(ASK, ANONYMOUS, now_ns=now_ns)
    assert isinstance(decision, Routed), decision
    assert decision.addresses[0] == A
    return decision


def scheduler_of(engine: str = "vllm") -> Scheduler:
    return make_scheduler(Fleet([replace(make_pool(A, B), engine=engine)]))


def endpoint(scheduler: Scheduler, address: str) -> Endpoint:
    found = scheduler.fleet.endpoint("p", address)
    assert found is not None
    return found


def held(scheduler: Scheduler, address: str) -> int:
    return scheduler.fleet.pools["p"].prefixes.blocks(address)


def end(decision: Routed, served_by: str) -> Outcome:
    return Outcome(
        reservation=decision.reservation,
        final=True,
        status=200,
        served_by=served_by,
        attempts=2,
        duration_ns=900 * MS,
        ttft_ns=800 * MS,
        output_tokens=8,
    )


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
@pytest.mark.parametrize(("said", "served_by"), [(A, A), (B, B), ("", A), ("", B)])
def test_the_prompt_is_cached_where_it_was_served(engine: str, said: str, served_by: str) -> None:
    """Whether the first token's event, or only the record, says who that was, and when engines cache."""
    scheduler = scheduler_of(engine)
    decision = placed(scheduler)
    scheduler.settlement.first_token(decision.reservation.id, now_ns=300 * MS, served_by=said)
    scheduler.settlement.settle(end(decision, served_by), now_ns=900 * MS)
    other = B if served_by == A else A
    assert (held(scheduler, served_by), held(scheduler, other)) == (len(PREFIX), 0)


def test_what_was_cached_before_stays() -> None:
    """A record of a retry takes back what its request alone was believed to leave."""
    scheduler = scheduler_of()
    prefixes = scheduler.fleet.pools["p"].prefixes
    prefixes.insert(A, PREFIX[:10], capacity_blocks=100)
    decision = placed(scheduler)
    # In time for a prompt that is cached there in part: later would tell of a cache that lost it.
    scheduler.settlement.first_token(decision.reservation.id, now_ns=int(decision.reservation.ttft_ms) * MS)
    assert held(scheduler, A) == 16
    scheduler.settlement.settle(end(decision, B), now_ns=900 * MS)
    assert (held(scheduler, A), held(scheduler, B)) == (10, 16)


def test_the_load_goes_along_with_the_first_token() -> None:
    """Who answers has the stream from then on, and is the prompt's home."""
    scheduler = scheduler_of()
    decision = placed(scheduler)
    scheduler.settlement.first_token(decision.reservation.id, now_ns=300 * MS, served_by=B)
    loads = [(each.requests, each.load.streaming) for each in scheduler.fleet.endpoints]
    assert loads == [(0, 0), (1, 1)]
    assert scheduler.fleet.pools["p"].coming.match(PREFIX)[B] == len(PREFIX)
    assert scheduler.counts["moved"] == 1
    scheduler.settlement.first_token(decision.reservation.id, now_ns=301 * MS, served_by=B)
    scheduler.settlement.first_token(decision.reservation.id, now_ns=301 * MS, served_by="10.0.0.9:80")
    assert scheduler.counts["moved"] == 1, "where it is, or no endpoint of ours"
    scheduler.settlement.settle(end(decision, B), now_ns=900 * MS)
    assert [each.requests for each in scheduler.fleet.endpoints] == [0, 0]


@pytest.mark.parametrize("said", [B, ""], ids=["told", "by its record"])
def test_a_retry_teaches_no_speed(said: str) -> None:
    """Neither of who failed nor of who served, that began later than it was placed: but a late first token
    had taught, before it was known why it was late, and that is taken back."""
    scheduler = scheduler_of()
    heard = placed(scheduler)
    scheduler.settlement.first_token(heard.reservation.id, now_ns=100 * MS, served_by=A)
    scheduler.settlement.settle(
        Outcome(reservation=heard.reservation, final=True, status=200, served_by=A, attempts=1),
        now_ns=200 * MS,
    )
    before = [each.speed.factor for each in scheduler.fleet.endpoints]
    endpoint(scheduler, B).draining = True
    endpoint(scheduler, B).refresh()
    decision = placed(scheduler, 300 * MS)
    endpoint(scheduler, B).draining = False
    endpoint(scheduler, B).refresh()
    step(scheduler, now_ns=9_000 * MS)
    assert scheduler.counts["first_token.overdue"] == 1
    assert endpoint(scheduler, A).speed.factor > before[0]
    if said:
        scheduler.settlement.first_token(decision.reservation.id, now_ns=9_100 * MS, served_by=said)
    scheduler.settlement.settle(end(decision, B), now_ns=9_200 * MS)
    assert [each.speed.factor for each in scheduler.fleet.endpoints] == pytest.approx(before)
