"""The fair queue's bounds: who is turned away and told what, who leaves, and that nothing is left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from extproc.core.fairqueue import EarliestDeadline, FairQueue, QueueBounds
from extproc.core.fairqueue.drop_policy import DropPolicy
from extproc.core.fairqueue.flow import FlowEntry
from extproc.core.strategies import Work
from tests.stand.queues import BOUNDS, S, anywhere, drain, filled, held, only, shed_ids


class TestBounds:
    def test_a_tenant_over_its_bound_loses_its_newest(self) -> None:
        """Nobody else does; a tenant may have a bound of its own, and 0 is none at all."""
        bounds = replace(BOUNDS, tenant_held_max=2, tenants_held_max={"big": 3, "none": 0})
        queue = filled(
            held("a0"), held("a1", pool="q"), *(held(f"B{i}", "big") for i in range(3)), bounds=bounds
        )
        assert shed_ids(queue.push(held("a2"), now_ns=0)) == ["a2"]
        assert shed_ids(queue.push(held("B3", "big"), now_ns=0)) == ["B3"]
        assert shed_ids(queue.push(held("n", "none"), now_ns=0)) == ["n"]
        assert queue.by_tenant == {"a": 2, "big": 3}

    def test_a_tenants_lowest_class_goes_first(self) -> None:
        """Its better request pushes out its newest of a lower class."""
        queue = filled(held("l0", klass=1), held("l1", klass=1), bounds=replace(BOUNDS, tenant_held_max=2))
        assert shed_ids(queue.push(held("top"), now_ns=0)) == ["l1"]

    def test_a_full_class_turns_away_who_fills_it(self) -> None:
        """The newest of the tenant with most for its weight, not the good tenant's first."""
        bounds = replace(BOUNDS, class_held_max=(4, 10, 10))
        noisy = [held(f"n{i}", "noisy") for i in range(4)]
        queue = filled(*noisy, bounds=bounds)
        assert shed_ids(queue.push(held("g0", "good"), now_ns=0)) == ["n3"]
        assert shed_ids(queue.push(held("n4", "noisy"), now_ns=0)) == ["n4"]
        assert shed_ids(queue.push(held("g1", "good"), now_ns=0)) == ["n2"]
        # Two each: the newcomer's own goes rather than one that has waited.
        assert shed_ids(queue.push(held("g2", "good"), now_ns=0)) == ["g2"]
        assert shed_ids(queue.push(held("h0", "heavy", weight=9.0), now_ns=0)) == ["g1"]

    def test_a_full_queue_sheds_the_lowest_class_first(self) -> None:
        """Of the lowest that is held, and the pushed one itself if that is it."""
        queue = filled(
            held("t0", "t"),
            held("m0", "m", klass=1),
            held("l0", "l", klass=2),
            bounds=replace(BOUNDS, held_max=3),
        )
        assert shed_ids(queue.push(held("l1", "k", klass=2), now_ns=0)) == ["l1"]
        assert shed_ids(queue.push(held("t1", "t"), now_ns=0)) == ["l0"]
        assert shed_ids(queue.push(held("t2", "t"), now_ns=0)) == ["m0"]
        assert shed_ids(queue.push(held("m1", "m", klass=1), now_ns=0)) == ["m1"]
        assert shed_ids(queue.push(held("t3", "t"), now_ns=0)) == ["t3"]
        assert queue.by_class == [3, 0, 0]

    def test_lower_bounds_hold_from_the_next_push(self) -> None:
        """A reload that lowers them sheds all that is over."""
        queue = filled(*(held(f"{i}", f"t{i}") for i in range(9)))
        queue.bounds = replace(BOUNDS, held_max=4)
        assert len(queue.push(held("9", "t9"), now_ns=0)) == 6
        assert len(queue) == 4


