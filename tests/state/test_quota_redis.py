"""Quotas of several services over a real redis-server, and everything that it does to them."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from extproc.core.quota import Account, Amounts, Granted, Refused, limits
from extproc.state.quota import journal as quota_journal
from extproc.state.quota.books import RedisQuota
from extproc.state.quota.journal import Journal, Op
from extproc.state.quota.lease import LEASE_PART
from tests.stand.examples import examples
from tests.state.conftest import RedisServer, until
from tests.state.redis_books import (
    ONE,
    WHO,
    decide,
    numbers,
    quotas,
    reconciled,
)


def test_the_usual_decision_waits_for_nothing(redis_server: RedisServer) -> None:
    """After the first questions the leases suffice, and are filled up before they are spent."""

    async def scenario() -> None:
        async with quotas(redis_server, 1) as (one,):
            for number in range(600):
                assert isinstance(await decide(one, WHO, f"r{number}"), Granted)
                one.settle(f"r{number}", ONE, now_ns=time.monotonic_ns())
                if number % 2:
                    await asyncio.sleep(0.001)
            assert one.counts["reserved.asked"] <= 30
            found = await reconciled(redis_server, one)
            assert found["reserved"] == 600

    asyncio.run(scenario())


@examples(6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rate=st.sampled_from([600, 3_000, 60_000]),
    burst=st.sampled_from([0.01, 0.05]),
    concurrent=st.sampled_from([None, 3, 60]),
)
def test_three_services_admit_no_more_than_the_bound(
    redis_server: RedisServer, rate: int, burst: float, concurrent: int | None
) -> None:
    """Hammering together: admitted ≤ rate · t + burst + services × lease, and so for those in flight."""

    async def scenario() -> None:
        prefix = f"p{next(numbers)}"
        quota = limits(requests_per_minute=rate, burst=burst, concurrent_requests=concurrent)
        who = Account("t", "k", "m", (("tenant", quota),))
        async with quotas(redis_server, 3, prefix=prefix) as books:
            flying = most = admitted = 0
            begun = time.monotonic()

            async def hammer(one: RedisQuota) -> None:
                nonlocal flying, most, admitted
                while time.monotonic() - begun < 0.6:
                    name = f"n{next(numbers)}"
                    if isinstance(await decide(one, who, name, budget_s=10), Granted):
                        admitted += 1
                        flying += 1
                        most = max(most, flying)
                        await asyncio.sleep(0.002)
                        flying -= 1
                        one.settle(name, ONE, now_ns=time.monotonic_ns())
                    else:
                        await asyncio.sleep(0.001)

            await asyncio.gather(*(hammer(one) for one in books for _ in range(4)))
            took_s = time.monotonic() - begun
            lease = rate * burst / LEASE_PART
            assert not any(one.counts["reserved.alone"] for one in books)
            assert admitted <= rate / 60 * took_s + rate * burst + 3 * lease + 1
            if concurrent is not None:
                assert most <= concurrent + 3 * (concurrent // LEASE_PART)
            elif rate < 60_000:
                # Nor are leases a way to lose much of it.
                assert admitted >= rate * burst - 3 * lease - 1

    asyncio.run(scenario())


@pytest.mark.parametrize("late", [False, True], ids=["in time", "answers late"])
@pytest.mark.parametrize("count", [1, 3])
def test_whoever_asks_above_the_quota_gets_what_is_due(
    redis_server: RedisServer, count: int, late: bool
) -> None:
    """At 97 % of rate · t + burst at least, also where every third answer comes too late; not above it."""

    async def scenario() -> None:
        # Twelve seconds' worth of burst: no stall of the machine makes the bucket run over.
        who = Account("t", "k", "m", (("tenant", limits(requests_per_minute=1_200, burst=0.2)),))
        async with quotas(redis_server, count) as books:
            admitted = 0
            begun = time.monotonic()

            async def ask(one: RedisQuota, budget_s: float) -> bool:
                nonlocal admitted
                granted = isinstance(await decide(one, who, budget_s=budget_s), Granted)
                admitted += granted
                return granted

            for number in itertools.count():
                await ask(books[number % count], 0.0 if late and number % 3 == 0 else 10)
                if time.monotonic() - begun > 5:
                    break
                if number > 240:
                    await asyncio.sleep(0.01)
            # What is left of leases goes back; then all that is due is asked for.
            for one in books:
                await until(
                    lambda one=one: not one._loans.lent and not one._questions.under_way and one.reconciled
                )  # type: ignore[misc]
            while any([await ask(one, 10) for one in books]):
                pass
            due = 240 + 20 * (time.monotonic() - begun)
            assert admitted >= 0.97 * due - 1, (admitted, due)
            if not late:
                assert admitted <= due + 1, (admitted, due)

    asyncio.run(scenario())


def test_what_was_leased_before_an_outage_goes_back_after_it(redis_server: RedisServer) -> None:
    """A service on its own share gives its lease back to Redis: nobody loses what nobody spent."""

    async def scenario() -> None:
        who = Account("t", "k", "m", (("tenant", limits(budget_per_month=100.0, concurrent_requests=20)),))
        one_unit = Amounts(1, 0, 0, 0.0, 1.0)
        async with quotas(redis_server, 2) as (one, two):
            assert isinstance(await decide(one, who, "a", what=one_unit), Granted)
            await until(lambda: one.reconciled)
            assert sum(one._loans.leases.of(who, now_ns=time.monotonic_ns())[0].credit) > 0
            # Its answer comes too late: for a moment the share decides.
            one.session.pause_until_ns = time.monotonic_ns() + 50_000_000
            assert isinstance(await decide(one, who, "b", what=one_unit), Granted)
            for name in "ab":
                one.settle(name, one_unit, now_ns=time.monotonic_ns())
            await until(lambda: one.reconciled and not one._loans.lent)
            assert isinstance(await decide(two, who, "c", what=Amounts(1, 0, 0, 0.0, 97.9)), Granted)

    asyncio.run(scenario())


def test_another_services_record_settles_once(redis_server: RedisServer) -> None:
    """Whoever gets the record, and both at once: the difference is charged once and the place is free."""

    async def scenario() -> None:
        async with quotas(redis_server, 2) as (one, two):
            who = Account(
                "t", "k", "m", (("tenant", limits(input_tokens_per_hour=1_000, concurrent_requests=5)),)
            )
            assert isinstance(await decide(one, who, "a", what=Amounts(1, 900, 0, 0.0, 0.0)), Granted)
            now_ns = time.monotonic_ns()
            small = Amounts(1, 100, 0, 0.0, 0.0)
            assert two.settle("a", small, now_ns=now_ns, account=who)
            assert one.settle("a", small, now_ns=now_ns)
            await reconciled(redis_server, one, two)
            assert isinstance(await decide(one, who, "b", what=Amounts(1, 850, 0, 0.0, 0.0)), Granted)
            assert isinstance(await decide(two, who, "c", what=Amounts(1, 100, 0, 0.0, 0.0)), Refused)

    asyncio.run(scenario())


def test_a_record_that_overtakes_its_reservation_costs_once(redis_server: RedisServer) -> None:
    """Settled elsewhere before a leased reservation was entered: what the lease paid comes back."""

    async def scenario() -> None:
        async with quotas(redis_server, 2) as (one, two):
            day = limits(budget_per_day=1_000.0)
            who = Account("t", "k", "m", (("tenant", day),))
            ten = Amounts(1, 0, 0, 0.0, 10.0)
            await decide(one, who, "first", what=ten)
            held: list[Op] = []
            one.journal.put = held.append  # type: ignore[method-assign]
            assert isinstance(one.reserve(who, "a", ten, now_ns=time.monotonic_ns()), Granted)
            two.settle("a", ten, now_ns=time.monotonic_ns(), account=who)
            await until(lambda: two.reconciled)
            await asyncio.sleep(0.05)
            del one.journal.put
            for _ in range(2):
                one.journal.put(held[0])
                one.session.work.set()
                await until(lambda: one.reconciled)
                await asyncio.sleep(0.03)
            await one._loans.give_back(one.session.asker, all_of_it=True)
            used = one.usage(who, now_ns=time.monotonic_ns())[0].used
            assert used == pytest.approx(20.0, abs=0.1)

    asyncio.run(scenario())


def test_unspent_leases_go_back(redis_server: RedisServer) -> None:
    """Two seconds after the last use the shared bucket is whole again, and the other can have all of it."""

    async def scenario() -> None:
        async with quotas(redis_server, 2) as (one, two):
            who = Account(
                "t", "k", "m", (("tenant", limits(budget_per_month=100.0, concurrent_requests=20)),)
            )
            assert isinstance(await decide(one, who, "a", what=Amounts(1, 0, 0, 0.0, 1.0)), Granted)
            one.settle("a", Amounts(1, 0, 0, 0.0, 0.0), now_ns=time.monotonic_ns())
            assert isinstance(await decide(two, who, "b", what=Amounts(1, 0, 0, 0.0, 99.0)), Refused)
            await asyncio.sleep(2.3)
            assert not one._loans.lent
            assert isinstance(await decide(two, who, "b", what=Amounts(1, 0, 0, 0.0, 99.9)), Granted)

    asyncio.run(scenario())


def test_the_journal_is_bounded_and_says_each_thing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settled before it was entered is one operation; what comes back yields to what came later."""
    monkeypatch.setattr(quota_journal, "JOURNAL_MAX", 3)
    one = RedisQuota("redis://127.0.0.1:1", service_id="x")
    journal = Journal(one.counts)
    for name in "abc":
        one.reserve(WHO, name, ONE, now_ns=1)
        journal.put(Op("enter", name, WHO, one._table._running[name]))
    journal.put(Op("settle", "a", WHO, one._table._running["a"]))
    journal.put(Op("renew", "b", WHO, one._table._running["b"]))
    taken = journal.take(2)
    assert [(op.how, op.id) for op in taken] == [("settle", "a"), ("enter", "b")]
    journal.put(Op("cancel", "b", WHO, one._table._running["b"]))
    journal.put_back(taken)
    assert [(op.how, op.id) for op in journal.take(9)] == [("settle", "a"), ("enter", "c"), ("cancel", "b")]
    for number in range(5):
        journal.put(Op("settle", f"z{number}", WHO, None))
    assert len(journal) == 3
    assert one.counts["journal_dropped"] == 2
