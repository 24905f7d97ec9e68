"""What is added up of requests, and how signals are read from it."""

from __future__ import annotations

import tracemalloc

import pytest
from alert_requests import SPEC, ended, placed, refused, reservation, routing, watch
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.outcome import End, Reject
from extproc.core.series import quantile
from extproc.observe.alerts.watch import FLEET, OPEN_MAX, SECOND

POOL, CLASS, TENANT = ("pool", "chat"), ("class", "standard"), ("tenant", "acme")


@pytest.mark.parametrize("key", [FLEET, POOL, CLASS, TENANT])
def test_every_scope_has_the_rates(key: tuple[str, str]) -> None:
    """Ten ends in ten seconds, two of them errors."""
    heard = watch()
    for i in range(10):
        ended(heard, 100 + i, end=End.ERROR if i < 2 else End.OK)
    assert heard.windowed("error_rate", key, 99, 109) == (0.2, 10)
    assert heard.windowed("requests_per_s", key, 99, 109) == (1.0, 10)
    assert heard.windowed("input_tokens_per_s", key, 99, 109)[0] == 100.0
    assert heard.windowed("output_tokens_per_s", key, 99, 109)[0] == 11.0


def test_a_rate_is_of_the_time_that_was_watched() -> None:
    """An hour's window five seconds after the start is five seconds long."""
    heard = watch()
    for i in range(6):
        ended(heard, 100 + i)
    assert heard.windowed("requests_per_s", FLEET, 105 - 3600, 105) == (1.0, 6)
    assert heard.covered_s(FLEET, 105 - 3600, 105) == 6


@given(
    times=st.lists(st.floats(1.5, 200_000.0), min_size=1, max_size=200),
    share=st.sampled_from([("ttft_p50_ms", 0.5), ("ttft_p90_ms", 0.9), ("ttft_p99_ms", 0.99)]),
)
def test_a_quantile_is_right_within_a_bucket(times: list[float], share: tuple[str, float]) -> None:
    """From 1.5 ms on, at most a tenth from the exact one."""
    heard = watch()
    for each in times:
        ended(heard, 100, ttft_ms=each, duration_ms=each)
    value, count = heard.windowed(share[0], POOL, 99, 100)
    assert value is not None
    assert count == len(times)
    assert value == pytest.approx(quantile(sorted(times), share[1]), rel=0.1)


def test_a_tenants_quantile_is_of_its_last_requests() -> None:
    """Exact, of those in the window."""
    heard = watch()
    for i in range(200):
        ended(heard, 100 + i, ttft_ms=float(i))
    value, count = heard.windowed("ttft_p50_ms", TENANT, 289, 299)
    assert (value, count) == (194.5, 10)
    assert heard.windowed("ttft_p50_ms", TENANT, 0, 299)[1] == 64


def test_a_first_token_is_counted_when_it_comes_and_once() -> None:
    """Its stream may last for minutes; the record at its end adds nothing to it."""
    heard = watch()
    placed(heard, 100)
    heard.first_token("i-1", refused=False, now_ns=102 * SECOND)
    value, count = heard.windowed("ttft_p90_ms", POOL, 99, 110)
    assert value == pytest.approx(2_000, rel=0.2)
    assert count == 1
    ended(heard, 200, ttft_ms=2_000.0, duration_ms=100_000)
    assert heard.windowed("ttft_p90_ms", POOL, 99, 200)[1] == 1


def test_refusals_are_told_apart_by_code_and_by_whose_doing_they_are() -> None:
    """Want of room misses the class's targets, a spent quota does not."""
    heard = watch()
    for i in range(6):
        placed(heard, 100, number=i)
        ended(heard, 100, number=i)
    refused(heard, 100, code="overloaded")
    refused(heard, 100, code="quota_exceeded")
    refused(heard, 100, code="quota_exceeded")
    heard.turned_away("", Reject(status=401, code="invalid_api_key", message=""), now_ns=100 * SECOND)
    assert heard.windowed("refusal_rate", POOL, 99, 100) == (3 / 9, 9)
    assert heard.windowed("refusal_rate", POOL, 99, 100, code="quota_exceeded") == (2 / 9, 9)
    assert heard.windowed("refusal_rate", FLEET, 99, 100, code="other") == (0.1, 10)
    assert heard.windowed("slo_attainment", CLASS, 99, 100) == (6 / 7, 7)


