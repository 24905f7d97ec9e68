"""Quotas of one process: units, buckets, borrowing, the life of a reservation, bounds, adjustment."""

from __future__ import annotations

import math

import pytest

from extproc.config.model import Quota
from extproc.core.quota import (
    Account,
    Amounts,
    ExactBooks,
    Granted,
    QuotaLimits,
    Refused,
    ScopeLimits,
    limits,
)
from extproc.core.quota.adjust import AdjustBounds, UsageHistory, adjust, observe

S = 1_000_000_000
NOW = 10**15


def account(tenant: ScopeLimits, *, model: ScopeLimits | None = None, name: str = "t") -> Account:
    scopes = (("tenant", tenant),) if model is None else (("tenant", tenant), ("model:m", model))
    return Account(name, "k", "m", scopes)


def amounts(
    *, requests: int = 1, tokens: int = 0, output: int = 0, gpu_ms: float = 0, cost: float = 0
) -> Amounts:
    return Amounts(requests, tokens, output, gpu_ms, cost)


def used(books: ExactBooks, who: Account, limit: str, *, now_ns: int = NOW, scope: str = "tenant") -> float:
    return next(
        row.used for row in books.usage(who, now_ns=now_ns) if (row.scope, row.limit) == (scope, limit)
    )


def test_every_limit_of_the_file_is_a_limit_here() -> None:
    """A quota section's plain values make limits, name for name."""
    quota = Quota.model_validate(
        dict.fromkeys(
            (name for name in Quota.model_fields if name not in ("burst", "borrow")),
            60,
        )
    )
    made = limits(**quota.model_dump())
    names = {bucket.name for bucket in made.buckets} | {"concurrent_requests"}
    assert names == set(Quota.model_fields) - {"burst", "borrow"}
    assert made.concurrent == 60


def test_amounts_become_whole_units_and_nonsense_becomes_nothing() -> None:
    """GPU time in microseconds and money in billionths, rounded up; NaN, infinity and less than 0 are 0."""
    assert Amounts(1, 2, 3, 1.5, 0.1).units() == (1, 2, 3, 1500, 100_000_000)
    assert Amounts(0, 0, 0, 0.0001, 1e-12).units() == (0, 0, 0, 1, 1)
    assert Amounts(-1, -1, -1, math.nan, -math.inf).units() == (0, 0, 0, 0, 0)


def test_a_bucket_holds_its_burst_and_fills_at_its_rate() -> None:
    """60 a minute with burst 0.5: 30 at once, then one a second, and Retry-After says when."""
    books, who = ExactBooks(), account(limits(requests_per_minute=60, burst=0.5))
    for number in range(30):
        granted = books.reserve(who, f"a{number}", amounts(), now_ns=NOW)
        assert isinstance(granted, Granted)
        assert granted.figures.remaining_requests == 29 - number
    refused = books.reserve(who, "b", amounts(), now_ns=NOW)
    assert isinstance(refused, Refused)
    assert (refused.scope, refused.limit, refused.retry_after_s) == ("tenant", "requests_per_minute", 1.0)
    assert isinstance(books.reserve(who, "b", amounts(), now_ns=NOW + S - 1), Refused)
    assert isinstance(books.reserve(who, "b", amounts(), now_ns=NOW + S), Granted)


def test_all_scopes_are_taken_or_none() -> None:
    """What the model's limit refuses is not charged to the tenant."""
    who = account(limits(requests_per_minute=60), model=limits(output_tokens_per_hour=100))
    books = ExactBooks()
    assert isinstance(books.reserve(who, "a", amounts(output=100), now_ns=NOW), Granted)
    refused = books.reserve(who, "b", amounts(output=1), now_ns=NOW)
    assert isinstance(refused, Refused)
    assert (refused.scope, refused.limit) == ("model:m", "output_tokens_per_hour")
    assert used(books, who, "requests_per_minute") == 1
    assert [row.throttled for row in books.usage(who, now_ns=NOW)] == [0, 1]


