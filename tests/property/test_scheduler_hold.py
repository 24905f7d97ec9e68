"""Any order of what can happen while requests are held: nobody is lost, nothing kept, no room idle."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from extproc.core.accounts import Accounts, Price
from extproc.core.fairqueue import QueueBounds
from extproc.core.fleet import Member, PoolSpec
from extproc.core.outcome import End, Hold, Outcome, Reject, Reservation, Routed
from extproc.core.placement import Full, place
from extproc.core.quota import ExactBooks, QuotaLimits, limits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy, SchedulerLimits
from extproc.core.tenant import Tenant
from tests.stand.examples import examples
from tests.stand.schedulers import make_scheduler, step

S = 1_000_000_000
TTL_NS = 60 * S
ADDRESSES = [f"10.0.0.{i}:80" for i in range(4)]
POOLS = ("p", "q")
CLASSES = ("gold", "standard", "batch")
TENANTS = [
    Tenant(name=f"t{i}", service_class=klass, regions=regions)
    for i, (klass, regions) in enumerate(
        [("gold", None), ("standard", None), ("batch", None), ("standard", frozenset({"eu"}))]
    )
]
#: Requests held at once that one pump looks at whole (the queue's tries): so far nobody is passed over.
HELD_MAX = 7

ends = st.sampled_from(list(End))
members = st.lists(
    st.tuples(st.sampled_from(["p", "p", "q"]), st.integers(1, 4), st.sampled_from(["eu", "us"])),
    min_size=len(ADDRESSES),
    max_size=len(ADDRESSES),
)
policies = st.builds(
    lambda names, hold_s, held_max, tenant_max, concurrent, minute: Policy(
        classes=tuple(ClassSpec(name=name, hold_ns=hold_s * S) for name in names),
        bounds=QueueBounds(
            held_max=held_max,
            class_held_max=(held_max,) * len(names),
            tenant_held_max=tenant_max,
            ageing_ns=2 * S,
            slack_tokens=500.0,
        ),
        accounts=Accounts(
            tenants={
                "t0": limits(concurrent_requests=concurrent, borrow=2.0),
                "t1": limits(requests_per_minute=minute, output_tokens_per_minute=2_000),
                "t2": limits(budget_per_day=3.0, input_tokens_per_minute=5_000),
            }
        ),
        weights={"t0": 2.0, "t2": 0.5},
        prices={"p": Price(input_per_million=100.0, output_per_million=200.0)},
    ),
    st.sampled_from([CLASSES, CLASSES, CLASSES[:2], ("standard",)]),
    st.sampled_from([0, 5, 30, 200, 200]),
    st.sampled_from([1, 4, HELD_MAX, HELD_MAX]),
    st.sampled_from([1, 3, HELD_MAX]),
    st.integers(1, 20),
    st.integers(1, 200),
)

requests = st.tuples(
    st.sampled_from(TENANTS),
    st.sampled_from(["p", "p", "p", "q"]),
    st.sampled_from([1, 1, 1, 2, 3, 5]),
    st.integers(0, 8_000),
    st.sampled_from([RouteKind.CHAT, RouteKind.CHAT, RouteKind.CHAT, RouteKind.GENERATE, RouteKind.TOKENIZE]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "", "", "", "", "", "internal error"]),
)


def specs(layout: list[tuple[str, int, str]], kept: int) -> list[PoolSpec]:
    """Pools of the first `kept` addresses: each one's pool, permits and region."""
    placed = list(zip(ADDRESSES, layout, strict=True))[:kept]
    return [
        PoolSpec(
            name=name,
            models=(f"model-{name}",),
            strategy="least_work",
            endpoints=tuple(
                Member(address, max_concurrent=most, region=region)
                for address, (pool, most, region) in placed
                if pool == name
            ),
        )
        for name in POOLS
    ]


