"""Spill-over: who goes to another pool, when, for how much, and who comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.core.accounts import Price
from extproc.core.events import Observer, Settled
from extproc.core.families import Family
from extproc.core.fleet import Member
from extproc.core.outcome import End, Hold, Outcome, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.spill.books import BACK_OFF_NS, HOUR_NS, MINUTE_NS
from extproc.core.spill.sliding import PARTS, SlidingSum
from extproc.core.spill.values import RateLimits, SpillAllowance, SpillRule
from extproc.core.tenant import Tenant
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
ACME, PRIVATE = Tenant(name="acme", spill=SpillAllowance()), Tenant(name="private")
ASKED = Request(
    kind=RouteKind.CHAT,
    dialect=Dialect.OPENAI,
    model="m",
    stream=True,
    max_new_tokens=100,
    prompt_bytes=36,
    messages=0,
    segments=("hello",),
)
RULE = SpillRule(pool="p", to="paid", models={"m": "gpt"}, wait_ms=1_000.0)
#: 100 tokens of input at most and 100 of output: 300 in currency.
PRICE = Price(input_per_million=1e6, output_per_million=2e6)
MOST = 300.0
OWN, PAID = "10.0.0.1:80", "10.0.9.9:443"


class Charges(Observer):
    """What ended requests were charged."""

    def __init__(self, found: list[float]) -> None:
        self._found = found

    def settled(self, event: Settled, *, now_ns: int) -> None:
        self._found.append(event.charged.cost)


class Fleetlet:
    """A pool of one place, and one that is paid for."""

    def __init__(self, rule: SpillRule = RULE, *, limits: RateLimits | None = None, **paid: Any) -> None:
        own = make_pool(OWN, permits=1)
        there = make_pool(PAID, permits=100, name="paid", models=("gpt",), **paid)
        policy = Policy(classes=(ClassSpec(hold_ns=5 * S),), prices={"paid": PRICE})
        self.scheduler: Scheduler = make_scheduler(own, there, policy=policy)
        settings = self.scheduler.settings
        settings.spills, settings.rate_limits = {"p": rule}, {"paid": limits or RateLimits()}
        self.books = self.scheduler.spills
        self.scheduler.events.observers = (self.books,)

    def asked(
        self, request: Request = ASKED, tenant: Tenant = ACME, *, now_ns: int = 0
    ) -> Routed | Reject | Hold:
        answer = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(answer, Routed | Reject | Hold)
        return answer

    def pool(self, request: Request = ASKED, tenant: Tenant = ACME, *, now_ns: int = 0) -> str:
        """Where it goes: a pool, or "held"."""
        answer = self.asked(request, tenant, now_ns=now_ns)
        return answer.reservation.pool if isinstance(answer, Routed) else "held"

    def ended(self, routed: Routed, *, now_ns: int, **facts: Any) -> None:
        usual: dict[str, Any] = {"status": 200, "end": End.OK, "prompt_tokens": 10, "output_tokens": 5}
        usual |= {"attempts": 1, "duration_ns": S // 10, "ttft_ns": S // 20, "served_by": routed.addresses[0]}
        outcome = Outcome(
            reservation=routed.reservation,
            final=True,
            **{**usual, **facts},
        )
        self.scheduler.settlement.settle(outcome, now_ns=now_ns)


def full(**facts: Any) -> Fleetlet:
    """Its own place is taken, by somebody who never spills."""
    made = Fleetlet(**facts)
    assert made.pool(tenant=PRIVATE) == "p"
    return made


def test_home_while_there_is_room_and_elsewhere_while_there_is_none() -> None:
    """The first stays, the next goes, and with room at home again the one after stays."""
    made = Fleetlet()
    first = made.asked()
    assert isinstance(first, Routed)
    assert (first.reservation.pool, first.headers) == ("p", ())
    second = made.asked()
    assert isinstance(second, Routed)
    assert (second.reservation.pool, second.reservation.model, second.reservation.spilled_from) == (
        "paid",
        "gpt",
        "p",
    )
    assert second.headers == (("x-steersman-model", "gpt"), ("x-steersman-spilled", "load"))
    assert second.addresses == (PAID,)
    made.ended(first, now_ns=S)
    assert made.pool(now_ns=S) == "p"


def test_a_tenant_that_does_not_allow_it_waits() -> None:
    """Prompts leave only where their tenant says so."""
    assert full().pool(tenant=PRIVATE) == "held"


def test_nobody_ready_at_home() -> None:
    """With every replica gone it goes elsewhere, whatever the wait; who may not is refused as ever."""
    made = Fleetlet(replace(RULE, wait_ms=None))
    made.scheduler.fleet.set_members({"p": [], "paid": [Member(PAID, max_concurrent=100)]})
    answer = made.asked()
    assert isinstance(answer, Routed)
    assert answer.headers[1] == ("x-steersman-spilled", "unavailable")
    refused = made.asked(tenant=PRIVATE)
    assert isinstance(refused, Reject)
    assert refused.status == 503


def test_load_alone_does_not_count_where_it_says_so() -> None:
    """Without `wait_ms` a full pool's requests wait at home."""
    assert full(rule=replace(RULE, wait_ms=None)).pool() == "held"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": RouteKind.TOKENIZE},
        {"kind": RouteKind.GENERATE, "dialect": Dialect.TGI},
        {"prompt_tokens": 4},
        {"only": frozenset({OWN})},
    ],
)
def test_what_another_pool_cannot_read_stays(change: dict[str, Any]) -> None:
    """Another engine's own route, token ids, what another gateway has placed, and what is no work."""
    made = full(engine="vllm")
    answer = made.asked(replace(ASKED, **change))
    assert not (isinstance(answer, Routed) and answer.reservation.pool == "paid")
    assert made.books.counts == {}


