"""One contract over both implementations of the quota port: memory, and real Redis."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any, Protocol

import pytest

from extproc.core.quota import (
    Account,
    Amounts,
    Ask,
    ExactBooks,
    Granted,
    QuotaBooks,
    QuotaLimits,
    Refused,
    ScopeLimits,
    limits,
)
from extproc.state.quota.books import RedisQuota
from tests.stand.waits import PATIENCE_S
from tests.state.conftest import RedisServer, until

ONE = Amounts(1, 0, 0, 0.0, 0.0)
#: A loaded machine may take longer than the 5 ms; the budget has its own tests.
BUDGET_S = 0.5
TTL_NS = 1_000_000_000
#: Nothing ends by itself while a test runs, however slow the machine.
LONG_NS = 600 * TTL_NS

Scenario = Callable[[QuotaBooks], Coroutine[Any, Any, None]]


class Run(Protocol):
    """Runs a scenario on fresh books; what waits for the end of a reservation says how soon that is."""

    def __call__(self, scenario: Scenario, *, ttl_ns: int = ...) -> None: ...


@pytest.fixture(params=["memory", "redis"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario on fresh books."""
    on_a_server = request.param == "redis"
    server: RedisServer | None = request.getfixturevalue("redis_server") if on_a_server else None

    async def played(scenario: Scenario, bounds: QuotaLimits) -> None:
        if server is None:
            await scenario(ExactBooks(bounds))
            return
        books = RedisQuota(server.url, service_id="one", limits=bounds)
        await books.start()
        try:
            await until(lambda: books.connected)
            await scenario(books)
            assert books.connected
        finally:
            # What a failed test left open would fail another one.
            await books.close()
        assert books.counts["script_failed"] == 0

    def runs(scenario: Scenario, *, ttl_ns: int = LONG_NS) -> None:
        asyncio.run(played(scenario, QuotaLimits(reservation_ttl_ns=ttl_ns)))

    return runs


def account(tenant: ScopeLimits, *, model: ScopeLimits | None = None, name: str = "t") -> Account:
    scopes = (("tenant", tenant),) if model is None else (("tenant", tenant), ("model:m", model))
    return Account(name, "k", "m", scopes)


async def reserve(
    books: QuotaBooks, who: Account, name: str, what: Amounts = ONE, *, idle: bool = False
) -> Granted | Refused:
    answer = books.reserve(who, name, what, now_ns=time.monotonic_ns(), idle_capacity=idle)
    if isinstance(answer, Ask):
        answer = await books.ask(who, name, what, budget_s=BUDGET_S, idle_capacity=idle)
    return answer


def settle(books: QuotaBooks, name: str, what: Amounts = ONE, **more: Any) -> bool:
    return books.settle(name, what, now_ns=time.monotonic_ns(), **more)


async def heard(books: QuotaBooks) -> None:
    """What was said has reached the shared books."""
    if isinstance(books, RedisQuota):
        await until(lambda: books.reconciled)


async def drain(
    books: QuotaBooks, who: Account, what: Amounts = ONE, *, idle: bool = False
) -> tuple[int, Refused]:
    """Reserve until refused."""
    for number in itertools.count():
        answer = await reserve(books, who, f"d{time.monotonic_ns()}", what, idle=idle)
        if isinstance(answer, Refused):
            return number, answer
    raise AssertionError


def test_burst_then_retry_after(run: Run) -> None:
    """The burst is granted, the next refused, and Retry-After is when it is granted."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(requests_per_minute=120, burst=0.1))
        begun_s = time.monotonic()
        granted, refused = await drain(books, who)
        # Two a second come back meanwhile.
        assert 12 <= granted <= 12 + 2 * (time.monotonic() - begun_s)
        assert (refused.scope, refused.limit) == ("tenant", "requests_per_minute")
        assert 0.0 < refused.retry_after_s <= 0.5
        assert refused.figures.limit_requests == 120
        assert refused.figures.remaining_requests == 0
        refused_s = time.monotonic()
        early = await reserve(books, who, "early")
        assert isinstance(early, Refused) or time.monotonic() - refused_s > refused.retry_after_s
        await asyncio.sleep(refused.retry_after_s + 0.002)
        assert isinstance(await reserve(books, who, "then"), Granted)

    run(scenario)


def test_all_or_none(run: Run) -> None:
    """What one scope refuses is charged in no other."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(budget_per_month=5.0), model=limits(budget_per_day=1.0))
        costs = Amounts(1, 0, 0, 0.0, 1.0)
        assert isinstance(await reserve(books, who, "a", costs), Granted)
        refused = await reserve(books, who, "b", costs)
        assert isinstance(refused, Refused)
        assert (refused.scope, refused.limit) == ("model:m", "budget_per_day")
        await heard(books)
        used = {row.limit: row.used for row in books.usage(who, now_ns=time.monotonic_ns())}
        assert used["budget_per_month"] == pytest.approx(1.0, abs=1e-3)

    run(scenario)


