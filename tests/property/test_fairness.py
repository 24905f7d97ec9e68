"""What the fair queue promises, in whatever order things happen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.core.fairqueue import (
    Cost,
    EarliestDeadline,
    FairQueue,
    Order,
    QueueBounds,
    QueuedRequest,
    Shed,
)
from extproc.core.strategies import Work
from tests.stand.examples import examples
from tests.stand.orders import FirstCome

MS = 1_000_000
TENANTS = ("a", "b", "c", "d")
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}
POOLS = ("p", "q")
CLASSES = 3
AGEING_NS = 50 * MS
COST = Cost()

works = st.builds(Work, st.integers(0, 4_000), st.integers(0, 1_000))
orders: st.SearchStrategy[Order] = st.sampled_from(
    [EarliestDeadline(), EarliestDeadline(20 * MS), FirstCome()]
)


class QueueMachine(RuleBasedStateMachine):
    """One queue, a clock, and a plain model of who is in it."""

    @initialize(
        order=orders,
        total=st.integers(0, 12),
        classes=st.tuples(*[st.integers(0, 8)] * CLASSES),
        tenant=st.integers(0, 6),
        counters=st.integers(1, 4),
    )
    def begin(self, order: Order, total: int, classes: tuple[int, ...], tenant: int, counters: int) -> None:
        self.bounds = QueueBounds(
            held_max=total,
            class_held_max=classes,
            tenant_held_max=tenant,
            ageing_ns=AGEING_NS,
            counters_max=counters,
            slack_tokens=500.0,
        )
        self.order = order
        self.queue = FairQueue(self.bounds, order=order)
        self.now_ns = 0
        self.number = 0
        self.model: dict[str, QueuedRequest] = {}
        self.gone: Counter[str] = Counter()

    def left(self, held: QueuedRequest, how: str) -> None:
        assert self.model.pop(held.id) is held
        self.gone[how] += 1

    def shed(self, sheds: list[Shed]) -> None:
        for shed in sheds:
            self.left(shed.held, "shed")
            assert 1 <= shed.retry_after_s <= 60

    @rule(
        tenant=st.sampled_from(TENANTS),
        klass=st.integers(0, CLASSES - 1),
        pool=st.sampled_from(POOLS),
        work=works,
        due_ms=st.integers(0, 200),
        deadline_ms=st.integers(0, 100),
        prefill_ms=st.integers(0, 40),
        affinity_group=st.sampled_from([None, 1, b"x"]),
    )
    def push(self, due_ms: int, deadline_ms: int, prefill_ms: int, **fields: Any) -> None:
        self.number += 1
        held = QueuedRequest(
            id=str(self.number),
            weight=WEIGHTS[fields["tenant"]],
            arrived_ns=self.now_ns,
            shed_at_ns=self.now_ns + due_ms * MS,
            ttft_deadline_ns=self.now_ns + deadline_ms * MS,
            prefill_ns=prefill_ms * MS,
            **fields,
        )
        before = dict(self.model)
        self.model[held.id] = held
        sheds = self.queue.push(held, now_ns=self.now_ns)
        for each in (shed.held for shed in sheds):
            # Only what is over a bound sheds, and what it sheds is of the lowest class there.
            rest = [other for other in self.model.values() if other is not each]
            of_tenant = [other for other in self.model.values() if other.tenant == each.tenant]
            of_class = [other for other in self.model.values() if other.klass == each.klass]
            if len(of_tenant) > self.bounds.of_tenant(each.tenant):
                assert each.klass == max(other.klass for other in of_tenant)
            elif len(of_class) <= self.bounds.class_held_max[each.klass]:
                assert len(self.model) > self.bounds.held_max
                assert all(other.klass <= each.klass for other in rest)
            # The newest of its tenant and class.
            peers = [other for other in of_class if other.tenant == each.tenant]
            assert each.id == max(peers, key=lambda other: int(other.id)).id
            self.left(each, "shed")
        if not sheds:
            assert self.model.keys() == before.keys() | {held.id}

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([*self.model, "unknown"]))  # noqa: A001
        removed = self.queue.remove(id)
        assert removed is self.model.get(id)
        if removed is not None:
            self.left(removed, "removed")

    @rule(pool=st.sampled_from(POOLS), tries_max=st.integers(0, 8), data=st.data())
    def take(self, pool: str, tries_max: int, data: st.DataObject) -> None:
        held = {each.id: each for each in self.model.values() if each.pool == pool}
        fitting = set(data.draw(st.lists(st.sampled_from([*held] or ["none"]))))
        asked: list[str] = []

        def fits(each: QueuedRequest) -> str | None:
            asked.append(each.id)
            return f"for {each.id}" if each.id in fitting else None

        taken = self.queue.take(pool, fits, now_ns=self.now_ns, tries_max=tries_max)
        assert len(asked) == len(set(asked)) <= 1 + tries_max
        assert set(asked) <= set(held)
        if asked:
            # Strict order: nobody of a better level (its class less its ageing) was passed over unasked.
            best = min(self.level(each) for each in held.values())
            assert self.level(held[asked[0]]) == best
        if taken is None:
            assert len(asked) == min(len(held), 1 + tries_max)
            assert not fitting & set(asked)
            if len(held) <= 1 + tries_max:
                assert not fitting & set(held)
        else:
            assert taken[1] == f"for {taken[0].id}"
            self.left(taken[0], "dispatched")

    def level(self, held: QueuedRequest) -> int:
        return max(0, held.klass - (self.now_ns - held.arrived_ns) // AGEING_NS)

    @rule(pool=st.sampled_from(POOLS), affinity_group=st.sampled_from([None, 1, b"x"]))
    def take_affinity_group(self, pool: str, affinity_group: int | bytes | None) -> None:
        after = QueuedRequest(
            id="after",
            tenant="a",
            weight=1.0,
            klass=0,
            pool=pool,
            work=Work(0, 0),
            arrived_ns=0,
            shed_at_ns=0,
            ttft_deadline_ns=0,
            affinity_group=affinity_group,
        )
        taken = self.queue.take_affinity_group(after, lambda _: True, now_ns=self.now_ns)
        if taken is not None:
            assert (taken[0].pool, taken[0].affinity_group) == (pool, affinity_group)
            assert affinity_group is not None
            self.left(taken[0], "dispatched")

    @rule(ms=st.integers(0, 60))
    def pass_time(self, ms: int) -> None:
        self.now_ns += ms * MS

    @rule()
    def expire(self) -> None:
        due = {held.id for held in self.model.values() if self.order.last_ns(held) <= self.now_ns}
        sheds = self.queue.expire(now_ns=self.now_ns)
        assert {shed.held.id for shed in sheds} == due
        self.shed(sheds)

    @rule(
        tenant=st.sampled_from([*TENANTS, "stranger"]),
        pool=st.sampled_from(POOLS),
        klass=st.integers(0, CLASSES - 1),
        predicted=works,
        actual=works,
        held=st.booleans(),
    )
    def charge_or_settle(
        self, tenant: str, pool: str, klass: int, predicted: Work, actual: Work, held: bool
    ) -> None:
        weight = WEIGHTS.get(tenant, 1.0)
        if held:
            self.queue.settled(
                tenant, pool=pool, klass=klass, weight=weight, predicted=predicted, actual=actual
            )
        else:
            self.queue.charge(tenant, pool=pool, klass=klass, weight=weight, work=actual)

    @rule(pool=st.sampled_from(POOLS))
    def close(self, pool: str) -> None:
        self.shed(self.queue.close(pool, now_ns=self.now_ns))
        assert not [held for held in self.model.values() if held.pool == pool]

    @rule(total=st.integers(0, 12))
    def reload(self, total: int) -> None:
        """A lower bound holds from the next push on; here at once, to keep the invariant simple."""
        if total >= len(self.model):
            self.bounds = replace(self.bounds, held_max=total)
            self.queue.bounds = self.bounds

    @invariant()
    def the_sums_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue, model = self.queue, self.model.values()
        assert len(queue) == len(self.model) <= self.bounds.held_max
        assert queue.by_tenant == Counter(held.tenant for held in model)
        assert all(count <= self.bounds.of_tenant(tenant) for tenant, count in queue.by_tenant.items())
        classes = Counter(held.klass for held in model)
        assert queue.by_class == [classes[klass] for klass in range(CLASSES)]
        assert all(classes[k] <= most for k, most in enumerate(self.bounds.class_held_max))
        pools = Counter(held.pool for held in model)
        assert {pool: count for pool, count in queue.by_pool.items() if count} == dict(pools)
        nexts = [self.order.last_ns(held) for held in model]
        assert queue.next_event_ns() == min(nexts, default=None)
        left = {
            "dispatched": sum(w.dispatched for w in queue.waits),
            "shed": sum(w.shed for w in queue.waits),
            "removed": sum(w.removed for w in queue.waits),
        }
        assert left == {how: self.gone[how] for how in left}

    @invariant()
    def the_levels_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        for pool, line in self.queue._pool_queues.items():
            for level in line.bands:
                flows = [flow for flow in level.flows.values() if flow.size]
                assert level.size == sum(flow.size for flow in flows)
                assert level.backlogged == len(flows)
                assert abs(level.weight - sum(flow.weight for flow in flows)) < 1e-9
                assert all(flow.counter >= 0.0 for flow in level.flows.values())
                assert len(level.flows) <= self.bounds.counters_max + len(TENANTS)
                if flows:
                    assert level.floor() == min(flow.counter for flow in flows)
            assert sum(level.size for level in line.bands) == self.queue.by_pool[pool]

    def teardown(self) -> None:
        """Whoever is left is dispatched while there is room, or shed in the end."""
        if not hasattr(self, "queue"):
            return
        for pool in POOLS:
            count = self.queue.by_pool.get(pool, 0)
            for _ in range(count // 2):
                taken = self.queue.take(pool, lambda _: True, now_ns=self.now_ns)
                assert taken is not None
                self.left(taken[0], "dispatched")
        self.shed(self.queue.expire(now_ns=1 << 60))
        assert not self.model
        assert len(self.queue) == 0


QueueMachine.TestCase.settings = examples(120, steps=40)
TestQueueMachine = QueueMachine.TestCase


def held(number: int, tenant: str, work: Work, **fields: Any) -> QueuedRequest:
    return QueuedRequest(
        id=f"{tenant}{number}",
        tenant=tenant,
        weight=WEIGHTS[tenant],
        klass=fields.pop("klass", 0),
        pool="p",
        work=work,
        arrived_ns=number,
        shed_at_ns=1 << 60,
        ttft_deadline_ns=(1 << 59) + number,
        **fields,
    )


@given(
    requests=st.lists(st.tuples(st.sampled_from(TENANTS), works), min_size=10, max_size=80),
    misses=st.lists(st.integers(-1_000, 1_000), min_size=80, max_size=80),
    in_flight_max=st.integers(1, 8),
    window=st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_the_service_gap_is_bounded(
    requests: list[tuple[str, Work]], misses: list[int], in_flight_max: int, window: tuple[int, int]
) -> None:
    """VTC's theorem for charges at dispatch with corrections at the end.

    Over any time in which f and g are both backlogged at one level, |ΔS_f / w_f − ΔS_g / w_g| ≤
    2 · (U + E_f + E_g): U is the most that one request is charged over its tenant's weight, E the most by
    which the predictions of a tenant's requests in flight at one time are off in sum, over its weight.
    With right predictions that is Sheng et al.'s 2 · max(w_in · L_in, w_out · M) at weight 1.
    """
    queue = FairQueue(QueueBounds(held_max=1_000, class_held_max=(1_000,), tenant_held_max=1_000))
    # Two that always have more than could be served; the others come and go.
    for number in range(len(requests) + 1):
        for tenant in ("a", "b"):
            queue.push(held(number, tenant, requests[number % len(requests)][1]), now_ns=0)
    flying: list[tuple[QueuedRequest, Work]] = []
    served: Counter[str] = Counter()
    history: list[dict[str, float]] = []
    most_charged, errors = 0.0, {"a": 0.0, "b": 0.0}
    for number, (tenant, work) in enumerate(requests):
        if tenant in ("c", "d"):
            queue.push(held(number, tenant, work), now_ns=0)
        if len(flying) == in_flight_max:
            each, actual = flying.pop(number % len(flying))
            queue.settled(
                each.tenant, pool="p", klass=0, weight=each.weight, predicted=each.work, actual=actual
            )
            served[each.tenant] += COST.of(actual) - COST.of(each.work)
        taken = queue.take("p", lambda _: True, now_ns=0)
        assert taken is not None
        each = taken[0]
        actual = Work(each.work.input_tokens, max(0, each.work.output_tokens + misses[number]))
        flying.append((each, actual))
        served[each.tenant] += COST.of(each.work)
        most_charged = max(most_charged, COST.of(each.work) / each.weight)
        for who, most in errors.items():
            off = sum(abs(COST.of(real) - COST.of(f.work)) for f, real in flying if f.tenant == who)
            errors[who] = max(most, off / WEIGHTS[who])
        history.append({who: served[who] / WEIGHTS[who] for who in errors})
        spread = abs(queue.counters("p")["a"] - queue.counters("p")["b"])
        assert spread <= most_charged + sum(errors.values()) + 1e-6
    begin, end = sorted(min(at, len(history) - 1) for at in window)
    gained = {who: history[end][who] - history[begin][who] for who in errors}
    assert abs(gained["a"] - gained["b"]) <= 2 * (most_charged + sum(errors.values())) + 1e-6


@given(
    low=works,
    flood=st.lists(st.tuples(st.sampled_from(["a", "b"]), works), min_size=1, max_size=60),
    debt=st.integers(0, 10_000_000),
)
def test_nothing_starves(low: Work, flood: list[tuple[str, Work]], debt: int) -> None:
    """A request of the last class goes within one request of each tenant once it has aged to the top.

    However much the better classes send, and however much its tenant had before.
    """
    bounds = QueueBounds(held_max=1_000, class_held_max=(500,) * CLASSES, ageing_ns=AGEING_NS)
    queue = FairQueue(bounds, order=FirstCome())
    queue.charge("d", pool="p", klass=2, weight=1.0, work=Work(debt, 0))
    queue.push(held(0, "d", low, klass=2), now_ns=0)
    for number, (tenant, work) in enumerate(flood):
        queue.push(held(number, tenant, work), now_ns=0)
    backlogged = len({tenant for tenant, _ in flood})
    now_ns = 2 * AGEING_NS
    for turn in range(backlogged + 1):
        taken = queue.take("p", lambda _: True, now_ns=now_ns)
        assert taken is not None
        if taken[0].tenant == "d":
            return
        queue.push(held(1_000 + turn, "a", Work(1, 0)), now_ns=now_ns)
    raise AssertionError("it was passed over")


@given(
    requests=st.lists(
        st.tuples(works, st.integers(0, 90), st.integers(0, 40)),
        min_size=1,
        max_size=20,
        unique_by=lambda r: r[1],
    ),
    order=orders,
    now_ms=st.integers(0, 100),
    data=st.data(),
)
def test_inside_a_tenant_the_order_of_arrival_at_the_queue_is_nothing(
    requests: list[tuple[Work, int, int]], order: Order, now_ms: int, data: st.DataObject
) -> None:
    """Feasible ones by the policy's key, then the lost by arrival, however they were pushed."""
    made = [
        QueuedRequest(
            id=str(i),
            tenant="a",
            weight=1.0,
            klass=0,
            pool="p",
            work=work,
            arrived_ns=i,
            shed_at_ns=1 << 60,
            ttft_deadline_ns=deadline_ms * MS,
            prefill_ns=prefill_ms * MS,
        )
        for i, (work, deadline_ms, prefill_ms) in enumerate(requests)
    ]
    queue = FairQueue(QueueBounds(), order=order)
    for each in data.draw(st.permutations(made)):
        queue.push(each, now_ns=0)
    now_ns = now_ms * MS
    went = []
    while (taken := queue.take("p", lambda _: True, now_ns=now_ns)) is not None:
        went.append(taken[0].id)
    lost = [each for each in made if order.lost_ns(each) <= now_ns]
    feasible = [each for each in made if each not in lost]
    expected = sorted(feasible, key=order.key) + sorted(lost, key=lambda each: each.arrived_ns)
    assert went == [each.id for each in expected]