def test_a_route_of_the_same_engine_goes() -> None:
    """TGI's own route may go to another pool of TGI."""
    asked = replace(ASKED, kind=RouteKind.GENERATE, dialect=Dialect.TGI)
    assert full().pool(asked) == "paid"


def test_regions_hold_elsewhere_too() -> None:
    """A tenant's regions are kept: no replica elsewhere that is in none of them gets its prompt."""
    made = full()
    eu = replace(ACME, regions=frozenset({"eu"}))
    made.scheduler.fleet.set_members(
        {
            "p": [Member(OWN, region="eu", max_concurrent=1)],
            "paid": [Member(PAID, region="us", max_concurrent=100)],
        }
    )
    assert made.pool(tenant=eu) == "held"
    made.scheduler.fleet.set_members(
        {
            "p": [Member(OWN, region="eu", max_concurrent=1)],
            "paid": [Member(PAID, region="eu", max_concurrent=100)],
        }
    )
    assert made.pool(tenant=eu) == "paid"


def test_the_budget_counts_the_most_that_a_request_can_cost_until_it_ends() -> None:
    """Two of 300 fit into 700; once the first has cost 20 a third does, and nothing more in that hour."""
    made = full(rule=replace(RULE, budget_per_hour=700.0))
    first = made.asked()
    assert isinstance(first, Routed)
    assert [made.pool(), made.pool()] == ["paid", "held"]
    assert made.books.spent("p", now_ns=0) == 2 * MOST
    made.ended(first, now_ns=S)
    assert made.books.spent("p", now_ns=S) == MOST + 20.0
    assert made.pool(now_ns=S) == "paid"
    assert made.pool(now_ns=S) == "held"


@pytest.mark.parametrize(("said", "spent"), [("503", 0.0), ("lost", 0.0), ("late", MOST)])
def test_what_failed_there_costs_nothing_but_where_nobody_knows(said: str, spent: float) -> None:
    """Served at home after all, it is charged by that price, which is none here; who was given up for want of
    time may charge all of it. The provider is left alone, and what it says of itself is not the home's."""
    made = full(rule=replace(RULE, budget_per_hour=700.0))
    first = made.asked()
    assert isinstance(first, Routed)
    charged: list[float] = []
    made.scheduler.events.observers = (*made.scheduler.events.observers, Charges(charged))
    made.ended(first, now_ns=S, prompt_tokens=100, output_tokens=100, failed_there=said, served_by=OWN)
    assert (made.books.spent("p", now_ns=S), charged) == (spent, [0.0])
    assert made.books.returned == {"p": 1}
    assert made.books.closed("paid", now_ns=S)
    assert not made.books.closed("paid", now_ns=S + BACK_OFF_NS)


@pytest.mark.parametrize("returns", [True, False])
def test_the_own_replicas_stand_behind_the_provider(returns: bool) -> None:
    """With their model's name; those of other regions do not."""
    made = full(rule=replace(RULE, returns=returns))
    routed = made.asked()
    assert isinstance(routed, Routed)
    assert routed.addresses == ((PAID, OWN) if returns else (PAID,))
    assert routed.second_model == ("m" if returns else "")
    eu = replace(ACME, regions=frozenset({"eu"}))
    made.scheduler.fleet.set_members(
        {
            "p": [Member(OWN, region="us", max_concurrent=1)],
            "paid": [Member(PAID, region="eu", max_concurrent=100)],
        }
    )
    kept = made.asked(tenant=eu)
    assert isinstance(kept, Routed)
    assert kept.addresses == (PAID,)


def test_a_tenants_own_budget() -> None:
    """A tenant's bound is its own; another goes on."""
    made = full()
    poor = replace(ACME, name="poor", spill=SpillAllowance(budget_per_hour=MOST))
    assert [made.pool(tenant=poor), made.pool(tenant=poor), made.pool()] == ["paid", "held", "paid"]