def test_settling_refunds_and_charges_once(run: Run) -> None:
    """The difference goes back or is taken; a second record changes nothing."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(output_tokens_per_hour=1000))
        assert isinstance(await reserve(books, who, "a", Amounts(1, 0, 900, 0.0, 0.0)), Granted)
        assert settle(books, "a", Amounts(1, 0, 100, 0.0, 0.0))
        assert not settle(books, "a", Amounts(1, 0, 0, 0.0, 0.0))
        await heard(books)
        assert isinstance(await reserve(books, who, "b", Amounts(1, 0, 850, 0.0, 0.0)), Granted)
        assert settle(books, "b", Amounts(1, 0, 950, 0.0, 0.0))
        await heard(books)
        refused = await reserve(books, who, "c", Amounts(1, 0, 1, 0.0, 0.0))
        assert isinstance(refused, Refused)
        assert refused.retry_after_s == pytest.approx(51 * 3.6, abs=2)

    run(scenario)


def test_reserving_again_is_free_and_cancelling_gives_back(run: Run) -> None:
    """The id is what counts; a cancelled one may be reserved anew."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(input_tokens_per_hour=100, concurrent_requests=2))
        full = Amounts(1, 100, 0, 0.0, 0.0)
        for _ in range(3):
            assert isinstance(await reserve(books, who, "a", full), Granted)
        assert isinstance(await reserve(books, who, "b", full), Refused)
        for _ in range(2):
            books.cancel("a", now_ns=time.monotonic_ns())
        await heard(books)
        assert isinstance(await reserve(books, who, "a", full), Granted)
        assert settle(books, "a", full)

    run(scenario)


@pytest.mark.parametrize("most", [2, 40])
def test_places_in_flight(run: Run, most: int) -> None:
    """As many as the limit, and one more for each that ends."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(concurrent_requests=most))
        for number in range(most):
            assert isinstance(await reserve(books, who, f"a{number}"), Granted)
        refused = await reserve(books, who, "b")
        assert isinstance(refused, Refused)
        assert refused.limit == "concurrent_requests"
        settle(books, "a0")
        await heard(books)
        assert isinstance(await reserve(books, who, "b"), Granted)
        assert isinstance(await reserve(books, who, "c"), Refused)

    run(scenario)


def test_places_of_those_that_nobody_ended_become_free(run: Run) -> None:
    """Each once, after its time to live."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(concurrent_requests=2))
        for name in ("a", "b"):
            assert isinstance(await reserve(books, who, name), Granted)
        await asyncio.sleep(TTL_NS / 1e9 + 0.05)
        assert books.expire(now_ns=time.monotonic_ns()) == ["a", "b"]
        for name in ("c", "d"):
            assert isinstance(await reserve(books, who, name), Granted)

    run(scenario, ttl_ns=TTL_NS)


def test_a_reload_bounds_what_runs_already(run: Run) -> None:
    """A reservation made under a long time to live lapses by the short one that holds now."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(concurrent_requests=1))
        assert isinstance(await reserve(books, who, "a"), Granted)
        books.bound(QuotaLimits(reservation_ttl_ns=TTL_NS))
        await asyncio.sleep(TTL_NS / 1e9 + 0.05)
        assert books.expire(now_ns=time.monotonic_ns()) == ["a"]

    run(scenario)


def test_renewed_ones_stay(run: Run) -> None:
    """A heartbeat keeps the place in flight past the time to live."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(concurrent_requests=1))
        assert isinstance(await reserve(books, who, "a"), Granted)
        began_ns = time.monotonic_ns()
        while time.monotonic_ns() < began_ns + 4 * TTL_NS:
            await asyncio.sleep(0.1)
            assert books.renew("a", now_ns=time.monotonic_ns())
        await heard(books)
        assert books.expire(now_ns=time.monotonic_ns()) == []
        assert isinstance(await reserve(books, who, "b"), Refused)

    # A slow machine may be late with a heartbeat.
    run(scenario, ttl_ns=3 * TTL_NS)


def tokens(count: int) -> Amounts:
    return Amounts(1, 0, count, 0.0, 0.0)


async def shows(books: QuotaBooks, who: Account, used: float) -> None:
    """A fresh look says that so much of the limit is used; with Redis, what Redis says.

    The shared debt comes with an answer, and a look that a lease covers has none: looked at until it does.
    """
    expected, found = pytest.approx(used, abs=4), inf
    deadline = time.monotonic() + PATIENCE_S
    while found != expected and time.monotonic() < deadline:
        await heard(books)
        await reserve(books, who, f"look{time.monotonic_ns()}", tokens(0))
        await heard(books)
        found = books.usage(who, now_ns=time.monotonic_ns())[0].used
    assert found == expected


