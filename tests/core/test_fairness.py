"""The fair queue: order across classes and tenants, inside a tenant, and among those that begin alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from extproc.core.fairqueue import FairQueue, QueuedRequest
from extproc.core.strategies import Work
from tests.stand.orders import FirstCome
from tests.stand.queues import BOUNDS, S, anywhere, drain, filled, held, only


def test_an_empty_queue_gives_nothing() -> None:
    """Neither a pool that was never heard of nor an empty one."""
    queue = FairQueue(BOUNDS)
    assert queue.take("p", anywhere, now_ns=0) is None
    assert queue.take_affinity_group(held("1", affinity_group=1), anywhere, now_ns=0) is None
    assert queue.expire(now_ns=0) == []
    assert queue.next_event_ns() is None
    assert queue.remove("1") is None


def test_what_fits_comes_with_its_place() -> None:
    """The request, and whatever `fits` returned."""
    request = held("1", payload="the stream")
    assert filled(request).take("p", lambda _: ("10.0.0.1:80", 7), now_ns=0) == (
        request,
        ("10.0.0.1:80", 7),
    )


class TestTenants:
    def test_the_least_served_goes_next(self) -> None:
        """Costs 200 each, so a's five and b's five alternate."""
        queue = filled(*(held(f"{t}{i}", t, arrived_ns=i) for t in "ab" for i in range(3)))
        assert drain(queue) == ["a0", "b0", "a1", "b1", "a2", "b2"]

    def test_whose_turn_was_found_over_several_services_goes_first(self) -> None:
        """Whatever it had here; where it does not fit, or does not wait, the order is the usual one."""
        queue = filled(*(held(f"{t}{i}", t, arrived_ns=i) for t in "abc" for i in range(3)))
        offered: list[str] = []

        def none(request: QueuedRequest) -> None:
            offered.append(request.id)

        assert queue.take("p", none, first="c", now_ns=0, tries_max=8) is None
        assert offered[:3] == ["c0", "a0", "b0"]
        assert sorted(offered) == sorted({f"{t}{i}" for t in "abc" for i in range(3)})
        for first, expected in (("b", "b0"), ("b", "b1"), ("nobody", "a0"), ("b", "b2"), ("b", "c0")):
            taken = queue.take("p", anywhere, first=first, now_ns=0)
            assert taken is not None
            assert taken[0].id == expected
        assert drain(queue) == ["a1", "c1", "a2", "c2"]

    def test_a_weight_of_two_gets_twice(self) -> None:
        """a is charged 200 / 2."""
        a = [held(f"a{i}", "a", weight=2.0, arrived_ns=i) for i in range(8)]
        queue = filled(*a, *(held(f"b{i}", "b", arrived_ns=i) for i in range(8)))
        assert sum(each.startswith("a") for each in drain(queue, most=9)) == 6

    def test_costs_are_tokens(self) -> None:
        """One of b's costs five of a's."""
        large = Work(900, 50)
        queue = filled(
            *(held(f"b{i}", "b", work=large, arrived_ns=i) for i in range(2)),
            *(held(f"a{i}", "a", arrived_ns=i) for i in range(7)),
        )
        assert drain(queue) == ["b0", "a0", "a1", "a2", "a3", "a4", "b1", "a5", "a6"]

    def test_who_was_idle_is_lifted(self) -> None:
        """It has not saved up while others were served, and does not go first for long."""
        queue = filled(*(held(f"a{i}", "a", arrived_ns=i) for i in range(10)))
        drain(queue, most=5)
        for i in range(5):
            queue.push(held(f"b{i}", "b", arrived_ns=i), now_ns=0)
        assert queue.counters("p") == {"a": 1000.0, "b": 1000.0}
        assert drain(queue, most=4) == ["a5", "b0", "a6", "b1"]

    def test_with_nobody_waiting_the_last_served_is_the_measure(self) -> None:
        """What a tenant had of a free replica is no debt to those who come later."""
        queue = FairQueue(BOUNDS)
        for _ in range(100):
            queue.charge("a", pool="p", klass=0, weight=1.0, work=Work(100, 50))
        queue.push(held("b0", "b"), now_ns=0)
        queue.push(held("a0", "a"), now_ns=0)
        assert queue.counters("p") == {"a": 20_000.0, "b": 20_000.0}

    def test_what_is_never_held_is_charged(self) -> None:
        """A tenant whose small requests always find a place pays for them."""
        queue = filled(held("a0"), held("b0", "b"))
        queue.charge("a", pool="p", klass=0, weight=1.0, work=Work(1, 0))
        assert drain(queue) == ["b0", "a0"]

    def test_pools_are_apart(self) -> None:
        """Much of one model is nothing of another's."""
        queue = filled(held("a0"), held("b0", "b"))
        queue.charge("a", pool="q", klass=0, weight=1.0, work=Work(10_000, 0))
        assert drain(queue) == ["a0", "b0"]
        assert drain(queue, pool="q") == []

    def test_the_end_corrects_the_prediction(self) -> None:
        """50 output tokens were expected, 90 came: 2 · 40 more; over the weight."""
        queue = filled(held("a0", weight=2.0), held("a1", weight=2.0))
        drain(queue, most=1)
        settle = {"pool": "p", "klass": 0, "weight": 2.0, "predicted": Work(100, 50)}
        queue.settled("a", actual=Work(100, 90), **settle)
        assert queue.counters("p") == {"a": 140.0}
        queue.settled("a", actual=Work(90, 50), **settle)
        assert queue.counters("p") == {"a": 135.0}
        queue.settled("nobody", actual=Work(90, 50), **settle)
        assert queue.counters("p") == {"a": 135.0}
        queue.settled("a", actual=Work(90, 50), **(settle | {"pool": "unknown"}))

    def test_a_refund_does_not_undo_a_lift(self) -> None:
        """An overestimate, an absence and a return are no way to the front."""
        queue = filled(held("a0", work=Work(0, 500)), *(held(f"b{i}", "b") for i in range(20)))
        drain(queue, most=19)
        queue.push(held("a1"), now_ns=0)
        lifted = queue.counters("p")["b"]
        assert queue.counters("p")["a"] == lifted == 18 * 200
        queue.settled("a", pool="p", klass=0, weight=1.0, predicted=Work(0, 500), actual=Work(0, 1))
        assert queue.counters("p")["a"] == lifted

    def test_counters_of_the_idle_are_bounded(self) -> None:
        """A thousand passers-by leave ten counters."""
        queue = FairQueue(replace(BOUNDS, counters_max=10))
        for i in range(1_000):
            queue.charge(f"t{i}", pool="p", klass=0, weight=1.0, work=Work(i % 7, 0))
        assert len(queue.counters("p")) == 10

    def test_to_be_forgotten_is_no_advantage(self) -> None:
        """Whoever owes most is remembered longest, and who is unknown begins where the forgotten were."""
        queue = filled(held("b0", "b"), bounds=replace(BOUNDS, counters_max=3))
        for tenant, tokens in (("debtor", 900), ("small", 100), ("x", 50), ("y", 70)):
            queue.charge(tenant, pool="p", klass=0, weight=1.0, work=Work(tokens, 0))
        assert queue.counters("p").keys() == {"b", "debtor", "y"}
        queue.push(held("s", "small"), now_ns=0)
        # Forgotten were x at 50, small at 100, and now y at 120 (it began at 50) for small itself.
        assert queue.counters("p")["small"] >= 100.0
        assert queue.counters("p")["debtor"] == 900.0


