"""Prometheus' metrics: a scrape's time, what it does to the event loop, and what counting costs a request.

Decisions and settlements come at a steady pace on the same event loop as the scrape (as in the service);
the lag is how late a 1 ms timer is, with scrapes and without, in one run. On a shared machine the lag without
scrapes says how much of it is the machine's; CPU holds.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from random import Random
from typing import Any

from rows import Row, best_us, percentile, settled

from extproc.config import model as config
from extproc.config.model import Config, EndpointConfig, KeyConfig, MetricsConfig, PoolConfig, Quota
from extproc.core.outcome import Outcome, Reject, Reservation, Routed
from extproc.core.reports import GpuReport, ReplicaReport
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.observe.metrics.labels import Tenants
from extproc.service.app import App

TENANTS, NAMED, ENDPOINTS, GPUS = 10_000, 100, 1_000, 8
SCRAPES = 7
#: Decisions a second that go on meanwhile: about a third of a core.
PACE_PER_S = 300
STILL_S = 3.0
CHAT = Request(
    kind=RouteKind.CHAT,
    dialect=Dialect.OPENAI,
    model="m",
    prompt_bytes=1_000,
    max_new_tokens=100,
    stream=True,
)
GIB = 2**30


def run() -> Iterator[Row]:
    """Yield microseconds, milliseconds and counts."""
    yield from _observer()
    yield from asyncio.run(_scrapes())


def _app(*, tenants: int, endpoints: int, gpus: int = 0) -> App:
    quota = Quota(
        requests_per_minute=600_000, output_tokens_per_minute=900_000_000, concurrent_requests=10_000
    )
    app = App(
        Config(
            metrics=MetricsConfig(tenants_max=NAMED),
            pools=[
                PoolConfig(
                    name="chat",
                    models=["m"],
                    strategy="power_of_two",
                    endpoints=[
                        EndpointConfig(address=f"10.{i >> 8}.{i & 255}.1:80") for i in range(endpoints)
                    ],
                )
            ],
            tenants=[
                config.TenantConfig(name=f"t{i}", keys=[KeyConfig(sha256=f"{i:064x}")], quota=quota)
                for i in range(tenants)
            ],
        )
    )
    for endpoint in app.scheduler.fleet.endpoints if gpus else ():
        app.scheduler.fleet.heard(_report(endpoint.address, gpus), now_ns=app.clock())
    return app


def _report(address: str, gpus: int) -> ReplicaReport:
    cards = tuple(
        GpuReport(
            uuid=f"GPU-{address}-{i}",
            utilization_percent=50,
            memory_used_bytes=GIB,
            memory_total_bytes=80 * GIB,
            temperature_c=60,
            power_w=300.0,
        )
        for i in range(gpus)
    )
    return ReplicaReport(
        address=address,
        pool="chat",
        waiting=0,
        running=0,
        kv_used_tokens=9,
        kv_capacity_tokens=90,
        gpus=cards,
    )


def _outcome(reservation: Reservation) -> Outcome:
    return Outcome(
        reservation=reservation,
        final=True,
        status=200,
        served_by=reservation.address,
        attempts=1,
        duration_ns=900_000_000,
        ttft_ns=60_000_000,
        prompt_tokens=250,
        output_tokens=80,
    )


def _one(app: App, tenant: Tenant) -> None:
    """A request's whole way through scheduler and observers."""
    began = app.clock()
    decision = app.scheduler.admit(CHAT, tenant, now_ns=began)
    app.processor.took(began)
    assert isinstance(decision, Routed)
    app.settle(_outcome(decision.reservation))