class TestLeaving:
    def test_a_client_that_leaves_is_gone_at_once(self) -> None:
        """Uncharged, and not offered any more."""
        queue = filled(held("a0"), held("a1", arrived_ns=1))
        removed = queue.remove("a0")
        assert removed is not None
        assert removed.id == "a0"
        assert queue.remove("a0") is None
        assert "a0" not in queue
        assert queue.counters("p") == {"a": 0.0}
        assert drain(queue) == ["a1"]
        assert len(queue) == 0
        assert queue.by_pool == {"p": 0}
        assert not queue.by_tenant

    def test_expiry(self) -> None:
        """At its own time and not before; the next event says when."""
        queue = filled(held("a0", shed_at_ns=5), held("a1", shed_at_ns=9), held("a2", shed_at_ns=7))
        assert queue.next_event_ns() == 5
        assert queue.expire(now_ns=4) == []
        assert shed_ids(queue.expire(now_ns=7)) == ["a0", "a2"]
        assert queue.next_event_ns() == 9
        queue.remove("a1")
        assert queue.next_event_ns() is None

    def test_past_hope(self) -> None:
        """With a hope of 1 s a request is shed that long after it was lost, at 5 − 2 s."""
        queue = filled(held("a0", prefill_ns=2 * S), order=EarliestDeadline(hope_ns=S))
        assert queue.expire(now_ns=4 * S) == []
        assert shed_ids(queue.expire(now_ns=4 * S + 1)) == ["a0"]

    def test_a_closed_pool_sheds_its_own(self) -> None:
        """And nobody else's."""
        queue = filled(held("a0"), held("b0", pool="q"))
        assert shed_ids(queue.close("p", now_ns=0)) == ["a0"]
        assert queue.by_pool == {"q": 1}
        assert drain(queue, pool="q") == ["b0"]

    def test_figures(self) -> None:
        """How they left, by class."""
        queue = filled(
            held("a0", klass=1), held("a1", klass=1, arrived_ns=1), held("a2"), held("a3", shed_at_ns=3)
        )
        queue.expire(now_ns=3)
        queue.remove("a2")
        assert queue.take("p", anywhere, now_ns=10) is not None
        assert queue.take("p", anywhere, now_ns=21) is not None
        assert (queue.waits[0].shed, queue.waits[0].removed) == (1, 1)
        assert (queue.waits[1].dispatched, queue.waits[1].waited_ns, queue.waits[1].waited_max_ns) == (
            2,
            30,
            20,
        )


