"""Who waits at home goes on to the other pool: when, in which order, and for whose money."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.cli.explain import facts
from extproc.core.accounts import Accounts
from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Member
from extproc.core.outcome import End, Hold, Reject, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.quota.values import limits
from extproc.core.spill.books import BACK_OFF_NS
from extproc.core.spill.moving import LOOK_NS, MOVES_MAX
from extproc.core.spill.values import RateLimits, SpillAllowance, SpillRule
from extproc.core.tenant import Tenant
from extproc.core.tiers import TierRule
from tests.core.spill.test_spill import ACME, ASKED, MOST, OWN, PAID, PRICE, PRIVATE, RULE, Fleetlet, S
from tests.stand.changed import replace

#: What comes goes elsewhere only while nobody is ready; who waits, after a second.
LIMITS = RateLimits(requests_per_minute=1_000)


class Waiting(Fleetlet):
    """A full pool whose requests wait, since the other one is full as well until `opens`."""

    def __init__(self, rule: SpillRule = RULE, *, held_s: int = 5, **policy: Any) -> None:
        super().__init__(rule, limits=LIMITS)
        classes = policy.pop("classes", (ClassSpec(hold_ns=held_s * S),))
        self.scheduler.settings.policy = Policy(classes=classes, prices={"paid": PRICE}, **policy)
        self.scheduler.dispatcher.apply(Policy(classes=()), now_ns=0)
        self.told: dict[str, Routed | Reject] = {}
        self.scheduler.dispatcher.on_release = self.told.__setitem__
        own = self.asked(tenant=PRIVATE)
        assert isinstance(own, Routed)
        self.own = own
        self.room(0)

    def room(self, places: int) -> None:
        """So many places elsewhere; none is not ready at all."""
        there = [Member(PAID, max_concurrent=places)] if places else []
        self.scheduler.fleet.set_members({"p": [Member(OWN, max_concurrent=1)], "paid": there})

    def held(self, tenant: Tenant = ACME, *, now_ns: int = 0, **more: Any) -> str:
        answer = self.asked(replace(ASKED, **more), tenant, now_ns=now_ns)
        assert isinstance(answer, Hold)
        return answer.id

    def step(self, now_ns: int) -> dict[str, str]:
        """What has become of who waited, by id: the pool, or the refusal."""
        self.told.clear()
        self.scheduler.step(now_ns=now_ns)
        return {
            name: each.reservation.pool if isinstance(each, Routed) else each.code
            for name, each in self.told.items()
        }


def test_who_has_waited_as_long_as_the_bound_goes_on() -> None:
    """Not before, under the name that the model has there, told and counted as spilled from its pool."""
    made = Waiting()
    first = made.held()
    made.room(10)
    assert made.step(S - 1) == {}
    assert made.step(S - 1 + LOOK_NS) == {first: "paid"}
    routed = made.told[first]
    assert isinstance(routed, Routed)
    assert routed.headers == (("x-steersman-model", "gpt"), ("x-steersman-spilled", "load"))
    reservation = routed.reservation
    assert (reservation.model, reservation.spilled_from, reservation.held_ms) == ("gpt", "p", 1_100.0)
    assert (made.books.counts, made.books.moved) == ({("p", "paid", "load"): 1}, {"p": 1})
    assert made.scheduler.dispatcher.waiting == {}
    assert len(made.scheduler.dispatcher.queue) == 0
    assert made.books.spent("p", now_ns=S) == MOST
    explained = made.scheduler.explained(reservation.id, now_ns=S)
    assert explained is not None
    said = explained.plain()
    assert said["spilled"] == {"from": "p", "why": "load", "waited_ms": 1_100.0}
    assert ("spilled", "from pool p: load, after waiting there for 1.1 s") in facts(said)
    made.ended(routed, now_ns=2 * S)
    assert (made.books.spent("p", now_ns=2 * S), made.books.under_way) == (20.0, 0)


def test_room_at_home_comes_first() -> None:
    """Whose turn it is at home does not leave, whatever it has waited."""
    made = Waiting()
    first, second = made.held(), made.held()
    made.room(10)
    made.ended(made.own, now_ns=2 * S)
    assert made.told[first].reservation.pool == "p"  # type: ignore[union-attr]
    assert made.step(2 * S) == {second: "paid"}


def test_nobody_left_at_home() -> None:
    """Who waits does not hear 503 while there is room elsewhere, nor has it to wait for the bound."""
    made = Waiting()
    mine, other = made.held(), made.held(PRIVATE)
    made.room(10)
    made.scheduler.fleet.set_members({"p": [], "paid": [Member(PAID, max_concurrent=10)]})
    assert made.step(S // 2) == {mine: "paid", other: "no_ready_endpoint"}
    assert made.told[mine].headers[-1] == ("x-steersman-spilled", "unavailable")


@pytest.mark.parametrize(
    "change",
    [
        {"rule": replace(RULE, wait_ms=None)},
        {"rule": replace(RULE, budget_per_hour=MOST - 1)},
        {"tenant": PRIVATE},
        {"tenant": replace(ACME, spill=SpillAllowance(budget_per_hour=MOST - 1))},
        {"tenant": replace(ACME, regions=frozenset({""}))},
        {"images": 1, "rule": replace(RULE, budget_per_hour=1e9)},
        {"prompt_tokens": 3},
        {"forgotten": True},
    ],
)
def test_who_may_not_go_waits_to_its_end(change: dict[str, Any]) -> None:
    """By its rule, budgets, tenant or regions, for what it is, or since its body was not kept."""
    more = dict(change)
    made = Waiting(more.pop("rule", RULE))
    tenant, forgotten = more.pop("tenant", ACME), more.pop("forgotten", False)
    name = made.held(tenant, **more)
    if forgotten:
        made.scheduler.dispatcher.stays(name)
    regions = {"p": [Member(OWN, max_concurrent=1)], "paid": [Member(PAID, region="us", max_concurrent=10)]}
    made.scheduler.fleet.set_members(regions)
    assert made.step(4 * S) == {}
    assert made.step(5 * S) == {name: "overloaded"}
    assert made.books.under_way == 0


def test_a_provider_that_refused_is_left_alone() -> None:
    """Who waits does not go where newcomers do not."""
    made = Waiting(held_s=60)
    name = made.held()
    made.room(10)
    by_name = made.asked(replace(ASKED, model="gpt"))
    assert isinstance(by_name, Routed)
    made.ended(by_name, now_ns=S, status=429, end=End.REFUSED)
    assert made.step(S + BACK_OFF_NS - 1) == {}
    assert made.step(S + BACK_OFF_NS + LOOK_NS) == {name: "paid"}


def test_the_longest_wait_first_and_no_tenant_before_its_turn() -> None:
    """With room for four: of each tenant its oldest, in turn, though all of one's came before the other's."""
    made = Waiting(held_s=60)
    many = [made.held(now_ns=i) for i in range(6)]
    few = [made.held(replace(ACME, name="other"), now_ns=10 + i) for i in range(2)]
    made.room(4)
    assert list(made.step(2 * S)) == [many[0], few[0], many[1], few[1]]
    made.room(6)
    assert list(made.step(3 * S)) == [many[2], many[3]]


def test_the_better_class_first() -> None:
    """A class above goes before all of those below."""
    classes = (ClassSpec(name="gold", hold_ns=60 * S), ClassSpec(name="standard", hold_ns=60 * S))
    made = Waiting(classes=classes, bounds=QueueBounds(class_held_max=(9, 9)))
    made.held(now_ns=0)
    gold = made.held(replace(ACME, name="rich", service_class="gold"), now_ns=5)
    made.room(1)
    assert made.step(2 * S) == {gold: "paid"}


def test_one_look_sends_on_a_bounded_number() -> None:
    """The rest at the next."""
    made = Waiting(held_s=60)
    for _ in range(MOVES_MAX + 5):
        made.held()
    made.room(1_000)
    assert [len(made.step(at * S)) for at in (2, 3, 4)] == [MOVES_MAX, 5, 0]


def test_tenants_that_cannot_go_stand_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them are tried in vain at each look, who may go does so at one of the next."""
    monkeypatch.setattr("extproc.core.spill.moving.TRIED_MAX", 3)
    made = Waiting(replace(RULE, budget_per_hour=1e9), held_s=60)
    poor = SpillAllowance(budget_per_hour=1.0)
    for i in range(5):
        for _ in range(4):
            made.held(replace(ACME, name=f"poor{i}", spill=poor))
    able = made.held(now_ns=9)
    made.room(10)
    assert able in [name for at in (2, 3, 4) for name in made.step(at * S)]