def _observer() -> Iterator[Row]:
    """The observer alone: all that one request makes it do."""
    app = _app(tenants=2, endpoints=2)
    tenant = app.processor.directory.tenants["t0"]
    counting = app.measuring.counting
    now_ns = app.clock()
    case: Any = app.scheduler.resolve(CHAT, tenant, "bench-1", now_ns=now_ns)
    routed = app.scheduler.admit(CHAT, tenant, now_ns=now_ns)
    assert isinstance(routed, Routed)
    outcome = _outcome(routed.reservation)
    app.settle(outcome)

    def all_of_it() -> None:
        counting.decided(150_000, now_ns=now_ns)
        counting.placed(case, routed, now_ns=now_ns)
        counting.settled(settled(outcome), now_ns=now_ns)

    decision = best_us(
        lambda: (
            counting.decided(150_000, now_ns=now_ns),
            counting.placed(case, routed, now_ns=now_ns),
        )
    )
    yield Row("metrics on the way of a decision", decision, "µs", 5.0)
    yield Row("metrics of a whole request, its end included", best_us(all_of_it), "µs", 10.0)
    reject = Reject(status=429, code="overloaded", message="")
    yield Row(
        "metrics of a refusal", best_us(lambda: counting.refused(case, reject, now_ns=now_ns)), "µs", 5.0
    )
    drop_policy = Tenants(NAMED, expected=TENANTS)
    names, at = [f"t{i}" for i in Random(3).choices(range(TENANTS), k=65_536)], iter(range(10**9))
    label = best_us(lambda: drop_policy.of(names[next(at) & 65_535]))
    yield Row(f"a label of one of {TENANTS:,} tenants, {NAMED} named", label, "µs", 5.0)


async def _scrapes() -> list[Row]:
    """With the usual number of named tenants, then with every tenant named."""
    app = _app(tenants=TENANTS, endpoints=ENDPOINTS, gpus=GPUS)
    everyone = list(app.processor.directory.tenants.values())
    rows: list[Row] = []
    for named, aim_ms in ((NAMED, 1_000.0), (TENANTS, None)):
        app.measuring.apply(app.config.model_copy(update={"metrics": MetricsConfig(tenants_max=named)}))
        for tenant in everyone:
            _one(app, tenant)
        await app.measuring.exposition()  # the client library is loaded
        rows += await _beside_decisions(app, everyone, named, aim_ms)
    return rows


async def _beside_decisions(app: App, everyone: list[Tenant], named: int, aim_ms: float | None) -> list[Row]:
    gc.collect()
    seen: list[tuple[float, float]] = []
    watch = asyncio.create_task(_watch(seen))
    cpu, alone = [], []
    body = b""
    for _ in range(SCRAPES):
        seen.clear()
        began = time.process_time()
        body, _ = await app.measuring.exposition()
        cpu.append((time.process_time() - began) * 1e3)
        alone.append(max(stay for _, stay in seen))
    load = asyncio.create_task(_load(app, everyone))
    await asyncio.sleep(0.5)
    seen.clear()
    await asyncio.sleep(STILL_S)
    still = [lag for lag, _ in seen]
    seen.clear()
    took = []
    for _ in range(SCRAPES):
        began = time.perf_counter()
        await app.measuring.exposition()
        took.append((time.perf_counter() - began) * 1e3)
    lags = [lag for lag, _ in seen]
    load.cancel()
    watch.cancel()
    samples = sum(not line.startswith(b"#") for line in body.splitlines())
    what = f"{TENANTS:,} tenants, {named:,} named"
    return [
        Row(f"a scrape beside decisions, {what}", percentile(took, 0.5), "ms", aim_ms),
        Row("  its CPU, alone", percentile(cpu, 0.5), "ms"),
        Row("  its longest stay on the event loop, CPU, alone", percentile(alone, 0.5), "ms", 20.0),
        Row("  its samples", samples, ""),
        Row("  its bytes", len(body) / 2**20, "MiB"),
        Row("  event-loop lag without scrapes, p99", percentile(still, 0.99), "ms"),
        Row("  event-loop lag without scrapes, worst", max(still), "ms"),
        Row("  event-loop lag beside scrapes, p99", percentile(lags, 0.99), "ms"),
        Row("  event-loop lag beside scrapes, worst", max(lags), "ms", 20.0),
    ]


async def _load(app: App, everyone: list[Tenant]) -> None:
    chance, due = Random(1), time.perf_counter()
    while True:
        due += 1.0 / PACE_PER_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        _one(app, chance.choice(everyone))


async def _watch(seen: list[tuple[float, float]]) -> None:
    """How late a timer is, and what this thread has computed meanwhile, in milliseconds."""
    while True:
        began, computed = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        late = time.perf_counter() - began - 0.001
        seen.append((late * 1e3, (time.thread_time() - computed) * 1e3))