class HoldMachine(RuleBasedStateMachine):
    """A scheduler with quotas and a queue, and everybody who may say something to it."""

    @initialize(layout=members, policy=policies, seed=st.integers(0, 99))
    def begin(self, layout: list[tuple[str, int, str]], policy: Policy, seed: int) -> None:
        self.now_ns = 0
        self.quotas = ExactBooks(QuotaLimits(reservation_ttl_ns=TTL_NS))
        self.scheduler = make_scheduler(
            *specs(layout, len(ADDRESSES)),
            default_model="model-p",
            limits=SchedulerLimits(reservation_ttl_ns=TTL_NS),
            rng=Random(seed),
            policy=policy,
            quotas=self.quotas,
        )
        self.scheduler.dispatcher.on_release = self.released
        #: Who waits, by our own account; who runs; who has ended.
        self.waiting: dict[str, str] = {}
        self.running: dict[str, Reservation] = {}
        self.ended: dict[str, Reservation] = {}
        self.releases = 0

    def took(self, decision: Routed) -> None:
        """Law 10: within the permits of the endpoint that it names first, itself counted."""
        reservation = decision.reservation
        assert reservation.id not in self.running
        endpoint = self.scheduler.fleet.endpoint(reservation.pool, reservation.address)
        assert endpoint is not None
        assert endpoint.ready
        assert reservation.permits == 0 or endpoint.permits <= endpoint.max_concurrent
        self.running[reservation.id] = reservation

    def released(self, id: str, decision: Routed | Reject) -> None:  # noqa: A002
        assert self.waiting.pop(id, None) is not None, f"{id} does not wait (any more)"
        self.releases += 1
        if isinstance(decision, Routed):
            assert decision.reservation.id == id
            self.took(decision)

    def nothing_idle(self) -> None:
        """Work conservation: nobody waits who could start now."""
        for entry in list(self.scheduler.dispatcher.queue._entries.values()):
            case = entry.held.payload[0]
            placed = place(case, self.scheduler.fleet, now_ns=self.now_ns, rng=Random(1))
            assert isinstance(placed, Full), (case, placed)

    @rule(drop_policy=st.lists(requests, min_size=1, max_size=8))
    def arrivals(self, drop_policy: list[tuple[Tenant, str, int, int, RouteKind, str, str]]) -> None:
        for each in drop_policy:
            self.admit(*each)

    def admit(
        self,
        tenant: Tenant,
        pool: str,
        sequences: int,
        size: int,
        kind: RouteKind,
        affinity_group: str,
        degraded: str,
    ) -> None:
        request = Request(
            kind=kind,
            dialect=Dialect.OPENAI,
            model=f"model-{pool}",
            prompt_bytes=size,
            sequences=sequences,
            max_new_tokens=40,
            segments=(affinity_group,) if affinity_group else (),
        )
        decision = self.scheduler.admit(request, tenant, now_ns=self.now_ns, degraded=degraded)
        if isinstance(decision, Hold):
            assert kind is not RouteKind.TOKENIZE
            assert decision.id in self.scheduler.dispatcher.queue
            self.waiting[decision.id] = pool
            if not degraded:
                self.nothing_idle_in(pool)
        elif isinstance(decision, Routed):
            self.took(decision)

    def nothing_idle_in(self, pool: str) -> None:
        for entry in list(self.scheduler.dispatcher.queue._entries.values()):
            if entry.held.pool == pool:
                placed = place(entry.held.payload[0], self.scheduler.fleet, now_ns=self.now_ns, rng=Random(1))
                assert isinstance(placed, Full), placed

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=ends, tokens=st.none() | st.integers(0, 10_000), twice=st.booleans())
    def settle(self, data: st.DataObject, end: End, tokens: int | None, twice: bool) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.running)))
        reservation = self.ended[id_] = self.running.pop(id_)
        outcome = Outcome(
            reservation=reservation,
            final=True,
            end=end,
            served_by=reservation.address,
            attempts=1,
            duration_ns=S,
            prompt_tokens=tokens,
            output_tokens=tokens,
        )
        assert self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)
        self.nothing_idle_in(reservation.pool)
        if twice:
            assert not self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), final=st.booleans())
    def late_record(self, data: st.DataObject, final: bool) -> None:
        """A duplicate, or a heartbeat that came after the end."""
        reservation = self.ended[data.draw(st.sampled_from(sorted(self.ended)))]
        outcome = Outcome(reservation=reservation, final=final, served_by=reservation.address)
        assert not self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)
        assert reservation.id not in self.scheduler.ledger

    @precondition(lambda self: self.running)
    @rule(data=st.data(), address=st.sampled_from([*ADDRESSES, ""]))
    def heartbeat(self, data: st.DataObject, address: str) -> None:
        reservation = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        self.scheduler.settlement.settle(
            Outcome(reservation=reservation, final=False, served_by=address), now_ns=self.now_ns
        )

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """The decision reached nobody."""
        id_ = data.draw(st.sampled_from(sorted(self.running)))
        reservation = self.running.pop(id_)
        known = id_ in self.scheduler.ledger
        self.scheduler.cancel(id_, now_ns=self.now_ns)
        self.scheduler.cancel(id_, now_ns=self.now_ns)
        assert id_ not in self.scheduler.ledger
        if known:
            self.nothing_idle_in(reservation.pool)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[id_]
        self.scheduler.leave(id_, now_ns=self.now_ns)
        self.scheduler.leave(id_, now_ns=self.now_ns)
        assert id_ not in self.scheduler.dispatcher.queue
        assert id_ not in self.quotas._table._running

    @rule(seconds=st.sampled_from([0, 1, 2, 4, 10, 61]))
    def tick(self, seconds: int) -> None:
        """What the application does every so often."""
        self.now_ns += seconds * S
        reserved = set(self.waiting) & set(self.quotas._table._running)
        for reservation in step(self.scheduler, now_ns=self.now_ns):
            self.running.pop(reservation.id)
        self.nothing_idle()
        assert reserved & set(self.waiting) <= set(self.quotas._table._running), "a wait keeps its quota"
        assert all(
            entry.held.shed_at_ns > self.now_ns for entry in self.scheduler.dispatcher.queue._entries.values()
        )

    @rule(policy=policies)
    def apply(self, policy: Policy) -> None:
        before = set(self.waiting)
        same = [each.name for each in policy.classes] == [each.name for each in self.scheduler.policy.classes]
        self.scheduler.apply(replace(self.scheduler.settings, policy=policy), now_ns=self.now_ns)
        assert set(self.waiting) == (before if same else set())

    @rule(layout=members, kept=st.sampled_from([0, 1, 2, 3, 4, 4]))
    def fleet(self, layout: list[tuple[str, int, str]], kept: int) -> None:
        self.scheduler.fleet.apply(specs(layout, kept))
        self.scheduler.dispatcher.pump_all(now_ns=self.now_ns)
        self.nothing_idle()

    @rule(which=st.integers(0, 3), ready=st.sampled_from([True, True, False]))
    def readiness(self, which: int, ready: bool) -> None:
        for endpoint in self.scheduler.fleet.endpoints[which : which + 1]:
            endpoint.ready = ready
        self.scheduler.dispatcher.pump_all(now_ns=self.now_ns)
        self.nothing_idle()

    @invariant()
    def the_waiting_are_the_held(self) -> None:
        if hasattr(self, "scheduler"):
            assert set(self.scheduler.dispatcher.queue._entries) == set(self.waiting)
            assert len(self.scheduler.dispatcher.waiting) == len(self.waiting)

    @invariant()
    def the_running_are_the_entered(self) -> None:
        if hasattr(self, "scheduler"):
            assert set(self.scheduler.ledger._running) == set(self.running)
            everyone = [*self.scheduler.fleet.endpoints, *self.scheduler.fleet.leaving.values()]
            assert all(min(e.requests, e.permits, e.tokens) >= 0 for e in everyone)

    @invariant()
    def quotas_are_reserved_for_who_waits_or_runs(self) -> None:
        if hasattr(self, "scheduler"):
            assert set(self.quotas._table._running) <= set(self.waiting) | set(self.running)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for id_ in sorted(self.running)[::2]:
            self.scheduler.cancel(id_, now_ns=self.now_ns)
            self.running.pop(id_)
        self.now_ns += 300 * S  # beyond every hold and every time to live
        for _ in range(3):
            for reservation in step(self.scheduler, now_ns=self.now_ns):
                self.running.pop(reservation.id)
            self.scheduler.dispatcher.pump_all(now_ns=self.now_ns)
            self.now_ns += 300 * S
        assert not self.waiting, "everybody was told, once"
        assert not self.running
        assert (len(self.scheduler.dispatcher.queue), len(self.scheduler.ledger)) == (0, 0)
        assert self.quotas.outstanding_ns() == len(self.quotas) == 0
        for endpoint in [*self.scheduler.fleet.endpoints, *self.scheduler.fleet.leaving.values()]:
            assert (endpoint.requests, endpoint.permits, endpoint.tokens) == (0, 0, 0), "zero at rest"
        counts = self.scheduler.counts
        assert counts["exception.release"] == 0
        totals = self.quotas.totals
        assert totals["reserved"] + totals["added"] == (
            totals["settled"] + totals["refunded"] + totals["expired"]
        )


HoldMachine.TestCase.settings = examples(120, steps=40)
TestHold = HoldMachine.TestCase


def test_the_machine_can_fail() -> None:
    """A scheduler that forgot to pump would be noticed: work conservation is not vacuous."""
    machine = HoldMachine()
    policy = Policy(
        classes=(ClassSpec(hold_ns=5 * S),),
        bounds=QueueBounds(class_held_max=(HELD_MAX,)),
        accounts=Accounts(),
    )
    machine.begin([("p", 1, "eu")] * len(ADDRESSES), policy, 1)
    for _ in range(len(ADDRESSES) + 1):
        machine.admit(TENANTS[1], "p", 1, 40, RouteKind.CHAT, "", "")
    assert len(machine.waiting) == 1
    machine.scheduler.dispatcher.pump = lambda *_, **__: None  # type: ignore[method-assign]
    reservation = next(iter(machine.running.values()))
    machine.scheduler.settlement.settle(Outcome(reservation=reservation, final=True), now_ns=0)
    with pytest.raises(AssertionError):
        machine.nothing_idle()
