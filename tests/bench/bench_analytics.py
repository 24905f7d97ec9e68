"""Analytics: what a request's end costs on its path, what the thread does with it, how long a report takes.

`loop late` is how late a timer of 1 ms was, while the thread folded and wrote, and in the same run without;
all in µs is CPU time.
Before it the heap of the imports is frozen: a full collection of it comes with whoever allocates, and hides
what the thread itself does to the loop.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from msgspec import structs
from rows import Row, percentile, settled

from extproc.config.load import loads
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.series import Sketch
from extproc.core.tenant import Tenant
from extproc.observe.analytics import AnalyticsRow as Figures
from extproc.observe.analytics import OpenSpans
from extproc.observe.analytics.sqlite_store import SqliteStore
from extproc.service.analytics import AnalyticsPart

CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
CONFIG = """
gateway: {{auth: none}}
pools: [{{name: chat, models: [m], endpoints: [{{address: "10.0.0.1:80"}}]}}]
analytics: {{dir: {folder}, flush_s: 1}}
"""
TENANTS = 1_000
#: Ends a second in the run that watches the event loop, and for how long.
RATE_PER_S, RUN_S = 1_000, 10


def run() -> Iterator[Row]:
    """Yield microseconds, milliseconds and bytes."""
    folder = Path(tempfile.mkdtemp(prefix="steersman-bench-"))
    try:
        yield from _run(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path) -> Iterator[Row]:
    pool = PoolSpec(name="chat", models=("m",), strategy="least_work", endpoints=(("10.0.0.1:80", "", 128),))
    scheduler = Scheduler(
        Fleet([pool]), instance="here", default_model="m", limits=SchedulerLimits(), rng=Random(1)
    )
    routed = scheduler.admit(CHAT, Tenant(name="acme"), now_ns=10**15)
    assert isinstance(routed, Routed)
    outcomes = [_outcome(routed, f"t{number}", number) for number in range(TENANTS)]
    part = AnalyticsPart(
        loads(CONFIG.format(folder=folder)), scheduler.fleet, scheduler.peers, clock=time.monotonic_ns
    )
    listener = part.listener
    assert listener is not None
    listener.waiting_max = 10**9
    turn = {"at": 0}

    def end() -> None:
        turn["at"] += 1
        listener.settled(settled(outcomes[turn["at"] % TENANTS]), now_ns=10**15)
        if turn["at"] % 10_000 == 0:
            listener.take()

    yield Row("an end on the request's path, CPU", _cpu_us(end), "µs", 5.0)
    listener.take()
    books = OpenSpans("w")

    for number in range(20_000):
        listener.settled(settled(outcomes[number % TENANTS]), now_ns=10**15)
    events = listener.take()
    began = time.thread_time()
    books.fold(events)
    yield Row("the thread: fold one end", (time.thread_time() - began) / len(events) * 1e6, "µs")
    began = time.thread_time()
    changes = books.changes()
    yield Row(f"the thread: add up {TENANTS} rows, each", (time.thread_time() - began) / TENANTS * 1e6, "µs")
    store = SqliteStore(folder / "alone", bytes_max=1 << 30)
    began = time.thread_time()
    store.write(changes, part._worker.retention)  # type: ignore[union-attr]  # the library is there
    yield Row(f"the thread: write {len(changes)} rows to SQLite", (time.thread_time() - began) * 1e3, "ms")
    store.close()
    yield Row("a row of 20 requests as kept", sum(len(each.data) for each in changes) / len(changes), "B")
    yield from asyncio.run(_live(part, outcomes))
    yield from _merging()


def _cpu_us(call: Callable[[], object], *, calls: int = 20_000, rounds: int = 7) -> float:
    """CPU microseconds of a call: the median of several rounds."""
    figures = []
    for _ in range(rounds):
        began = time.thread_time()
        for _ in range(calls):
            call()
        figures.append((time.thread_time() - began) / calls * 1e6)
    return sorted(figures)[rounds // 2]


async def _live(part: AnalyticsPart, outcomes: list[Outcome]) -> list[Row]:
    """Ends at a steady rate, without the thread and with it, and then a report of them."""
    gc.collect()
    gc.freeze()
    await part.start()
    _, without_ms, without_s = await _ends(part, outcomes, stepping=False)
    assert part.listener is not None
    part.listener.take()
    done, with_ms, with_s = await _ends(part, outcomes, stepping=True)
    began = time.perf_counter()
    answer = await part.report({"by": "tenant"})
    took_ms = (time.perf_counter() - began) * 1e3
    assert answer["total"]["requests"] == done, (answer["total"]["requests"], done)
    await part.stop()
    gc.unfreeze()
    return [
        Row(
            f"loop late at {RATE_PER_S} ends a second without the thread, p99",
            percentile(without_ms, 0.99),
            "ms",
        ),
        Row(f"loop late at {RATE_PER_S} ends a second without the thread, worst", max(without_ms), "ms"),
        Row(f"loop late at {RATE_PER_S} ends a second with the thread, p99", percentile(with_ms, 0.99), "ms"),
        Row(f"loop late at {RATE_PER_S} ends a second with the thread, worst", max(with_ms), "ms", 20.0),
        Row("CPU that the thread's work adds, each end", (with_s - without_s) / done * 1e6, "µs"),
        Row(f"report of {TENANTS} tenants after it", took_ms, "ms"),
    ]


async def _ends(
    part: AnalyticsPart, outcomes: list[Outcome], *, stepping: bool
) -> tuple[int, list[float], float]:
    """How many, how late the loop was each time, and the CPU seconds."""
    assert part.listener is not None
    late_ms: list[float] = []
    cpu_s, began = time.process_time(), time.perf_counter()
    done, stepped = 0, began
    while (now := time.perf_counter()) - began < RUN_S:
        for _ in range(int((now - began) * RATE_PER_S) - done):
            part.listener.settled(settled(outcomes[done % TENANTS]), now_ns=time.monotonic_ns())
            done += 1
        if stepping and now - stepped > 0.25:
            stepped = now
            part.step(now_ns=time.monotonic_ns())
        asleep = time.perf_counter()
        await asyncio.sleep(0.001)
        late_ms.append((time.perf_counter() - asleep) * 1e3 - 1.0)
    return done, late_ms, time.process_time() - cpu_s


def _merging() -> Iterator[Row]:
    rng = Random(1)
    sketch = Sketch()
    for _ in range(10_000):
        sketch.add(rng.lognormvariate(5.0, 1.0))
    whole = Figures()
    part = Figures(ok=1, ttft_ms=sketch, total_ms=sketch)
    yield Row("merge two sketches of 10,000 values", _cpu_us(lambda: whole.merge(part), calls=200), "µs")
    yield Row(
        "four quantiles of a sketch",
        _cpu_us(lambda: sketch.quantiles((0.5, 0.9, 0.95, 0.99)), calls=200),
        "µs",
    )


def _outcome(routed: Routed, tenant: str, number: int) -> Outcome:
    return Outcome(
        reservation=structs.replace(routed.reservation, id=f"here-{number}", tenant=tenant),
        final=True,
        status=200,
        duration_ns=1_100_000_000 + number * 1_000_003,
        ttft_ns=100_000_000 + number * 700_001,
        prompt_tokens=90 + number % 900,
        output_tokens=11 + number % 300,
    )
