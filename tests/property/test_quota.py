"""Any order of reserve, settle, cancel, renew and expiry keeps the quotas' books."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.core.quota import Account, Amounts, ExactBooks, Granted, QuotaLimits, Refused, limits
from tests.stand.examples import examples

S = 1_000_000_000
NOW = 10**15

quotas = st.builds(
    limits,
    requests_per_minute=st.none() | st.integers(1, 100),
    input_tokens_per_minute=st.none() | st.integers(1, 10**6),
    output_tokens_per_hour=st.none() | st.integers(1, 10**10),
    gpu_seconds_per_hour=st.none() | st.floats(0.001, 1e6),
    concurrent_requests=st.none() | st.integers(1, 5),
    budget_per_month=st.none() | st.floats(0.01, 1e9),
    burst=st.floats(0.01, 10.0),
    borrow=st.floats(1.0, 5.0),
)
amounts = st.builds(
    Amounts,
    requests=st.integers(0, 3),
    input_tokens=st.integers(0, 100_000),
    output_tokens=st.integers(0, 100_000),
    gpu_ms=st.floats(0.0, 1e5),
    cost=st.floats(0.0, 10.0),
)
ids = st.integers(0, 12).map(str)


class QuotaMachine(RuleBasedStateMachine):
    """One set of books, a clock that only goes on, and everybody who may speak to it."""

    @initialize(tenant=quotas, model=quotas)
    def begin(self, tenant, model) -> None:  # type: ignore[no-untyped-def]
        self.now_ns = NOW
        self.books = ExactBooks(QuotaLimits(reservation_ttl_ns=30 * S))
        self.accounts = [
            Account("t", "k", "m", (("tenant", tenant), ("model:m", model))),
            Account("t", "k", "n", (("tenant", tenant),)),
            Account("u", "k", "m", (("tenant", model),)),
        ]
        self.charged: set[str] = set()

    @rule(who=st.integers(0, 2), id=ids, amount=amounts, idle=st.booleans())
    def reserve(self, who: int, id: str, amount: Amounts, idle: bool) -> None:  # noqa: A002
        before = self.books.outstanding_ns()
        answer = self.books.reserve(self.accounts[who], id, amount, now_ns=self.now_ns, idle_capacity=idle)
        if isinstance(answer, Refused):
            assert answer.retry_after_s > 0
            assert self.books.outstanding_ns() == before
        assert answer.figures.remaining_requests >= 0
        assert answer.figures.remaining_tokens >= 0

    @rule(id=ids, amount=amounts, who=st.none() | st.integers(0, 2))
    def settle(self, id: str, amount: Amounts, who: int | None) -> None:  # noqa: A002
        account = None if who is None else self.accounts[who]
        first = self.books.settle(id, amount, now_ns=self.now_ns, account=account)
        assert first == (id not in self.charged)
        self.charged.add(id)
        totals = dict(self.books.totals)
        assert not self.books.settle(id, amount, now_ns=self.now_ns, account=account)
        assert self.books.totals == totals

    @rule(id=ids)
    def cancel(self, id: str) -> None:  # noqa: A002
        self.books.cancel(id, now_ns=self.now_ns)

    @rule(id=ids)
    def renew(self, id: str) -> None:  # noqa: A002
        self.books.renew(id, now_ns=self.now_ns)

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        self.books.expire(now_ns=self.now_ns)

    @invariant()
    def nothing_is_lost(self) -> None:
        totals = self.books.totals
        assert totals["reserved"] + totals["added"] == (
            totals["settled"] + totals["refunded"] + totals["expired"] + self.books.outstanding_ns()
        )
        assert all(value >= 0 for value in totals.values())
        flying = sum(scope.in_flight for scope in self.books._scopes._states.values() if scope is not None)
        assert flying == sum(len(taken.scopes) for taken in self.books._table.entries())
        for account in self.accounts:
            for row in self.books.usage(account, now_ns=self.now_ns):
                assert row.used >= 0


QuotaMachine.TestCase.settings = examples(60, steps=30)
TestQuotaMachine = QuotaMachine.TestCase


@examples(200)
@given(quota=quotas, amount=amounts, idle=st.booleans())
def test_retry_after_is_true(quota, amount: Amounts, idle: bool) -> None:  # type: ignore[no-untyped-def]
    """Who retries exactly then is granted when nobody else came, and a nanosecond earlier is refused."""
    account = Account("t", "", "", (("tenant", quota),))
    books = ExactBooks()
    refused = None
    for number in range(200):
        answer = books.reserve(account, f"a{number}", amount, now_ns=NOW, idle_capacity=idle)
        if isinstance(answer, Refused):
            refused = answer
            break
    assume(refused is not None and refused.limit != "concurrent_requests")
    assert refused is not None
    wait_ns = round(refused.retry_after_s * 1e9)
    assume(wait_ns < 2**52)
    for number in range(200):
        books.settle(f"a{number}", amount, now_ns=NOW)
    early = books.reserve(account, "b", amount, now_ns=NOW + wait_ns - 1, idle_capacity=idle)
    assert isinstance(early, Refused)
    then = books.reserve(account, "b", amount, now_ns=NOW + wait_ns, idle_capacity=idle)
    assert isinstance(then, Granted)


@examples(60)
@given(
    limit=st.integers(1, 600),
    burst=st.floats(0.05, 2.0),
    borrow=st.floats(1.0, 4.0),
    gaps=st.lists(st.tuples(st.integers(0, 3 * S), st.booleans()), min_size=50, max_size=200),
)
def test_no_span_admits_more_than_rate_and_burst(
    limit: int, burst: float, borrow: float, gaps: list[tuple[int, bool]]
) -> None:
    """The own bucket gives rate · t + burst whatever was borrowed; with what is lent, the factor of it."""
    account = Account(
        "t", "", "", (("tenant", limits(requests_per_minute=limit, burst=burst, borrow=borrow)),)
    )
    books, now_ns, own, all_of_it = ExactBooks(), NOW, 0, 0
    for number, (gap_ns, idle) in enumerate(gaps):
        now_ns += gap_ns
        answer = books.reserve(
            account, str(number), Amounts(1, 0, 0, 0.0, 0.0), now_ns=now_ns, idle_capacity=idle
        )
        if isinstance(answer, Granted):
            all_of_it += 1
            own += not answer.borrowed
    span_s = (now_ns - NOW) / 1e9
    most = limit / 60 * span_s + max(limit * burst, 1)
    assert own <= most + 1e-6
    extra = int(limit * (borrow - 1))
    assert all_of_it <= most + extra / 60 * span_s + max(extra * burst, bool(extra)) + 1e-6