def test_a_request_larger_than_the_burst_waits_for_an_empty_bucket() -> None:
    """It is taken then and holds the bucket for what it costs, so that the rate is kept."""
    books, who = ExactBooks(), account(limits(input_tokens_per_minute=60, burst=0.1))
    assert isinstance(books.reserve(who, "a", amounts(tokens=60), now_ns=NOW), Granted)
    refused = books.reserve(who, "b", amounts(tokens=60), now_ns=NOW)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == 60
    assert isinstance(books.reserve(who, "b", amounts(tokens=60), now_ns=NOW + 60 * S), Granted)


@pytest.mark.parametrize(
    ("limit", "actual"),
    [
        ("input_tokens_per_minute", amounts(tokens=40)),
        ("input_tokens_per_minute", amounts(tokens=4000)),
        ("gpu_seconds_per_hour", amounts(gpu_ms=2500.0)),
        ("budget_per_month", amounts(cost=12.5)),
    ],
)
def test_settling_charges_what_it_was(limit: str, actual: Amounts) -> None:
    """More or less than was reserved: afterwards the bucket holds the real count."""
    books, who = ExactBooks(), account(limits(**{limit: 100}))  # type: ignore[arg-type]
    books.reserve(who, "a", amounts(tokens=70, gpu_ms=7000.0, cost=7.0), now_ns=NOW)
    assert books.settle("a", actual, now_ns=NOW)
    assert not books.settle("a", amounts(tokens=9), now_ns=NOW)
    wanted = {"input": actual.input_tokens, "gpu": actual.gpu_ms / 1000, "budget": actual.cost}
    assert used(books, who, limit) == pytest.approx(wanted[limit.partition("_")[0]], rel=1e-9)


def test_a_refund_never_makes_a_bucket_more_than_full() -> None:
    """What had run down already is not given back a second time."""
    books, who = ExactBooks(), account(limits(requests_per_minute=60, input_tokens_per_minute=60))
    books.reserve(who, "a", amounts(tokens=60), now_ns=NOW)
    books.settle("a", amounts(tokens=0), now_ns=NOW + 59 * S)
    later = NOW + 59 * S
    assert isinstance(books.reserve(who, "b", amounts(tokens=60), now_ns=later), Granted)
    assert isinstance(books.reserve(who, "c", amounts(tokens=1), now_ns=later), Refused)


def test_requests_in_flight_are_counted_until_they_end() -> None:
    """Settle, cancel and expiry free a place each, once."""
    books, who = ExactBooks(), account(limits(concurrent_requests=3))
    for name in "abc":
        assert isinstance(books.reserve(who, name, amounts(), now_ns=NOW), Granted)
    refused = books.reserve(who, "d", amounts(), now_ns=NOW)
    assert isinstance(refused, Refused)
    assert (refused.limit, refused.retry_after_s) == ("concurrent_requests", 1.0)
    books.settle("a", amounts(), now_ns=NOW)
    books.settle("a", amounts(), now_ns=NOW)
    books.cancel("b", now_ns=NOW)
    books.cancel("b", now_ns=NOW)
    assert used(books, who, "concurrent_requests") == 1
    assert books.expire(now_ns=NOW + 60 * S) == ["c"]
    assert used(books, who, "concurrent_requests") == 0
    assert books.settle("c", amounts(), now_ns=NOW + 61 * S)
    assert used(books, who, "concurrent_requests") == 0


def test_an_expired_reservation_stays_charged_and_a_late_record_corrects_it_once() -> None:
    """Expiry charges the reserved amounts; the record that still comes charges the difference."""
    books, who = ExactBooks(), account(limits(input_tokens_per_hour=3600))
    books.reserve(who, "a", amounts(tokens=1000), now_ns=NOW)
    later = NOW + 60 * S
    assert books.expire(now_ns=later - 1) == []
    assert books.expire(now_ns=later) == ["a"]
    assert used(books, who, "input_tokens_per_hour", now_ns=later) == 940
    assert books.settle("a", amounts(tokens=400), now_ns=later)
    assert used(books, who, "input_tokens_per_hour", now_ns=later) == 340
    assert not books.settle("a", amounts(tokens=0), now_ns=later)


