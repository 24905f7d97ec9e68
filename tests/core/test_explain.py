"""What explanations say, and that asking for one changes nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from extproc.cli.explain import facts
from extproc.core.explain import Explanation
from extproc.core.families import Family
from extproc.core.fleet import Member, PoolSpec
from extproc.core.health import Cause, CauseKind
from extproc.core.outcome import LATER_MS, EndpointRow, Hold, Routed
from extproc.core.policy import ClassSpec
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Policy, Scheduler, SchedulerLimits
from extproc.core.strategies import STRATEGIES, SchedulingContext, Work, build
from extproc.core.tenant import ANONYMOUS, Tenant
from tests.stand.changed import replace
from tests.stand.fleets import one_at_a_time
from tests.stand.schedulers import make_scheduler

S = 1_000_000_000
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)


def scheduler_of(
    count: int = 3, *, strategy: str = "least_work", permits: int = 4, hold_ns: int = 0, **pool: Any
) -> Scheduler:
    members = tuple(
        Member(f"10.0.0.{i}:80", max_concurrent=permits, region="eu" if i else "us") for i in range(count)
    )
    spec = PoolSpec(name="p", models=("m",), strategy=strategy, endpoints=members, **pool)
    policy = Policy(classes=(ClassSpec(hold_ns=hold_ns),))
    limits = SchedulerLimits()
    return make_scheduler(spec, limits=limits, rng=Random(7), policy=policy)


def rows(found: Explanation | None) -> dict[str, EndpointRow]:
    assert found is not None
    return {row.address: row for row in found.rows}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_it_foretells_the_next_decision(strategy: str) -> None:
    """For every strategy the chosen are those of the decision that follows; a twin that was never asked
    decides the same, chance included."""
    scheduler, twin = scheduler_of(5, strategy=strategy), scheduler_of(5, strategy=strategy)
    for number in range(12):
        request = replace(CHAT, prompt_bytes=400 * (number % 4 + 1))
        found = scheduler.explain(request, ANONYMOUS, now_ns=number * S)
        again = scheduler.explain(request, ANONYMOUS, now_ns=number * S)
        assert found == again
        routed, unasked = (each.admit(request, ANONYMOUS, now_ns=number * S) for each in (scheduler, twin))
        if not isinstance(routed, Routed):
            assert found.outcome == "would wait: no replica takes it now"
            assert routed == unasked
            continue
        chosen = [row for row in found.rows if row.verdict.startswith("chosen")]
        assert [row.verdict for row in chosen] == [f"chosen #{i + 1}" for i in range(len(chosen))]
        assert tuple(row.address for row in chosen) == routed.addresses
        assert all(row.terms for row in found.rows if row.verdict != "removed")
        assert found.reason == routed.reason.text()
        assert isinstance(unasked, Routed)
        assert unasked.addresses == routed.addresses
    assert len(scheduler.dispatcher.decisions) == scheduler.counts["routed"] > 4


def test_what_removes_an_endpoint() -> None:
    """Drain, health's causes, permits, another region, and suspicion, each in its words."""
    scheduler = scheduler_of(6)
    us, draining, hung, full, suspect, fine = scheduler.fleet.pools["p"].endpoints
    draining.draining = True
    hung.health.set("hung", Cause(CauseKind.HARD, 0.0, "12 s without a token"))
    hung.health.silence(now_ns=0)
    for endpoint in (draining, hung):
        endpoint.refresh()
    full.permits = 4
    suspect.failed(0)
    tenant = Tenant(name="t", regions=frozenset({"eu"}))
    found = rows(scheduler.explain(CHAT, tenant, now_ns=1))
    assert {address: (row.verdict, *row.why) for address, row in found.items()} == {
        us.address: ("removed", "other region: us"),
        draining.address: ("removed", "draining"),
        hung.address: ("removed", "not ready: hung (12 s without a token)"),
        full.address: ("removed", "permits full: 4 of 4"),
        suspect.address: ("chosen #2", "an attempt failed: last for 100 ms"),
        fine.address: ("chosen #1",),
    }
    assert found[us.address].score is None
    assert found[us.address].terms == {}