def test_attainment_is_by_the_classs_targets_and_burn_by_its_budget() -> None:
    """Late first tokens, errors and clients that gave up on one miss; clients' mistakes are neither."""
    heard = watch()
    heard.budgets = {"standard": 0.05}
    ended(heard, 100)
    ended(heard, 100, ttft_ms=SPEC.ttft_ns / 1e6 + 1, duration_ms=600)
    ended(heard, 100, end=End.ERROR)
    ended(heard, 100, end=End.REFUSED)
    ended(heard, 100, end=End.CLIENT_GONE, ttft_ms=None)
    assert heard.windowed("slo_attainment", CLASS, 99, 100) == (1 / 3, 3)
    value, _ = heard.windowed("slo_burn", CLASS, 99, 100)
    assert value == pytest.approx((2 / 3) / 0.05)
    ended(heard, 100, end=End.CLIENT_GONE, ttft_ms=None, duration_ms=600)
    for gave_up in (False, True):
        heard.left("i-1", routing(), gave_up=gave_up, now_ns=100 * SECOND)
    assert heard.windowed("slo_attainment", CLASS, 99, 100) == (1 / 5, 5)


def test_held_times_are_of_all_that_were_placed() -> None:
    """Those that did not wait count as none."""
    heard = watch()
    for i in range(10):
        placed(heard, 100, number=i, held_ms=1_000.0 if i == 9 else 0.0)
    assert heard.windowed("hold_p50_ms", FLEET, 99, 100)[0] == pytest.approx(0.0, abs=1.2)
    assert heard.windowed("hold_p99_ms", FLEET, 99, 100)[0] == pytest.approx(1_000.0, rel=0.2)


def test_nothing_is_said_where_nothing_was_seen() -> None:
    """Unknown is None, not zero."""
    heard = watch()
    assert heard.windowed("error_rate", POOL, 0, 100) == (None, 0)
    assert heard.windowed("ttft_p90_ms", POOL, 0, 100) == (None, 0)
    assert heard.windowed("error_rate", ("tenant", "nobody"), 0, 100) == (None, 0)
    assert heard.covered_s(("tenant", "nobody"), 0, 100) == 0


def test_a_tenant_too_many_waits_until_another_is_idle() -> None:
    """The bound holds; the fleet's figures count everybody."""
    heard = watch(tenants_max=2)
    for tenant in ("a", "b", "c"):
        ended(heard, 100, tenant=tenant)
    assert {key[1] for key in heard.scopes("tenant")} == {"a", "b"}
    assert heard.tenants_left_out == 1
    ended(heard, 150, tenant="b")
    ended(heard, 170, tenant="c")
    assert {key[1] for key in heard.scopes("tenant")} == {"b", "c"}
    assert heard.windowed("requests_per_s", FLEET, 99, 170)[1] == 5


def test_what_left_or_expired_is_forgotten() -> None:
    """No request in flight is remembered for ever, and there is a bound on them."""
    heard = watch()
    placed(heard, 100, number=1)
    placed(heard, 100, number=2)
    heard.left("i-1", None, gave_up=False, now_ns=101 * SECOND)
    heard.expired(reservation(2), now_ns=101 * SECOND)
    assert heard._open == {}
    assert 0 < OPEN_MAX <= 100_000


def test_a_new_configuration_keeps_what_stays() -> None:
    """A pool that goes takes its figures along."""
    heard = watch()
    ended(heard, 100)
    heard.apply([SPEC], pools=["code"])
    assert heard.windowed("error_rate", POOL, 99, 100) == (None, 0)
    assert heard.windowed("error_rate", CLASS, 99, 100) == (0.0, 1)


def test_memory_of_a_busy_tenant() -> None:
    """Hours of traffic take no more than config/alerts.py says of tenants_max (30 kB)."""
    heard = watch()
    ended(heard, 0)
    tracemalloc.start()
    for second in range(1, 20_000, 4):
        ended(heard, second, tenant="other")
    own = heard.figures.pop(("tenant", "other"))
    with_it = tracemalloc.get_traced_memory()[0]
    del own
    without = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 5_000 < with_it - without < 30_000