def test_an_hour_later_the_budget_is_there_again() -> None:
    """What was spent counts for an hour and at most a minute more."""
    made = full(rule=replace(RULE, budget_per_hour=MOST))
    first = made.asked()
    assert isinstance(first, Routed)
    made.ended(first, now_ns=0, prompt_tokens=100, output_tokens=100)
    assert made.pool(now_ns=HOUR_NS - 1) == "held"
    assert made.books.spent("p", now_ns=HOUR_NS + HOUR_NS // PARTS) == 0.0


def test_what_has_no_bound_of_its_own() -> None:
    """Without a limit it counts as the rule says; with an image, whose price nobody knows, it stays home."""
    made = full(rule=replace(RULE, budget_per_hour=1_000.0, output_tokens_max=500))
    assert made.pool(replace(ASKED, max_new_tokens=None)) == "held"
    assert made.pool(replace(ASKED, images=1)) == "held"
    assert made.pool(replace(ASKED, beside=True)) == "held"
    assert made.pool() == "paid"


@pytest.mark.parametrize("end", ["cancelled", "expired", "client left", "fault"])
def test_every_end_gives_back_what_it_did_not_cost(end: str) -> None:
    """Nothing stays under way; what nobody heard the end of has cost all that it could."""
    made = full(rule=replace(RULE, budget_per_hour=1e6))
    routed = made.asked()
    assert isinstance(routed, Routed)
    if end == "cancelled":
        made.scheduler.cancel(routed.reservation.id, now_ns=S)
    elif end == "expired":
        made.scheduler.step(now_ns=10_000 * S)
    elif end == "client left":
        made.ended(routed, now_ns=S, end=End.CLIENT_GONE, prompt_tokens=100, output_tokens=0)
    else:
        made.ended(routed, now_ns=S, status=500, end=End.ERROR, prompt_tokens=None, output_tokens=None)
    costs = {"cancelled": 0.0, "expired": MOST, "client left": 100.0, "fault": 0.0}
    now_ns = 10_000 * S if end == "expired" else S
    assert made.books.spent("p", now_ns=now_ns) == costs[end]
    assert made.books.under_way == 0


def test_rate_limits_of_the_provider() -> None:
    """No more than its requests and tokens of a minute; what asks for its model by name counts as well."""
    made = full(limits=RateLimits(requests_per_minute=2))
    assert made.pool(replace(ASKED, model="gpt")) == "paid"
    assert [made.pool(), made.pool()] == ["paid", "held"]
    assert made.pool(now_ns=MINUTE_NS + MINUTE_NS // PARTS) == "paid"
    tokens = full(limits=RateLimits(tokens_per_minute=450))
    assert [tokens.pool(), tokens.pool(), tokens.pool()] == ["paid", "paid", "held"]


def test_after_a_429_it_is_left_alone_for_a_while() -> None:
    """A provider that is at its limit is not asked again at once."""
    made = full()
    first = made.asked()
    assert isinstance(first, Routed)
    made.ended(first, now_ns=S, status=429, end=End.REFUSED)
    assert made.pool(now_ns=S) == "held"
    assert made.pool(now_ns=S + BACK_OFF_NS) == "paid"


def test_each_service_has_its_share() -> None:
    """With two services each spends half of the budget, and asks for half of the minute."""
    made = full(rule=replace(RULE, budget_per_hour=2 * MOST))
    made.scheduler.peers.hear(["other"], {})
    assert [made.pool(), made.pool()] == ["paid", "held"]


def test_attainment_below_its_bound() -> None:
    """Where too few of the last minute were in time, requests go elsewhere though there is room."""
    made = Fleetlet(replace(RULE, wait_ms=None, attained_min=0.9))
    for i in range(20):
        routed = made.asked(now_ns=i)
        assert isinstance(routed, Routed)
        assert routed.reservation.pool == "p"
        made.ended(routed, now_ns=i, ttft_ns=2 * S if i % 4 == 0 else S // 20, duration_ns=3 * S)
    answer = made.asked(now_ns=30)
    assert isinstance(answer, Routed)
    assert answer.headers[1] == ("x-steersman-spilled", "attainment")
    assert made.pool(now_ns=2 * MINUTE_NS) == "p"


def test_explain_says_where_from_and_changes_nothing() -> None:
    """The table is of the pool that would serve it; no budget is taken."""
    made = full()
    told = made.scheduler.explain(ASKED, ACME, now_ns=0)
    assert (told.pool, told.plain()["spilled"]) == ("paid", {"from": "p", "why": "load", "waited_ms": None})
    assert made.books.under_way == 0
    kept = made.scheduler.explain(ASKED, PRIVATE, now_ns=0)
    assert (kept.pool, kept.plain()["spilled"]) == ("p", None)


def test_a_family_spills_from_the_model_that_was_chosen() -> None:
    """Its model's pool is full and spills; the client is told the model that answers."""
    made = full()
    made.scheduler.settings.families = {
        "auto": Family(name="auto", models=("m",), thresholds=(), wait_ms=None)
    }
    answer = made.asked(replace(ASKED, model="auto"))
    assert isinstance(answer, Routed)
    assert (answer.reservation.pool, dict(answer.headers)["x-steersman-model"]) == ("paid", "gpt")


@given(
    st.lists(st.tuples(st.integers(0, 10 * PARTS), st.floats(0.0, 1e6)), max_size=60), st.integers(60, 6000)
)
def test_a_sliding_sum_is_never_below_the_truth(added: list[tuple[int, float]], span_ns: int) -> None:
    """It holds all of the span, and at most a sixtieth more."""
    kept, now_ns, truth = SlidingSum(span_ns // PARTS * PARTS), 0, []
    for step_ns, value in added:
        now_ns += step_ns
        kept.add(value, now_ns=now_ns)
        truth.append((now_ns, value))
    found, part = kept.value(now_ns=now_ns), span_ns // PARTS
    inside = sum(value for at, value in truth if at > now_ns - part * PARTS)
    around = sum(value for at, value in truth if at > now_ns - part * (PARTS + 2))
    assert inside - 1e-3 <= found <= around + 1e-3


class Budgets(RuleBasedStateMachine):
    """However requests come and end, what they really cost in an hour is within the budget."""

    @initialize()
    def begin(self) -> None:
        self.made = full(rule=replace(RULE, budget_per_hour=4 * MOST))
        self.now_ns = 0
        self.running: list[Routed] = []
        self.truth: list[tuple[int, float]] = []

    @rule(limit=st.integers(0, 100), prompt=st.integers(0, 36))
    def ask(self, limit: int, prompt: int) -> None:
        answer = self.made.asked(
            replace(ASKED, max_new_tokens=limit, prompt_bytes=prompt), now_ns=self.now_ns
        )
        if isinstance(answer, Routed) and answer.reservation.pool == "paid":
            self.running.append(answer)

    @rule(at=st.integers(0, 1_000), output=st.floats(0.0, 1.0), prompt=st.floats(0.0, 1.0))
    def end(self, at: int, output: float, prompt: float) -> None:
        if not self.running:
            return
        routed = self.running.pop(at % len(self.running))
        limit = routed.reservation.max_new_tokens or 0
        tokens_in, tokens_out = int(routed.reservation.prompt_bytes * prompt), int(limit * output)
        self.made.ended(routed, now_ns=self.now_ns, prompt_tokens=tokens_in, output_tokens=tokens_out)
        self.truth.append((self.now_ns, PRICE.of(tokens_in, tokens_out)))

    @rule(seconds=st.integers(1, 1_000))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @invariant()
    def never_passed(self) -> None:
        spent = sum(cost for at, cost in self.truth if at > self.now_ns - HOUR_NS)
        assert spent <= 4 * MOST + 1e-6


TestBudgets = Budgets.TestCase


@pytest.mark.parametrize(
    ("facts", "closed_s"),
    [
        ({"status": 429}, 5),
        ({"status": 429, "provider": "- - - - 90"}, 90),
        ({"status": 503, "provider": "- - - - 1"}, 5),
        ({"status": 529}, 5),
        ({"status": 500}, 0),
        ({"status": 200, "provider": "- - - - 90"}, 0),
    ],
)
def test_how_long_a_provider_is_left_alone(facts: dict[str, Any], closed_s: int) -> None:
    """As long as it says with a refusal, five seconds at the least; a request's own 500 closes nothing."""
    fleet = Fleetlet()
    fleet.asked()
    routed = fleet.asked()
    assert isinstance(routed, Routed)
    assert routed.reservation.pool == "paid"
    fleet.ended(routed, now_ns=S, end=End.ERROR, **facts)
    assert fleet.books.closed("paid", now_ns=S + closed_s * S - 1) is (closed_s > 0)
    assert not fleet.books.closed("paid", now_ns=S + closed_s * S)


def test_what_a_provider_says_bounds_what_goes_there() -> None:
    """Without a limit in the file too; requests for its own model by name count against it."""
    fleet = Fleetlet()
    fleet.asked()
    routed = fleet.asked()
    assert isinstance(routed, Routed)
    fleet.ended(routed, now_ns=S, provider="2 30s - - -")
    assert fleet.books.provider_left("paid", now_ns=S)["requests"] == 2
    assert fleet.pool(replace(ASKED, model="gpt"), now_ns=S) == "paid"
    assert fleet.pool(now_ns=S) == "paid"
    assert fleet.pool(now_ns=S) == "held"
    assert fleet.books.provider_left("paid", now_ns=31 * S)["requests"] is None