def test_requests_that_would_not_be_served() -> None:
    """A refusal is the outcome; where it is for want of room, every row says why."""
    scheduler = scheduler_of(2, permits=1)
    unknown = scheduler.explain(replace(CHAT, model="x"), ANONYMOUS, now_ns=0)
    assert unknown.outcome.startswith("would be refused: 404 model_not_found")
    assert unknown.rows == ()
    many = scheduler.explain(replace(CHAT, sequences=9), ANONYMOUS, now_ns=0)
    assert many.outcome.startswith("would be refused: 422")
    assert {row.why for row in many.rows} == {("permits full: 0 + 9 of 1",)}
    for endpoint in scheduler.fleet.endpoints:
        endpoint.permits = 1
    full = scheduler.explain(CHAT, ANONYMOUS, now_ns=0)
    assert full.outcome == "would wait: no replica takes it now"


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_batch_above_the_slots_has_a_replica_to_itself(strategy: str) -> None:
    """By every strategy: it goes to an idle replica whose engine queues it, and waits for one otherwise."""
    scheduler = scheduler_of(2, strategy=strategy, permits=4, hold_ns=5 * S, engine="vllm")
    batch = replace(CHAT, sequences=9)
    assert scheduler.explain(batch, ANONYMOUS, now_ns=0).rows[0].verdict == "chosen #1"
    placed = scheduler.admit(batch, ANONYMOUS, now_ns=0)
    assert isinstance(placed, Routed)
    (taken,) = [each for each in scheduler.fleet.endpoints if each.permits]
    assert taken.permits == 9
    (other,) = [each for each in scheduler.fleet.endpoints if not each.permits]
    other.permits = 1
    assert isinstance(scheduler.admit(batch, ANONYMOUS, now_ns=1), Hold)
    why = {row.address: row.why for row in scheduler.explain(batch, ANONYMOUS, now_ns=2).rows}
    assert why[other.address] == ("permits full: 1 + 4 of 4",)


def test_late_binding_says_what_it_waits_for() -> None:
    """Queue, memory and guard, by the strategy's own rules."""
    scheduler = scheduler_of(1, strategy="steer", hold_ns=5_000_000_000, kv_capacity_tokens=2_000)
    (endpoint,) = scheduler.fleet.endpoints
    one_at_a_time(endpoint)
    long = replace(CHAT, prompt_bytes=8_000, max_new_tokens=100)
    assert isinstance(scheduler.admit(long, ANONYMOUS, now_ns=0), Routed)
    (row,) = scheduler.explain(long, ANONYMOUS, now_ns=1).rows
    assert row.verdict == "waits"
    assert row.score is not None
    assert row.score >= LATER_MS
    queue, memory = row.why
    assert queue.startswith("queue: 2000 + 2000 tokens above 1024")
    assert memory.startswith("memory: ")
    scheduler.settlement.first_token("i-1", now_ns=2)
    (row,) = scheduler.explain(replace(CHAT, max_new_tokens=1), ANONYMOUS, now_ns=3).rows
    assert [why.partition(":")[0] for why in row.why] in ([], ["memory"], ["guard"], ["memory", "guard"])
    endpoint.load.streaming = 1
    at = SchedulingContext(now_ns=4)
    with_guard = build("steer").holds_back(endpoint, [endpoint], Work(100_000, 10), at=at)
    assert any(why.startswith("guard: a stream has ") for why in with_guard)


@pytest.mark.parametrize("strategy", ["steer", "queue"])
def test_a_row_waits_exactly_when_a_condition_says_so(strategy: str) -> None:
    """Over random loads: the words and the score never differ."""
    rng, seen = Random(5), set()
    for trial in range(60):
        scheduler = scheduler_of(
            4, strategy=strategy, permits=16, kv_capacity_tokens=rng.choice((0, 3_000, 50_000))
        )
        for number in range(rng.randrange(14)):
            length = rng.choice((40, 2_000, 12_000))
            decision = scheduler.admit(replace(CHAT, prompt_bytes=length), ANONYMOUS, now_ns=number)
            if isinstance(decision, Routed) and rng.random() < 0.6:
                scheduler.settlement.first_token(decision.reservation.id, now_ns=number)
        request = replace(CHAT, prompt_bytes=rng.choice((40, 2_000, 30_000)))
        found = scheduler.explain(request, ANONYMOUS, now_ns=trial + 100)
        for row in found.rows:
            assert row.score is not None
            assert (row.score >= LATER_MS) == bool(row.why)
            assert (row.verdict == "candidate") <= (not row.why)
            seen.update(why.partition(":")[0] for why in row.why)
    assert "queue" in seen


