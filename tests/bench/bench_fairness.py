"""The fair queue alone: a request in and out again, with 10,000 held of 1,000 tenants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from rows import Row

from extproc.core.fairqueue import FairQueue, QueueBounds, QueuedRequest
from extproc.core.strategies import Work

HELD, TENANTS, CLASSES, KIN = 10_000, 1_000, 3, 500
S = 1_000_000_000
AIM_US = 20.0
BOUNDS = QueueBounds(
    held_max=2 * HELD, class_held_max=(HELD,) * CLASSES, tenant_held_max=200, ageing_ns=3_600 * S
)


def _held(number: int, rng: Random) -> QueuedRequest:
    tenant = rng.randrange(TENANTS)
    arrived = number * 1_000
    return QueuedRequest(
        id=f"i-{number}",
        tenant=f"t{tenant}",
        weight=1.0 + tenant % 3,
        klass=tenant % CLASSES,
        pool="chat",
        work=Work(rng.randrange(1, 4_000), rng.randrange(1, 800)),
        arrived_ns=arrived,
        shed_at_ns=arrived + rng.randrange(5, 60) * S,
        ttft_deadline_ns=arrived + rng.randrange(1, 5) * S,
        prefill_ns=rng.randrange(10, 400) * 1_000_000,
        affinity_group=rng.randrange(KIN),
    )


def _filled(bounds: QueueBounds = BOUNDS, held: int = HELD) -> tuple[FairQueue, Iterator[QueuedRequest]]:
    rng = Random(1)
    queue = FairQueue(bounds)
    requests = (_held(number, rng) for number in range(100 * HELD))
    for _ in range(held):
        queue.push(next(requests), now_ns=0)
    return queue, requests


def _each_us(calls: list[Callable[[], object]]) -> float:
    """Microseconds per call over calls that each happen once."""
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls) * 1e6


def run() -> Iterator[Row]:
    """Yield microseconds per call; the median of five queues."""
    rows: dict[str, list[float]] = {}
    for _ in range(5):
        for name, value in _once():
            rows.setdefault(name, []).append(value)
    where = f"{HELD:,} held, {TENANTS:,} tenants"
    for name, values in rows.items():
        aim = None if "1000" in name else AIM_US
        yield Row(f"fair queue, {name}; {where}", sorted(values)[len(values) // 2], "µs", aim)


def _once() -> Iterator[tuple[str, float]]:
    batch = 2_000
    queue, requests = _filled()
    fresh = [next(requests) for _ in range(batch)]
    yield "push", _each_us([lambda held=held: queue.push(held, now_ns=0) for held in fresh])
    ids = Random(2).sample(sorted(queue._entries), batch)
    yield "remove", _each_us([lambda each=each: queue.remove(each) for each in ids])
    first = [lambda: queue.take("chat", lambda _: 1, now_ns=S)] * batch
    yield "take, the first fits", _each_us(first)

    queue, requests = _filled()
    never = [lambda: queue.take("chat", lambda _: None, now_ns=S)] * batch
    yield "take, 7 offered and none fits", _each_us(never)

    def release() -> None:
        taken = queue.take("chat", lambda _: 1, now_ns=S)
        assert taken is not None
        queue.take_affinity_group(taken[0], lambda _: 1, now_ns=S)

    yield "take, and one more of its affinity_group", _each_us([release] * batch)

    one = Work(1_000, 250)
    other = Work(1_000, 400)
    yield (
        "settled",
        _each_us(
            [
                lambda i=i: queue.settled(
                    f"t{i % TENANTS}", pool="chat", klass=i % CLASSES, weight=1.0, predicted=one, actual=other
                )
                for i in range(batch)
            ]
        ),
    )

    queue, requests = _filled(replace(BOUNDS, held_max=HELD))
    fresh = [next(requests) for _ in range(batch)]
    yield (
        "push over the bound, one shed",
        _each_us([lambda held=held: queue.push(held, now_ns=0) for held in fresh]),
    )
    queue, requests = _filled(replace(BOUNDS, ageing_ns=S))
    yield (
        "take that ages 6,667 requests, over 1000",
        _each_us([lambda: queue.take("chat", lambda _: 1, now_ns=2 * S)]) / 1000,
    )
    queue, requests = _filled()
    yield "expire, each shed", _each_us([lambda: queue.expire(now_ns=100 * S)]) / HELD