class TestClasses:
    def test_the_better_class_goes_first(self) -> None:
        """Whatever the counters are."""
        queue = filled(held("low", klass=2), held("mid", klass=1), held("top", "b", klass=0))
        queue.charge("b", pool="p", klass=0, weight=1.0, work=Work(100_000, 0))
        assert drain(queue) == ["top", "mid", "low"]

    def test_ageing_lifts_a_class_at_a_time(self) -> None:
        """After 10 s class 2 competes in class 1, after 20 s in class 0, and no further."""
        queue = filled(held("low", "l", klass=2))
        for second, level in ((9, 2), (10, 1), (19, 1), (20, 0), (59, 0)):
            assert queue.take("p", lambda _: None, now_ns=second * S) is None
            backlogged = [i for i in range(3) if "l" in queue.counters("p", i)]
            assert min(backlogged) == level
        assert queue.waits[2].aged == 2
        assert queue.by_class == [0, 0, 1]

    def test_a_late_look_ages_as_much(self) -> None:
        """Nothing is lost when nobody took for a while; a guest comes after its equals, once each."""
        queue = filled(held("low", "l", klass=2), held("top0", "t"), held("top1", "t", arrived_ns=1))
        assert drain(queue, now_ns=25 * S) == ["top0", "low", "top1"]

    def test_what_was_had_as_a_guest_counts_at_home(self) -> None:
        """Charged in the level it was served at, and in its own class."""
        queue = filled(held("low", "l", klass=1))
        assert drain(queue, now_ns=10 * S) == ["low"]
        assert queue.counters("p", 0) == queue.counters("p", 1) == {"l": 200.0}

    def test_what_a_guest_has_not_used_is_refunded_where_it_was_charged(self) -> None:
        """In both levels, and what it used above its prediction is charged in both."""
        for actual in (Work(100, 0), Work(100, 500)):
            queue = filled(held("low", "l", klass=1))
            assert drain(queue, now_ns=10 * S) == ["low"]
            what = {"pool": "p", "klass": 1, "weight": 1.0, "predicted": Work(100, 50), "actual": actual}
            for _ in range(2):
                queue.settled("l", id="low", **what)  # type: ignore[arg-type]
                what["actual"] = what["predicted"]
            cost = 100.0 + 2 * actual.output_tokens
            assert queue.counters("p", 0) == queue.counters("p", 1) == {"l": cost}

    @pytest.mark.parametrize(("predicted", "actual"), [(7, 7), (256, 7), (7, 256), (2_000, 7)])
    def test_an_aged_guest_predicted_too_long_is_served_like_one_predicted_well(
        self, predicted: int, actual: int
    ) -> None:
        """A flood of the better class and one of the other at a time: each waits for ageing and a turn."""
        queue = FairQueue(replace(BOUNDS, ageing_ns=2 * S))
        now_ns, number, waits = 0, 0, []

        def push(tenant: str, klass: int) -> None:
            nonlocal number
            number += 1
            work = Work(10, predicted)
            far = now_ns + 3_600 * S
            queue.push(
                held(
                    f"{tenant}{number}",
                    tenant,
                    klass=klass,
                    work=work,
                    arrived_ns=now_ns,
                    shed_at_ns=far,
                    ttft_deadline_ns=far,
                ),
                now_ns=now_ns,
            )

        for _ in range(12):
            push("a", 0)
        push("b", 1)
        for _ in range(400):
            taken = queue.take("p", anywhere, now_ns=now_ns)
            assert taken is not None
            each = taken[0]
            if each.tenant == "b":
                waits.append(now_ns - each.arrived_ns)
            now_ns += 2 * S // 5
            queue.settled(
                each.tenant,
                pool="p",
                klass=each.klass,
                weight=1.0,
                predicted=each.work,
                actual=Work(10, actual),
                id=each.id,
            )
            push(each.tenant, each.klass)
        # Ageing takes two seconds, five turns of the replica; then it goes next or after one other.
        assert len(waits) >= 55, len(waits)
        assert max(waits) <= 4 * S

    def test_guests_are_known_to_a_bound(self) -> None:
        """The oldest is forgotten: it is corrected in its own class alone."""
        bounds = replace(BOUNDS, guests_max=1)
        queue = filled(held("one", "l", klass=1), held("two", "m", klass=1), bounds=bounds)
        assert drain(queue, now_ns=10 * S) == ["one", "two"]
        for name, tenant in (("one", "l"), ("two", "m")):
            what: dict[str, Any] = {"predicted": Work(100, 50), "actual": Work(100, 0)}
            queue.settled(tenant, pool="p", klass=1, weight=1.0, id=name, **what)
        assert queue.counters("p", 0)["m"] < queue.counters("p", 0)["l"]

    def test_no_flood_of_a_better_class_starves_an_aged_one(self) -> None:
        """Once it competes there it waits for no more than a request of each tenant."""
        queue = filled(held("low", "l", klass=1))
        queue.charge("l", pool="p", klass=1, weight=1.0, work=Work(1_000_000, 0))
        for i in range(50):
            queue.push(held(f"a{i}"), now_ns=0)
            queue.push(held(f"b{i}", "b"), now_ns=0)
        assert "low" not in drain(queue, now_ns=9 * S, most=20)
        assert "low" in drain(queue, now_ns=10 * S, most=3)