def test_what_a_running_request_used_beyond_its_reservation_is_charged(run: Run) -> None:
    """At once and once however often it is said, never less than was reserved; its end has the last word."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(output_tokens_per_hour=1_000))
        assert isinstance(await reserve(books, who, "a", tokens(100)), Granted)
        await heard(books)
        for so_far in (50, 400, 400, 300):
            assert books.renew("a", now_ns=time.monotonic_ns(), so_far=tokens(so_far))
            await heard(books)
        await shows(books, who, 400)
        assert settle(books, "a", tokens(600))
        await shows(books, who, 600)
        assert isinstance(await reserve(books, who, "b", tokens(100)), Granted)
        for _ in range(2):
            assert books.renew("b", now_ns=time.monotonic_ns(), so_far=tokens(300))
            await heard(books)
        await shows(books, who, 900)
        books.cancel("b", now_ns=time.monotonic_ns())
        await shows(books, who, 600)

    run(scenario)


def test_a_credit_gives_back_what_was_used_and_no_more(run: Run) -> None:
    """Once for an id; and then there is room again."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(output_tokens_per_hour=1_000))
        assert isinstance(await reserve(books, who, "a", tokens(900)), Granted)
        assert settle(books, "a", tokens(900))
        await shows(books, who, 900)
        for _ in range(2):
            books.credit(who, tokens(300), credit_id="credit-1", now_ns=time.monotonic_ns())
        await shows(books, who, 600)
        books.credit(who, tokens(10**12), credit_id="credit-2", now_ns=time.monotonic_ns())
        await shows(books, who, 0)
        assert isinstance(await reserve(books, who, "b", tokens(950)), Granted)

    run(scenario)


def test_late_records_correct_an_expiry_once(run: Run) -> None:
    """Expired: charged as reserved; then the record comes, twice."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(input_tokens_per_hour=100))
        await reserve(books, who, "a", Amounts(1, 100, 0, 0.0, 0.0))
        await asyncio.sleep(TTL_NS / 1e9 + 0.05)
        assert books.expire(now_ns=time.monotonic_ns()) == ["a"]
        assert isinstance(await reserve(books, who, "b", Amounts(1, 40, 0, 0.0, 0.0)), Refused)
        assert settle(books, "a", Amounts(1, 50, 0, 0.0, 0.0))
        assert not settle(books, "a", Amounts(1, 0, 0, 0.0, 0.0))
        await heard(books)
        assert isinstance(await reserve(books, who, "b", Amounts(1, 40, 0, 0.0, 0.0)), Granted)
        assert isinstance(await reserve(books, who, "c", Amounts(1, 40, 0, 0.0, 0.0)), Refused)

    run(scenario, ttl_ns=TTL_NS)


def test_unknown_records_are_charged_once(run: Run) -> None:
    """Another service decided, and its reservation is nowhere: the account pays the real counts."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(input_tokens_per_hour=100))
        assert settle(books, "x", Amounts(1, 70, 0, 0.0, 0.0), account=who)
        assert not settle(books, "x", Amounts(1, 70, 0, 0.0, 0.0), account=who)
        await heard(books)
        assert isinstance(await reserve(books, who, "a", Amounts(1, 40, 0, 0.0, 0.0)), Refused)
        assert isinstance(await reserve(books, who, "b", Amounts(1, 25, 0, 0.0, 0.0)), Granted)

    run(scenario)


def test_borrowed_is_gone_at_once(run: Run) -> None:
    """While idle to the factor; then the tenant has its own quota and no debt of what it borrowed."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(limits(requests_per_minute=120, burst=0.1, borrow=3.0))
        begun_s = time.monotonic()
        granted, _ = await drain(books, who, idle=True)
        # Six a second come back meanwhile.
        assert 36 <= granted <= 37 + 6 * (time.monotonic() - begun_s)
        # Its own two a second, not six.
        begun_s = time.monotonic()
        own, refused = await drain(books, who)
        assert own <= 1 + 2 * (time.monotonic() - begun_s)
        assert refused.retry_after_s <= 0.5
        await asyncio.sleep(refused.retry_after_s + 0.002)
        assert isinstance(await reserve(books, who, "c"), Granted)

    run(scenario)


def test_tenants_do_not_share(run: Run) -> None:
    """One tenant's spent quota is not another's, whatever their names look like."""

    async def scenario(books: QuotaBooks) -> None:
        quota = limits(requests_per_minute=1)
        for name in ("a", "b", "a}{b", "ä b"):
            who = account(quota, name=name)
            assert isinstance(await reserve(books, who, f"{name}-1"), Granted)
            assert isinstance(await reserve(books, who, f"{name}-2"), Refused)

    run(scenario)


def test_no_limits_no_questions(run: Run) -> None:
    """A tenant without quotas is granted without a word to anybody."""

    async def scenario(books: QuotaBooks) -> None:
        who = account(ScopeLimits())
        assert isinstance(books.reserve(who, "a", ONE, now_ns=time.monotonic_ns()), Granted)
        assert settle(books, "a")

    run(scenario)
