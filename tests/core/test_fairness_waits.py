"""How long one waits, and what one is told: the oldest has its turns, Retry-After is when there is room."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from extproc.core.fairqueue import FairQueue, FeasibleFirst, Order, QueueBounds, QueuedRequest
from extproc.core.fairqueue.flow import OLDEST_EVERY
from extproc.core.fairqueue.order import EarliestDeadline

S, MS = 1_000_000_000, 1_000_000
AFTER_S = 10


@dataclass(frozen=True, slots=True)
class Work:
    input_tokens: int = 100
    output_tokens: int = 100


def bounds(most: int = 10_000, *, after_s: float = AFTER_S) -> QueueBounds:
    return QueueBounds(
        class_held_max=(most,),
        held_max=most,
        tenant_held_max=most,
        oldest_after_ns=int(after_s * S),
    )


def held(
    number: int, now_ns: int, *, tenant: str = "t", hold_s: int = 20, prefill_ms: int = 20
) -> QueuedRequest:
    return QueuedRequest(
        id=f"r{number}",
        tenant=tenant,
        weight=1.0,
        klass=0,
        pool="p",
        work=Work(),
        arrived_ns=now_ns,
        shed_at_ns=now_ns + hold_s * S,
        ttft_deadline_ns=now_ns + S,
        prefill_ns=prefill_ms * MS,
    )


def waits(load: float, *, after_s: float, order: Order) -> list[float]:
    """Four places, 0.4 s each on the mean, a minute of requests that may wait for 20 s: what each waited."""
    queue = FairQueue(bounds(after_s=after_s), order=order)
    rng, at_s, number = Random(1), 0.0, 0
    events: list[tuple[int, int, str]] = []
    while at_s < 60.0:
        at_s += rng.expovariate(load * 4 / 0.4)
        number += 1
        heapq.heappush(events, (int(at_s * S), number, "comes"))
    free, found = 4, []
    while events:
        now_ns, _, what = heapq.heappop(events)
        if what == "comes":
            number += 1
            queue.push(held(number, now_ns, prefill_ms=rng.choice((20, 20, 50, 200))), now_ns=now_ns)
            heapq.heappush(events, (now_ns + 20 * S, number, "is shed"))
        elif what == "ends":
            free += 1
        found += [20.0] * len(queue.expire(now_ns=now_ns))
        while free and (taken := queue.take("p", lambda _: True, now_ns=now_ns)) is not None:
            free, number = free - 1, number + 1
            found.append((now_ns - taken[0].arrived_ns) / S)
            heapq.heappush(events, (now_ns + int(rng.expovariate(1 / 0.4) * S), number, "ends"))
    return found


@pytest.mark.parametrize("order", [FeasibleFirst(), EarliestDeadline()], ids=lambda order: order.name)
@pytest.mark.parametrize("load", [1.0, 1.05, 1.1])
def test_nobody_waits_as_long_as_it_may_while_later_ones_are_served(load: float, order: Order) -> None:
    """A little more than fits: the lost are served too, a few seconds after the time from which they may."""
    without = waits(load, after_s=1_000, order=order)
    found = waits(load, after_s=AFTER_S, order=order)
    assert max(without) > 14.0, "there was nothing to starve of"
    assert max(found) < min(15.0, max(without))
    in_time, in_time_without = (sum(each < 1.0 for each in every) for every in (found, without))
    assert in_time > 0.95 * in_time_without


def test_a_tenants_oldest_has_every_fourth_turn_from_its_time_on() -> None:
    """Before it the order alone counts; the oldest first, then the next, and no more than that share."""
    queue = FairQueue(bounds(), order=FeasibleFirst())
    lost = [held(number, 0, hold_s=600) for number in range(3)]
    for each in lost:
        queue.push(each, now_ns=0)
    number, taken = 10, []
    for turn in range(60):
        now_ns = (5 if turn < 20 else 11) * S + turn
        for _ in range(2):
            number += 1
            queue.push(held(number, now_ns), now_ns=now_ns)
        found = queue.take("p", lambda _: True, now_ns=now_ns)
        assert found is not None
        taken.append(found[0].id)
    turns = [turn for turn, name in enumerate(taken) if name in {each.id for each in lost}]
    assert [taken[turn] for turn in turns] == ["r0", "r1", "r2"]
    assert turns == [20, 20 + OLDEST_EVERY, 20 + 2 * OLDEST_EVERY]


def test_an_oldest_that_fits_nowhere_keeps_nobody_back_and_is_offered_first() -> None:
    """It is passed over, once an event; when it fits it goes."""
    queue = FairQueue(bounds(), order=FeasibleFirst())
    queue.push(held(0, 0, hold_s=600), now_ns=0)
    asked: list[str] = []

    def fits(each: QueuedRequest) -> bool | None:
        asked.append(each.id)
        return each.id != "r0" or None

    now_ns = 11 * S
    for number in range(1, 3 * OLDEST_EVERY):
        queue.push(held(number, now_ns), now_ns=now_ns)
        found = queue.take("p", fits, now_ns=now_ns)
        assert found is not None
        assert found[0].id == f"r{number}"
    assert 0 < asked.count("r0") <= 3 * OLDEST_EVERY
    queue.push(held(99, now_ns), now_ns=now_ns)
    found = queue.take("p", lambda _: True, now_ns=now_ns)
    assert found is not None
    assert found[0].id == "r0"


def come_back(burst: int, tenants: tuple[str, ...] = ("t",), *, background: float = 0.0) -> Counter[str]:
    """A burst on four places (0.1 s each) and a queue of 50; who is turned away returns when told, thrice."""
    queue = FairQueue(bounds(50), order=FeasibleFirst())
    rng, number, seen = Random(1), 0, Counter[str]()
    events: list[tuple[int, int, str, str, int]] = []

    def later(at_s: float, what: str, tenant: str = "", tries: int = 0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (int(at_s * S), number, what, tenant, tries))

    for each in range(40):
        later(each * 0.02, "comes", tenants[each % len(tenants)])
    for each in range(burst):
        later(3.0, "comes", tenants[each % len(tenants)])
    at_s = 3.0
    while background and at_s < 60.0:
        at_s += rng.expovariate(background)
        later(at_s, "comes", "background")
    free, tried = 4, dict[str, tuple[str, int]]()
    while events:
        now_ns, at, what, tenant, tries = heapq.heappop(events)
        now_s, sheds = now_ns / S, []
        if what == "comes" and free and not len(queue):
            free -= 1
            seen["served on return"] += tries > 0
            later(now_s + rng.expovariate(10.0), "ends")
        elif what == "comes":
            tried[f"r{at}"] = (tenant, tries)
            sheds = queue.push(held(at, now_ns, tenant=tenant, hold_s=5), now_ns=now_ns)
            later(now_s + 5.0, "is shed")
        elif what == "ends":
            free += 1
        for shed in (*sheds, *queue.expire(now_ns=now_ns)):
            tenant, tries = tried[shed.held.id]
            if tenant != "background":
                seen["turned away" if not tries else "in vain"] += 1
                if tries < 3:
                    later(now_s + shed.retry_after_s + rng.random() / 5, "comes", tenant, tries + 1)
        while free and (taken := queue.take("p", lambda _: True, now_ns=now_ns)) is not None:
            free -= 1
            seen["served on return"] += tried[taken[0].id][1] > 0
            later(now_s + rng.expovariate(10.0), "ends")
    return seen


@pytest.mark.parametrize(
    ("burst", "tenants", "background"),
    [(300, ("t",), 0.0), (1_000, ("t",), 0.0), (600, ("a", "b", "c"), 0.0), (600, ("t",), 15.0)],
)
def test_who_comes_back_when_told_finds_room(burst: int, tenants: tuple[str, ...], background: float) -> None:
    """Of a burst, each is told a time of its own: hardly anybody comes in vain, and all are served."""
    seen = come_back(burst, tenants, background=background)
    assert seen["turned away"] > burst / 2
    assert seen["in vain"] <= 0.15 * seen["turned away"], seen
    assert seen["served on return"] == seen["turned away"]


def young(burst: int, *, places: int, mean_s: float, queue_max: int) -> Counter[str]:
    """The same of a service that nobody has waited for yet: a burst is all that it has ever seen."""
    queue = FairQueue(bounds(queue_max), order=FeasibleFirst())
    rng, number, free, seen = Random(1), 0, places, Counter[str]()
    events: list[tuple[int, int, str, int]] = []
    tried: dict[str, int] = {}

    def later(at_s: float, what: str, tries: int = 0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (int(at_s * S), number, what, tries))

    for each in range(burst):
        later(1.0 + each / 1_000, "comes")
    while events:
        now_ns, at, what, tries = heapq.heappop(events)
        now_s, sheds = now_ns / S, []
        free += what == "ends"
        if what == "comes" and free and not len(queue):
            free -= 1
            seen["served"] += 1
            later(now_s + rng.expovariate(1 / mean_s), "ends")
        elif what == "comes":
            tried[f"r{at}"] = tries
            sheds = queue.push(held(at, now_ns, hold_s=5), now_ns=now_ns)
            later(now_s + 5.0, "is shed")
        while free and queue.take("p", lambda _: True, now_ns=now_ns) is not None:
            free -= 1
            seen["served"] += 1
            later(now_s + rng.expovariate(1 / mean_s), "ends")
        for shed in (*sheds, *queue.expire(now_ns=now_ns)):
            before = tried[shed.held.id]
            seen["in vain" if before else "turned away"] += 1
            if before < 3:
                later(now_s + shed.retry_after_s + rng.random() / 5, "comes", before + 1)
    return seen


@pytest.mark.parametrize(
    ("burst", "places", "mean_s", "queue_max"),
    [(12, 1, 2.0, 3), (16, 4, 2.0, 4), (16, 4, 8.0, 4), (100, 4, 0.5, 20), (100, 4, 2.0, 20)],
)
def test_a_young_service_tells_each_a_time_of_its_own(
    burst: int, places: int, mean_s: float, queue_max: int
) -> None:
    """Before it knows how fast its queue drains, too: few come in vain, and all are served."""
    seen = young(burst, places=places, mean_s=mean_s, queue_max=queue_max)
    assert seen["in vain"] <= 0.3 * seen["turned away"], seen
    assert seen["served"] == burst, seen


def test_nobody_is_told_more_than_a_minute_and_the_past_is_no_debt() -> None:
    """However many were told: a bound; and after a pause the next is told of what waits alone."""
    queue = FairQueue(bounds(10), order=FeasibleFirst())
    now_ns, told = 0, []
    for number in range(2_000):
        sheds = queue.push(held(number, now_ns, hold_s=5), now_ns=now_ns)
        told += [each.retry_after_s for each in sheds]
        if number % 100 == 99:
            now_ns += S
            queue.take("p", lambda _: True, now_ns=now_ns)
    assert max(told) == 60
    now_ns += 120 * S
    queue.expire(now_ns=now_ns)
    for number in range(3_000, 3_011):
        sheds = queue.push(held(number, now_ns, hold_s=5), now_ns=now_ns)
    assert [each.retry_after_s for each in sheds] < [20]