class TestRetryAfter:
    def paced(self, *, every_ns: int, count: int, bounds: QueueBounds) -> FairQueue:
        """A queue that lets one go in so many nanoseconds, empty at the end."""
        queue = FairQueue(bounds)
        for i in range(count):
            queue.push(held(f"w{i}", "w", arrived_ns=i), now_ns=0)
        for i in range(1, count + 1):
            queue.take("p", anywhere, now_ns=i * every_ns)
        return queue

    def test_it_is_when_the_queue_will_have_moved_on(self) -> None:
        """10 a second and 40 of its own ahead of it: 5 s at the 41st, rounded up."""
        queue = self.paced(every_ns=S // 10, count=20, bounds=replace(BOUNDS, tenant_held_max=40))
        now = 2 * S
        for i in range(40):
            queue.push(held(f"a{i}", shed_at_ns=90 * S), now_ns=now)
        (shed,) = queue.push(held("a40"), now_ns=now)
        assert shed.retry_after_s == 5

    def test_it_counts_what_fairness_puts_ahead(self) -> None:
        """Its first goes after one of each tenant, though 300 wait; a lower class waits for all."""
        queue = self.paced(every_ns=S // 10, count=20, bounds=replace(BOUNDS, tenants_held_max={"z": 0}))
        now = 2 * S
        for i in range(300):
            queue.push(held(f"a{i}", f"t{i % 3}"), now_ns=now)
        # 1 + 4 tenants' one each.
        assert queue.push(held("z0", "z"), now_ns=now)[0].retry_after_s == 1
        assert queue.push(held("z1", "z", klass=1), now_ns=now)[0].retry_after_s in (30, 31)

    def test_a_stall_lengthens_it(self) -> None:
        """Nothing has gone for 20 s."""
        queue = self.paced(every_ns=S // 10, count=20, bounds=replace(BOUNDS, tenants_held_max={"z": 0}))
        queue.push(held("a0"), now_ns=2 * S)
        assert queue.push(held("z0", "z"), now_ns=22 * S)[0].retry_after_s > 2

    def test_unknown_pace_is_the_hold_time(self) -> None:
        """And never more than a minute nor less than a second."""
        for shed_at_ns, told_s in ((8 * S, 8), (0, 1), (900 * S, 60)):
            queue = FairQueue(replace(BOUNDS, tenant_held_max=0))
            assert queue.push(held("a", shed_at_ns=shed_at_ns), now_ns=0)[0].retry_after_s == told_s

    def test_unknown_pace_tells_each_a_time_of_its_own(self) -> None:
        """As if those who wait were served within the hold: four in 8 s, so one in 2, and a little slack."""
        queue = FairQueue(replace(BOUNDS, tenant_held_max=4))
        for number in range(4):
            assert not queue.push(held(f"w{number}", shed_at_ns=8 * S), now_ns=0)
        told = [queue.push(held(f"a{number}", shed_at_ns=8 * S), now_ns=0)[0] for number in range(3)]
        # 8, 8 + 2.6, 8 + 5.2, rounded up.
        assert [each.retry_after_s for each in told] == [8, 11, 14]


class TestMemory:
    def test_who_has_left_leaves_nothing(self) -> None:
        """Ten thousand that come and go beside one that stays: no heap grows with them."""
        queue = filled(held("stays"), held("low", klass=2), held("charged", "z"))
        for i in range(10_000):
            queue.push(held(f"{i}", f"t{i % 50}", klass=i % 3, affinity_group=i), now_ns=0)
            if i % 2:
                queue.remove(f"{i}")
            else:
                assert queue.take("p", only(f"{i}"), now_ns=0) is not None
        for _ in range(10_000):
            queue.charge("z", pool="p", klass=0, weight=1.0, work=Work(1, 0))
        line = queue._pool_queues["p"]
        heaps = [
            queue._last._heap,
            queue._ageing._heap,
            *(drop_policy._fullest for drop_policy in queue._drop_policies),
        ]
        heaps += [heap for band in line.bands for heap in (band._ranked, band._idle)]
        heaps += [flow._feasible for band in line.bands for flow in band.flows.values()]
        assert max(map(len, heaps)) <= 100
        assert len(line._affinity_group) == 0
        assert len(line._rotation) == len(queue) == 3

    def test_who_is_fullest_is_known_after_any_history(self) -> None:
        """As counting them all would say, also after records were dropped."""
        rng = Random(1)
        drop_policy = DropPolicy()
        entries: dict[int, FlowEntry] = {}
        for number in range(1, 6_000):
            grows = rng.random() < (0.7 if number % 1_000 < 500 else 0.3)
            if grows or not entries:
                tenant = f"t{rng.randrange(12)}"
                request = held(str(number), tenant, weight=1.0 + len(tenant) % 2)
                entries[number] = FlowEntry(request, number=number, key=0, lost_ns=0, last_ns=0)
                drop_policy.add(entries[number])
            else:
                drop_policy.drop(entries.pop(rng.choice(list(entries))))
            if number % 37 == 0 and entries:
                fullness = Counter[str]()
                for entry in entries.values():
                    fullness[entry.held.tenant] += 1
                found = drop_policy.newest_of_fullest()
                weight = found.held.weight
                most = max(fullness[e.held.tenant] / e.held.weight for e in entries.values())
                assert fullness[found.held.tenant] / weight == most
                assert found.number == max(
                    n for n, e in entries.items() if e.held.tenant == found.held.tenant
                )
