"""Quotas in Redis for tests: services' books, what they decide, and what Redis holds of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator

from extproc.core.quota import Account, Amounts, Ask, Granted, QuotaLimits, Refused, limits
from extproc.state.quota.books import RedisQuota
from tests.state.conftest import RedisServer, until

numbers = itertools.count()
ONE = Amounts(1, 10, 10, 1.0, 0.0)
FAST = limits(requests_per_minute=600_000, concurrent_requests=10_000)
WHO = Account("t", "k", "m", (("tenant", FAST),))
TIGHT = Account("t", "k", "m", (("tenant", limits(requests_per_minute=1_200, burst=0.1)),))
BOOKS = "{steersman:quota:t}"


@contextlib.asynccontextmanager
async def quotas(
    server: RedisServer, count: int, *, ttl_ns: int = 60_000_000_000, prefix: str = "steersman"
) -> AsyncIterator[list[RedisQuota]]:
    """Services that know of each other."""
    books = [
        RedisQuota(
            server.url,
            service_id=f"s{number}",
            prefix=prefix,
            services=count,
            limits=QuotaLimits(reservation_ttl_ns=ttl_ns),
        )
        for number in range(count)
    ]
    for one in books:
        await one.start()
    try:
        await until(lambda: all(one.connected for one in books))
        yield books
    finally:
        await asyncio.gather(*(one.close() for one in books))
        assert not any(one.counts["script_failed"] for one in books)


async def decide(
    books: RedisQuota, who: Account, name: str = "", *, budget_s: float = 0.5, what: Amounts = ONE
) -> Granted | Refused:
    name = name or f"n{next(numbers)}"
    answer = books.reserve(who, name, what, now_ns=time.monotonic_ns())
    if isinstance(answer, Ask):
        answer = await books.ask(who, name, what, budget_s=budget_s)
    return answer


def totals(server: RedisServer) -> dict[str, int]:
    found = server.command("HGETALL", f"{BOOKS}:b").items()
    return {key[2:].decode(): int(value) for key, value in found if key.startswith(b"t:")}


def in_flight(server: RedisServer) -> int:
    return int(server.command("HGET", f"{BOOKS}:b", "c:tenant") or 0)


async def reconciled(server: RedisServer, *books: RedisQuota) -> dict[str, int]:
    """At rest: nothing to tell, nothing in flight, and every reservation has ended."""
    await until(lambda: all(one.reconciled for one in books))
    await until(lambda: in_flight(server) == 0 and server.command("HLEN", f"{BOOKS}:r") == 0)
    found = totals(server)
    ended = found.get("settled", 0) + found.get("expired", 0) + found.get("cancelled", 0)
    assert found.get("reserved", 0) == ended, found
    return found
