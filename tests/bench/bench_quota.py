"""Quotas: reserve and settle in memory with few and many tenants, memory, and the way through Redis."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import statistics
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random

from rows import Row, percentile

from extproc.core.quota import Account, Amounts, Ask, ExactBooks, Granted, limits

TENANTS = (10, 10_000)
TENANT = limits(
    requests_per_minute=6_000_000,
    input_tokens_per_minute=10**9,
    output_tokens_per_minute=10**9,
    concurrent_requests=100_000,
    budget_per_day=1e6,
)
MODEL = limits(requests_per_minute=6_000_000)
RESERVED, ACTUAL = Amounts(1, 100, 100, 5.0, 0.001), Amounts(1, 100, 80, 5.0, 0.0008)


def _account(number: int) -> Account:
    return Account(f"tenant-{number}", "k", "m", (("tenant", TENANT), ("model:m", MODEL)))


def run() -> Iterator[Row]:
    """Yield microseconds, their ratio, and mebibytes."""
    takes = {count: _memory_us(count) for count in TENANTS}
    few, many = (min(decide for decide, _ in _rounds(takes[count])) for count in TENANTS)
    for count in TENANTS:
        decide = min(one for one, _ in _rounds(takes[count]))
        both = min(one + two for one, two in _rounds(takes[count]))
        yield Row(f"reserve in memory, {count} tenants, 6 limits in 2 scopes", decide, "µs")
        yield Row(f"reserve and settle in memory, {count} tenants", both, "µs")
    yield Row("reserve, 10,000 tenants over 10", many / few, "×", 1.2)
    yield Row("memory of 10,000 tenants' quotas, all used", _memory_mib(), "MiB", 100.0)
    if shutil.which("redis-server"):
        yield from asyncio.run(_redis())


def _rounds(one: Callable[[], tuple[float, float]]) -> list[tuple[float, float]]:
    return [one() for _ in range(5)]


def _memory_us(tenants: int) -> Callable[[], tuple[float, float]]:
    books = ExactBooks()
    accounts = [_account(number) for number in range(tenants)]
    Random(1).shuffle(accounts)
    state = {"now": 10**15, "number": 0}

    def once(count: int = 20_000, batch: int = 100) -> tuple[float, float]:
        reserving = settling = 0.0
        for _ in range(count // batch):
            begun = time.perf_counter()
            first = state["number"]
            for number in range(first, first + batch):
                state["now"] += 100_000
                answer = books.reserve(
                    accounts[number % tenants], f"i-{number}", RESERVED, now_ns=state["now"]
                )
                assert answer.__class__ is Granted
            middle = time.perf_counter()
            for number in range(first, first + batch):
                books.settle(f"i-{number}", ACTUAL, now_ns=state["now"])
            settling += time.perf_counter() - middle
            reserving += middle - begun
            state["number"] += batch
        return reserving / count * 1e6, settling / count * 1e6

    return once


def _memory_mib() -> float:
    accounts = [_account(number) for number in range(10_000)]
    gc.collect()
    tracemalloc.start()
    books = ExactBooks()
    for number, account in enumerate(accounts):
        books.reserve(account, f"i-{number}", RESERVED, now_ns=10**15 + number)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / 2**20


async def _redis() -> list[Row]:
    from extproc.state.quota.books import RedisQuota

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
        stdout=subprocess.DEVNULL,
    )
    books = RedisQuota(f"redis://127.0.0.1:{port}", service_id="bench")
    await books.start()
    while not books.connected:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.01)
    leased, asked = [], []
    account = _account(0)
    small = Account("small", "k", "m", (("tenant", limits(requests_per_minute=1000, concurrent_requests=5)),))
    for number in range(4_000):
        now_ns = time.monotonic_ns()
        begun = time.perf_counter()
        answer = books.reserve(account, f"a{number}", RESERVED, now_ns=now_ns)
        leased.append(time.perf_counter() - begun)
        if isinstance(answer, Ask):
            leased.pop()
            await books.ask(account, f"a{number}", RESERVED)
        books.settle(f"a{number}", ACTUAL, now_ns=now_ns)
        if number % 8 == 0:
            await asyncio.sleep(0.001)
    for number in range(500):
        begun = time.perf_counter()
        answer = books.reserve(small, f"b{number}", RESERVED, now_ns=time.monotonic_ns())
        if isinstance(answer, Ask):
            await books.ask(small, f"b{number}", RESERVED)
            asked.append(time.perf_counter() - begun)
        books.cancel(f"b{number}", now_ns=time.monotonic_ns())
        await asyncio.sleep(0.002)
    questions = 4_000 - len(leased)
    await books.close()
    server.kill()
    await server.wait()
    return [
        Row("reserve from a lease of Redis, median", statistics.median(leased) * 1e6, "µs"),
        Row("reserve by asking Redis, median", statistics.median(asked) * 1e6, "µs"),
        Row("reserve by asking Redis, 99th percentile", percentile(asked, 0.99) * 1e6, "µs", 5_000.0),
        Row("decisions of 4,000 that had to ask", float(questions), ""),
    ]
