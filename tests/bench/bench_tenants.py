"""Tenants through the whole scheduler: admit with few and many of them under quotas, and their memory.

The schedulers take turns in rounds, so that a busy machine slows both; the ratio is of the least of each.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random

from rows import Row

from extproc.core.accounts import Accounts, Price
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import Outcome, Routed
from extproc.core.quota import ExactBooks, limits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Policy, Scheduler, SchedulerLimits
from extproc.core.tenant import Credentials, Directory, Tenant, hash_key

FEW, MANY = 10, 10_000
ENDPOINTS = 10
BATCH, ROUNDS = 5_000, 12
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", prompt_bytes=1_000, max_new_tokens=100)


def _tenants(count: int) -> list[Tenant]:
    tenants = [Tenant(name=f"tenant-{number}") for number in range(count)]
    Random(1).shuffle(tenants)
    return tenants


def _scheduler(tenants: list[Tenant], *, quotas: bool = True) -> Scheduler:
    """Each tenant with a quota object of its own, as a configuration file makes them."""
    policy = Policy(
        accounts=Accounts(
            tenants={
                tenant.name: limits(
                    requests_per_minute=6_000_000,
                    input_tokens_per_minute=10**9,
                    output_tokens_per_minute=10**9,
                    concurrent_requests=100_000,
                    budget_per_day=1e6,
                )
                for tenant in tenants
                if quotas
            }
        ),
        weights={tenant.name: 1.0 + number % 3 for number, tenant in enumerate(tenants)},
        prices={"chat": Price(input_per_million=1.0, output_per_million=2.0)},
    )
    pool = PoolSpec(
        name="chat",
        models=("m",),
        strategy="least_work",
        endpoints=tuple((f"10.0.0.{i + 1}:80", "", 1_000) for i in range(ENDPOINTS)),
    )
    return Scheduler(
        Fleet([pool]),
        instance="bench",
        default_model="m",
        limits=SchedulerLimits(),
        rng=Random(1),
        policy=policy,
        quotas=ExactBooks(),
    )


def _rounds(scheduler: Scheduler, tenants: list[Tenant]) -> Callable[[], tuple[float, float]]:
    """One round: microseconds of an admit, and of a settle, over all tenants in turn."""
    state = {"now": 10**15, "number": 0}

    def once() -> tuple[float, float]:
        admitting = settling = 0.0
        for _ in range(BATCH // 100):
            now_ns, first = state["now"], state["number"]
            begun = time.perf_counter()
            decisions = [
                scheduler.admit(CHAT, tenants[number % len(tenants)], key="k", now_ns=now_ns)
                for number in range(first, first + 100)
            ]
            middle = time.perf_counter()
            outcomes = [
                Outcome(reservation=each.reservation, final=True, status=200, output_tokens=80)
                for each in decisions
                if isinstance(each, Routed)
            ]
            assert len(outcomes) == 100
            resumed = time.perf_counter()
            for outcome in outcomes:
                scheduler.settlement.settle(outcome, now_ns=now_ns)
            settling += time.perf_counter() - resumed
            admitting += middle - begun
            state["now"] += 10_000_000
            state["number"] += 100
        return admitting / BATCH * 1e6, settling / BATCH * 1e6

    return once


def _memory_mib() -> float:
    """Directory, policy and books of MANY tenants, each of which has asked once and has one in flight."""
    gc.collect()
    tracemalloc.start()
    tenants = _tenants(MANY)
    directory = Directory([(each, [hash_key(f"sk-{each.name}")]) for each in tenants], required=True)
    scheduler = _scheduler(tenants)
    for number, tenant in enumerate(tenants):
        decision = scheduler.admit(CHAT, tenant, key="k", now_ns=10**15 + number)
        assert isinstance(decision, Routed)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(directory.tenants) == len(scheduler.ledger) == MANY
    return size / 2**20


def _identify_us(count: int) -> Callable[[], float]:
    tenants = _tenants(count)
    directory = Directory([(each, [hash_key(f"sk-{each.name}")]) for each in tenants], required=True)
    asked = [Credentials(authorization=f"Bearer sk-{each.name}") for each in tenants[:1_000]]
    asked *= BATCH // len(asked)

    def once() -> float:
        begun = time.perf_counter()
        for evidence in asked:
            directory.identify(evidence, now_s=0.0)
        return (time.perf_counter() - begun) / len(asked) * 1e6

    return once


def run() -> Iterator[Row]:
    """Yield microseconds, their ratios, and mebibytes."""
    few, many = _tenants(FEW), _tenants(MANY)
    free, schedulers = _scheduler(few, quotas=False), (_scheduler(few), _scheduler(many))
    takes = [_rounds(free, few), _rounds(schedulers[0], few), _rounds(schedulers[1], many)]
    for take in takes[:2]:
        take()
    # Every one of the many has been seen, as after some minutes of traffic.
    for _ in range(2 * MANY // BATCH):
        takes[2]()
    figures = [[take() for take in takes] for _ in range(ROUNDS)]
    (bare, _), (few_us, few_settle), (many_us, many_settle) = (
        (min(each[i][0] for each in figures), min(each[i][1] for each in figures)) for i in range(3)
    )
    yield Row(f"admit, {FEW} tenants without quotas", bare, "µs")
    yield Row(f"admit, {FEW} tenants, 5 limits each, in memory", few_us, "µs")
    yield Row("of which the quota", few_us - bare, "µs")
    yield Row(f"admit, {MANY:,} tenants, 5 limits each, in memory", many_us, "µs")
    yield Row(f"admit, {MANY:,} tenants over {FEW}", many_us / few_us, "×", 1.2)
    both = (many_us + many_settle) / (few_us + few_settle)
    yield Row(f"admit and settle, {MANY:,} tenants over {FEW}", both, "×", 1.2)
    asks = [_identify_us(FEW), _identify_us(MANY)]
    least = [min(ask() for _ in range(ROUNDS)) for ask in asks]
    yield Row(f"identify by key, {MANY:,} tenants over {FEW}", least[1] / least[0], "×", 1.2)
    yield Row(f"memory of {MANY:,} tenants: keys, quotas, one in flight each", _memory_mib(), "MiB", 100.0)