def test_a_heartbeat_keeps_a_reservation() -> None:
    """A renewed one expires a time to live after the heartbeat."""
    books, who = ExactBooks(), account(limits(concurrent_requests=1))
    books.reserve(who, "a", amounts(), now_ns=NOW)
    assert books.renew("a", now_ns=NOW + 59 * S)
    assert books.expire(now_ns=NOW + 118 * S) == []
    assert books.expire(now_ns=NOW + 119 * S) == ["a"]
    assert not books.renew("a", now_ns=NOW)


def test_a_record_of_another_service_is_charged_once() -> None:
    """Without a reservation here the account in the record pays the real counts."""
    books, who = ExactBooks(), account(limits(input_tokens_per_minute=100))
    assert books.settle("other-1", amounts(tokens=30), now_ns=NOW, account=who)
    assert not books.settle("other-1", amounts(tokens=30), now_ns=NOW, account=who)
    assert used(books, who, "input_tokens_per_minute") == 30
    assert books.settle("other-2", amounts(tokens=30), now_ns=NOW)
    assert books.counts["settled.nobody"] == 1


def test_idle_capacity_is_lent_to_the_factor_and_gone_at_once() -> None:
    """Borrow 3: three times the burst while idle; under contention exactly the own quota again."""
    books, who = ExactBooks(), account(limits(requests_per_minute=60, burst=0.1, borrow=3.0))
    lent = [books.reserve(who, f"a{n}", amounts(), now_ns=NOW, idle_capacity=True) for n in range(18)]
    assert [answer.borrowed for answer in lent if isinstance(answer, Granted)] == [False] * 6 + [True] * 12
    refused = books.reserve(who, "b", amounts(), now_ns=NOW, idle_capacity=True)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == 0.5
    contended = books.reserve(who, "b", amounts(), now_ns=NOW)
    assert isinstance(contended, Refused)
    assert contended.retry_after_s == 1.0
    assert isinstance(books.reserve(who, "b", amounts(), now_ns=NOW + S), Granted)
    assert isinstance(books.reserve(who, "c", amounts(), now_ns=NOW + S), Refused)
    assert books.usage(who, now_ns=NOW)[0].borrowed == 12


def test_money_is_not_lent() -> None:
    """Idle replicas make no budget larger."""
    books, who = ExactBooks(), account(limits(budget_per_day=1.0, borrow=10.0))
    assert isinstance(books.reserve(who, "a", amounts(cost=1.0), now_ns=NOW, idle_capacity=True), Granted)
    assert isinstance(books.reserve(who, "b", amounts(cost=0.1), now_ns=NOW, idle_capacity=True), Refused)
    assert isinstance(books.reserve(who, "c", amounts(), now_ns=NOW), Granted)


def test_places_in_flight_are_lent_too() -> None:
    """While idle up to the factor; those that run are let run."""
    books, who = ExactBooks(), account(limits(concurrent_requests=2, borrow=2.0))
    for name in "abcd":
        assert isinstance(books.reserve(who, name, amounts(), now_ns=NOW, idle_capacity=True), Granted)
    assert isinstance(books.reserve(who, "e", amounts(), now_ns=NOW, idle_capacity=True), Refused)
    books.settle("a", amounts(), now_ns=NOW)
    books.settle("b", amounts(), now_ns=NOW)
    assert isinstance(books.reserve(who, "e", amounts(), now_ns=NOW), Refused)
    books.settle("c", amounts(), now_ns=NOW)
    assert isinstance(books.reserve(who, "e", amounts(), now_ns=NOW), Granted)