class TestInside:
    def test_the_earliest_deadline_goes_first(self) -> None:
        """Not who came first."""
        queue = filled(
            held("late", ttft_deadline_ns=9 * S), held("soon", arrived_ns=1, ttft_deadline_ns=3 * S)
        )
        assert drain(queue, now_ns=2) == ["soon", "late"]

    def test_the_lost_go_last_by_arrival(self) -> None:
        """Started at 3 s with 2.5 s of prefill neither x nor y makes its 5 s."""
        queue = filled(
            held("x", arrived_ns=1, prefill_ns=5 * S // 2),
            held("y", arrived_ns=0, prefill_ns=5 * S // 2),
            held("just", arrived_ns=2, prefill_ns=2 * S),
            held("long", arrived_ns=3, ttft_deadline_ns=50 * S),
        )
        assert drain(queue, now_ns=3 * S) == ["just", "long", "y", "x"]

    def test_first_come(self) -> None:
        """The comparison: nothing but arrival."""
        queue = filled(
            held("1", arrived_ns=1, ttft_deadline_ns=9 * S),
            held("2", arrived_ns=2, ttft_deadline_ns=3 * S),
            order=FirstCome(),
        )
        assert drain(queue, now_ns=8 * S) == ["1", "2"]

    @pytest.mark.parametrize("order", list(permutations(range(4))))
    def test_the_order_of_pushing_does_not_matter(self, order: tuple[int, ...]) -> None:
        """Where counters, deadlines and arrivals differ, they alone decide."""
        queue = filled(held("a0"), held("b0", "b"))
        queue.charge("a", pool="p", klass=0, weight=1.0, work=Work(70, 0))
        requests = [
            held("a1", "a", arrived_ns=1, ttft_deadline_ns=6 * S),
            held("a2", "a", arrived_ns=0, ttft_deadline_ns=7 * S),
            held("b1", "b", arrived_ns=3, ttft_deadline_ns=8 * S),
            held("b2", "b", arrived_ns=2, ttft_deadline_ns=9 * S),
        ]
        for i in order:
            queue.push(requests[i], now_ns=0)
        assert drain(queue, now_ns=3) == ["b0", "a0", "b1", "a1", "b2", "a2"]


class TestFitting:
    def test_the_next_is_tried_when_the_first_fits_nowhere(self) -> None:
        """By fair order: another tenant's first before the second of the same."""
        queue = filled(held("a0"), held("a1", arrived_ns=1), held("b0", "b"))
        fits = only("a1")
        taken = queue.take("p", fits, now_ns=0)
        assert taken is not None
        assert taken[0].id == "a1"
        assert fits.asked == ["a0", "b0", "a1"]  # type: ignore[attr-defined]
        assert drain(queue) == ["b0", "a0"]

    def test_tries_are_bounded(self) -> None:
        """1 + tries_max calls, each for another request."""
        queue = filled(*(held(f"{t}{i}", f"t{t}") for t in range(20) for i in range(5)))
        for tries_max in (0, 1, 6, 30):
            fits = only()
            assert queue.take("p", fits, now_ns=0, tries_max=tries_max) is None
            asked = fits.asked  # type: ignore[attr-defined]
            assert len(asked) == len(set(asked)) == 1 + tries_max

    def test_seven_or_fewer_are_all_tried(self) -> None:
        """So something is taken whenever something fits."""
        for last in range(7):
            queue = filled(*(held(str(i), f"t{i % 3}", klass=i % 2) for i in range(7)))
            taken = queue.take("p", only(str(last)), now_ns=0)
            assert taken is not None

    def test_the_front_does_not_block_the_rest_for_long(self) -> None:
        """Of 100 held the one that fits is found in 50 takes, wherever it stands."""
        queue = filled(*(held(str(i), f"t{i}") for i in range(100)))
        takes = 1
        while queue.take("p", only("77"), now_ns=0) is None:
            takes += 1
        assert takes <= 50

    def test_a_failing_fits_breaks_nothing(self) -> None:
        """Its error goes through; the queue is as before."""
        queue = filled(held("a0"), held("a1", arrived_ns=1), held("b0", "b"))

        def breaks(each: QueuedRequest) -> str | None:
            if each.id == "a1":
                raise RuntimeError(each.id)
            return None

        with pytest.raises(RuntimeError):
            queue.take("p", breaks, now_ns=0)
        assert drain(queue) == ["a0", "b0", "a1"]


class TestKin:
    def test_affinity_group_go_together(self) -> None:
        """Before their turn, of any tenant, one at a time."""
        queue = filled(
            held("a0", affinity_group=7),
            held("a1", arrived_ns=1, affinity_group=8),
            held("b0", "b"),
            held("b1", "b", arrived_ns=1, affinity_group=7, ttft_deadline_ns=9 * S),
            held("c0", "c", affinity_group=b"7"),
        )
        first = queue.take("p", anywhere, now_ns=2)
        assert first is not None
        assert first[0].id == "a0"
        second = queue.take_affinity_group(first[0], anywhere, now_ns=2)
        assert second is not None
        assert second[0].id == "b1"
        assert queue.take_affinity_group(first[0], anywhere, now_ns=2) is None
        assert queue.counters("p") == {"a": 200.0, "b": 200.0, "c": 0.0}

    def test_not_beyond_the_slack(self) -> None:
        """b is 200 ahead of c."""
        for slack, goes in ((199.0, False), (200.0, True)):
            queue = filled(
                held("a0", affinity_group=7),
                held("b0", "b", ttft_deadline_ns=1 * S),
                held("b1", "b", affinity_group=7),
                held("c0", "c"),
                bounds=replace(BOUNDS, slack_tokens=slack),
            )
            assert drain(queue, most=2) == ["a0", "b0"]
            assert (
                queue.take_affinity_group(held("a0", affinity_group=7), anywhere, now_ns=0) is not None
            ) is goes

    def test_neither_before_a_better_class_nor_when_lost(self) -> None:
        """Nor to a place that does not take it."""
        first = held("x", affinity_group=7)
        queue = filled(held("low", klass=1, affinity_group=7), held("top", "t"))
        assert queue.take_affinity_group(first, anywhere, now_ns=0) is None
        queue.remove("top")
        assert queue.take_affinity_group(first, only(), now_ns=0) is None
        assert queue.take_affinity_group(first, anywhere, now_ns=6 * S) is None
        assert queue.take_affinity_group(first, anywhere, now_ns=0) is not None