def test_its_tenants_own_budget_is_kept() -> None:
    """What it may cost there is reserved in the tenant's quota in the place of what home costs; without room
    for that it stays."""
    for budget, goes in ((1e9, True), (1.0, False)):
        accounts = Accounts(tenants={"acme": limits(budget_per_day=budget)})
        made = Waiting(accounts=accounts)
        name = made.held()
        made.room(10)
        assert made.step(2 * S) == ({name: "paid"} if goes else {})
        account = accounts.of("acme", "", "m")
        (usage,) = made.scheduler.quotas.usage(account, now_ns=2 * S)
        assert (usage.used > 0) is goes


def test_a_client_that_leaves_owes_nothing() -> None:
    """It is gone from the queue, and from what may go on."""
    made = Waiting()
    name = made.held()
    made.scheduler.leave(name, now_ns=S)
    made.room(10)
    assert made.step(2 * S) == {}
    assert made.books.under_way == 0


def test_nothing_that_waits_is_sent_on_to_a_site() -> None:
    """Where the other pool is a centre's, whatever room there is: it waits until its hold ends."""
    made = Waiting(replace(RULE, tiers=TierRule()))
    first = made.held()
    made.room(10)
    assert made.step(2 * S) == {}
    assert made.step(6 * S) == {first: "overloaded"}
    assert made.books.moved == {}