def test_figures_name_the_tightest_scope() -> None:
    """Requests and tokens each from the scope with the least left; nothing where there is no limit."""
    who = account(
        limits(requests_per_minute=60, output_tokens_per_minute=10),
        model=limits(requests_per_minute=6, input_tokens_per_hour=1000),
    )
    granted = ExactBooks().reserve(who, "a", amounts(tokens=995, output=1), now_ns=NOW)
    assert dict(granted.figures.headers()) == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10.000s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "5",
        "x-ratelimit-reset-tokens": "3582.000s",
    }
    free = account(ScopeLimits())
    assert ExactBooks().reserve(free, "a", amounts(), now_ns=NOW).figures.headers() == ()


def test_scopes_and_ids_are_bounded() -> None:
    """Idle scopes are forgotten first, then who owes (counted); one with requests in flight stays."""
    books = ExactBooks(QuotaLimits(scopes_max=4, ended_remembered_max=2))
    quota = limits(requests_per_minute=1)
    who = [account(quota, name=f"t{n}") for n in range(8)]
    books.reserve(who[0], "r0", amounts(), now_ns=NOW)
    for number in range(1, 4):
        books.reserve(who[number], f"r{number}", amounts(), now_ns=NOW)
        books.settle(f"r{number}", amounts(), now_ns=NOW)
    books.reserve(who[4], "r4", amounts(), now_ns=NOW + 61 * S)
    assert books.scopes == 4
    assert books.counts["forgotten"] == 0
    for number in range(5, 8):
        books.reserve(who[number], f"r{number}", amounts(), now_ns=NOW + 61 * S)
        books.settle(f"r{number}", amounts(), now_ns=NOW + 61 * S)
    assert books.scopes == 4
    assert used(books, who[0], "requests_per_minute") > 0
    books.settle("r1", amounts(), now_ns=NOW, account=who[1])
    assert books.counts["settled.unknown"] == 1


@pytest.mark.parametrize(("busy_day", "falls"), [(2, False), (None, True)])
def test_one_busy_hour_a_week_keeps_what_was_bought(busy_day: int | None, falls: bool) -> None:
    """Nights, weekends and the six other days are no disuse; weeks without any such hour are."""
    bounds, history = AdjustBounds(least=0.5), UsageHistory()
    for hour in range(24 * 7 * 8):
        day, of_day = divmod(hour, 24)
        used = 0.9 if day % 7 == busy_day and of_day == 10 else 0.01
        history = adjust(
            observe(history, used=used, refused=0.0, elapsed_s=3_600, bounds=bounds), bounds=bounds
        )
        assert falls or history.factor == 1.0
    assert (history.factor < 1.0) == falls


def test_limits_follow_their_history_within_bounds() -> None:
    """Refusals lift it to its most, disuse lowers it to what was bought, quiet weeks to its least."""
    bounds = AdjustBounds(least=0.5, most=2.0, half_life_s=1.0)
    history = UsageHistory()
    for _ in range(50):
        history = observe(history, used=1.0, refused=0.5, elapsed_s=10, bounds=bounds)
        history = adjust(history, bounds=bounds)
    assert history.factor == 2.0
    history = observe(history, used=0.8, refused=0.0, elapsed_s=100, bounds=bounds)
    assert adjust(history, bounds=bounds) == history
    for _ in range(50):
        history = observe(history, used=0.0, refused=math.nan, elapsed_s=10, bounds=bounds)
        history = adjust(history, bounds=bounds)
    assert history.factor == 1.0
    for _ in range(24 * 20):
        history = observe(history, used=0.0, refused=0.0, elapsed_s=3_600, bounds=bounds)
        history = adjust(history, bounds=bounds)
    assert history.factor == 0.5
    assert adjust(UsageHistory(1.0, 1.0), bounds=AdjustBounds()).factor == 1.0
    scaled = limits(requests_per_minute=10, budget_per_day=5.0, concurrent_requests=1).scaled(0.5)
    assert [bucket.limit for bucket in scaled.buckets] == [5, 5_000_000_000]
    assert scaled.concurrent == 1
