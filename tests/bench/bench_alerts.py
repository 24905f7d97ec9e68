"""What alerts cost: the observer on the request path, and one step of the rules with many tenants.

Steps are in CPU time of the thread: other processes of the machine are not in them.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random

from rows import Row, percentile, settled

from extproc.config.model import Config
from extproc.core.accounts import Accounts
from extproc.core.decide import RoutingRequest
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome, Reason, Reservation, Routed
from extproc.core.policy import Policy
from extproc.core.quota import ExactBooks, limits
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.strategies import Work
from extproc.core.tenant import Tenant
from extproc.service.alerts import AlertsPart

TENANTS, ENDPOINTS, SECONDS = 1_000, 100, 180
S = 1_000_000_000
BEGIN = 10**15


def _part() -> AlertsPart:
    addresses = [f"10.0.{i // 250}.{i % 250 + 1}:80" for i in range(ENDPOINTS)]
    config = Config.model_validate(
        {
            "gateway": {"auth": "none"},
            "pools": [
                {"name": "chat", "models": ["m"], "endpoints": [{"address": each} for each in addresses]}
            ],
        }
    )
    names = [f"tenant-{number}" for number in range(TENANTS)]
    scheduler = Scheduler(
        Fleet([PoolSpec(name="chat", models=("m",), strategy="steer",
                        endpoints=tuple((each, "", 100) for each in addresses))]),
        instance="bench",
        default_model="m",
        limits=SchedulerLimits(),
        rng=Random(1),
        policy=Policy(
            accounts=Accounts(
                tenants={name: limits(requests_per_minute=600, concurrent_requests=50) for name in names}
            )
        ),
        quotas=ExactBooks(),
    )  # fmt: skip
    return AlertsPart(config, scheduler, clock=lambda: BEGIN, wall_ns=lambda: BEGIN)


def _reservation(number: int, tenant: str) -> Reservation:
    return Reservation(
        id=f"i-{number}",
        tenant=tenant,
        model="m",
        pool="chat",
        address="10.0.0.1:80",
        input_tokens=500,
        output_tokens=100,
        permits=1,
        prompt_bytes=2_000,
        stream=True,
    )


def _outcome(number: int, tenant: str, rng: Random) -> Outcome:
    return Outcome(
        reservation=_reservation(number, tenant),
        final=True,
        status=200,
        duration_ns=2 * S,
        ttft_ns=int(rng.lognormvariate(19, 0.5)),
        prompt_tokens=500,
        output_tokens=100,
    )


def _least_us(call: Callable[[], None]) -> float:
    """Microseconds of CPU a call, the least of several rounds."""
    rounds = []
    for _ in range(9):
        begun = time.thread_time()
        for _ in range(2_000):
            call()
        rounds.append((time.thread_time() - begun) / 2_000 * 1e6)
    return min(rounds)


def run() -> Iterator[Row]:
    """Yield microseconds a request, milliseconds a step, and mebibytes."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    part, rng = _part(), Random(2)
    steps: list[float] = []
    number = 0
    for second in range(SECONDS):
        now_ns = BEGIN + second * S
        for i in range(TENANTS // 2):
            tenant = f"tenant-{(second * TENANTS // 2 + i) % TENANTS}"
            number += 1
            part.watch.settled(settled(_outcome(number, tenant, rng)), now_ns=now_ns)
        for quarter in range(4):
            begun = time.thread_time()
            part.step(now_ns=now_ns + quarter * S // 4)
            steps.append((time.thread_time() - begun) * 1e3)
        if second == SECONDS // 2:
            # Memory is traced in the first half, time measured in the second.
            size = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            steps.clear()
    outcome = _outcome(0, "tenant-1", rng)
    state = {"now": BEGIN + SECONDS * S}

    def ended() -> None:
        state["now"] += 1_000_000
        part.watch.settled(settled(outcome), now_ns=state["now"])

    reservation = _reservation(1, "tenant-1")
    routed = Routed(
        cluster="c", addresses=("a",), reservation=reservation, reason=Reason("steer", (), (), (), {})
    )
    routing = RoutingRequest(
        id="i-1",
        tenant=Tenant(name="tenant-1"),
        key="",
        model="m",
        pool="chat",
        work=Work(500, 100),
        permits=1,
        prompt_bytes=2_000,
        stream=True,
        free=False,
    )

    def placed() -> None:
        state["now"] += 1_000_000
        part.watch.placed(routing, routed, now_ns=state["now"])

    yield Row("alerts: a placement, on the request path", _least_us(placed), "µs", 20.0)
    yield Row("alerts: a request's end", _least_us(ended), "µs", 40.0)
    yield Row(
        f"alerts: one step (CPU), {TENANTS:,} tenants, {ENDPOINTS} endpoints, p50",
        percentile(steps, 0.5),
        "ms",
        1.0,
    )
    yield Row(f"alerts: one step (CPU), {TENANTS:,} tenants, p99", percentile(steps, 0.99), "ms")
    yield Row(f"alerts: memory of {TENANTS:,} tenants after {SECONDS // 2} s", size / 2**20, "MiB", 50.0)