def test_a_request_of_then() -> None:
    """Scores, terms, forecasts and what was removed are of the decision, though all has changed since; what
    would be done with such a request now stands apart."""
    scheduler = scheduler_of(4, strategy="steer")
    _, drained, full, _ = scheduler.fleet.pools["p"].endpoints
    drained.draining = True
    drained.refresh()
    full.permits = 4
    foretold = scheduler.explain(CHAT, ANONYMOUS, now_ns=0)
    routed = scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
    assert isinstance(routed, Routed)
    first, second = routed.addresses
    for now in range(1, 5):
        scheduler.admit(CHAT, ANONYMOUS, now_ns=now)
    scheduler.fleet.set_members({"p": [Member(first), Member("10.0.0.9:80")]})
    found = scheduler.explained("i-1", now_ns=3 * S)
    assert found is not None
    assert found.outcome == f"went to {first}, on retries {second}; in flight"
    assert (found.of, found.age_ms) == ("then", 3_000.0)
    before, then = rows(foretold), rows(found)
    assert list(then) == [first, second, drained.address, full.address]
    assert then[first] == before[first]
    assert then[first].terms["queued"] == 0
    assert replace(then[second], terms={}) == replace(before[second], terms={})
    assert (then[drained.address].verdict, then[drained.address].why) == ("removed", ("draining",))
    assert (then[full.address].verdict, then[full.address].why) == ("removed", ("permits full",))
    live = {row.address: row for row in found.now_rows}
    assert set(live) == {first, "10.0.0.9:80"}
    assert found.now.startswith("would go to 10.0.0.9:80")
    assert live[first].terms["queued"] > 0
    assert found.plain()["now"]["endpoints"][0]["address"] == "10.0.0.9:80"
    assert foretold.plain()["now"] is None
    scheduler.cancel("i-1", now_ns=4 * S)
    ended = scheduler.explained("i-1", now_ns=5 * S)
    assert ended is not None
    assert ended.outcome.endswith("no longer in flight")
    assert scheduler.explained("i-999", now_ns=0) is None


def test_a_subset_binds_an_explanation_as_it_binds_the_decision() -> None:
    """Of the endpoints that a gateway named the chosen is the decision's; the others are outside."""
    scheduler = scheduler_of(4)
    named = frozenset({"10.0.0.2:80", "10.0.0.3:80"})
    scheduler.fleet.endpoints[2].tokens = 1_000
    request = replace(CHAT, only=named)
    found = scheduler.explain(request, ANONYMOUS, now_ns=0)
    routed = scheduler.admit(request, ANONYMOUS, now_ns=0)
    assert isinstance(routed, Routed)
    assert tuple(row.address for row in found.rows[:2]) == routed.addresses == ("10.0.0.3:80", "10.0.0.2:80")
    assert {row.why for row in found.rows[2:]} == {("outside the subset that the gateway named",)}
    assert {row.verdict for row in found.rows[2:]} == {"removed"}


def test_a_request_that_waits() -> None:
    """Its place and deadlines, and what keeps each endpoint from it; then, once released, the decision."""
    scheduler = scheduler_of(1, permits=1, hold_ns=10 * S)
    first = scheduler.admit(CHAT, ANONYMOUS, now_ns=0)
    assert isinstance(first, Routed)
    for now in (1, 2):
        assert isinstance(scheduler.admit(CHAT, ANONYMOUS, now_ns=now * S), Hold)
    scheduler.dispatcher.decisions.named("envoy-id", "i-3")
    found = scheduler.explained("envoy-id", now_ns=3 * S)
    assert found is not None
    assert (found.id, found.outcome) == ("i-3", "waits in the fair queue")
    wait = found.wait
    assert wait is not None
    assert (wait.waiting, wait.before, wait.waited_ms, wait.shed_in_ms) == (2, 1, 1_000.0, 9_000.0)
    assert found.rows[0].why == ("permits full: 1 of 1",)
    new = scheduler.explain(CHAT, ANONYMOUS, now_ns=3 * S)
    assert new.outcome == "would wait: no replica takes it now"
    scheduler.cancel("i-1", now_ns=4 * S)
    released = scheduler.explained("i-2", now_ns=5 * S)
    assert released is not None
    assert released.outcome.startswith("went to 10.0.0.0:80")
    scheduler.leave("i-3", now_ns=5 * S)
    assert scheduler.explained("envoy-id", now_ns=5 * S) is None


def test_a_family_is_told() -> None:
    """The score, the features and the model that it would be."""
    scheduler = scheduler_of()
    scheduler.settings.families = {"auto": Family(name="auto", models=("m", "n"), thresholds=(0.5,))}
    found = scheduler.explain(replace(CHAT, model="auto"), ANONYMOUS, now_ns=0)
    plain = found.plain()
    assert (plain["model"], plain["family"]["family"], plain["family"]["model"]) == ("m", "auto", "m")
    assert set(plain["family"]["features"]) >= {"length", "code"}


def test_where_its_client_is_is_told() -> None:
    """By its name; null where nothing says."""
    scheduler = scheduler_of()
    found = scheduler.explain(CHAT, replace(ANONYMOUS, place="eu"), now_ns=0)
    assert (found.plain()["place"], ("place", "eu") in facts(found.plain())) == ("eu", True)
    nowhere = scheduler.explain(CHAT, ANONYMOUS, now_ns=0).plain()
    assert (nowhere["place"], "place" in dict(facts(nowhere))) == (None, False)


def test_plain_values_are_json() -> None:
    """Infinities, which some strategies score with, are none there."""
    found = scheduler_of(5, strategy="power_of_two").explain(CHAT, ANONYMOUS, now_ns=0)
    scores = [each["score"] for each in found.plain()["endpoints"]]
    assert None in scores
    assert float("inf") in [row.score for row in found.rows]
