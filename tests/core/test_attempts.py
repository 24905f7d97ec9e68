from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.attempts import AttemptLimiter, network_of

S = 1_000_000_000


def limiter(per_minute: int = 60, burst: int = 3, sources_max: int = 4) -> AttemptLimiter:
    return AttemptLimiter(per_minute=per_minute, burst=burst, sources_max=sources_max)


def test_the_burst_then_the_rate() -> None:
    """Three at once, then one a second; the audit comes once for each time."""
    attempts = limiter()
    assert [attempts.failed("a", now_ns=0) for _ in range(4)] == [False, False, True, False]
    # The fourth was counted too: two seconds until one may be tried.
    assert attempts.blocked_s("a", now_ns=0) == 2
    assert attempts.blocked_s("a", now_ns=S + 1) == 1
    assert attempts.blocked_s("a", now_ns=2 * S) == 0
    assert attempts.failed("a", now_ns=2 * S)
    assert attempts.blocked_s("b", now_ns=0) == 0


def test_the_table_is_bounded() -> None:
    """The source that failed longest ago goes first."""
    attempts = limiter(burst=1, sources_max=2)
    for source in ("a", "b", "a", "c"):
        attempts.failed(source, now_ns=0)
    assert len(attempts) == 2
    assert [attempts.blocked_s(source, now_ns=0) > 0 for source in "abc"] == [True, False, True]


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_a_source(source: str, network: str) -> None:
    """A customer's IPv6 addresses are one."""
    assert network_of(source) == network


@given(st.lists(st.integers(0, 10 * S), min_size=1, max_size=60), st.integers(1, 5))
def test_never_more_than_the_burst_and_the_rate(gaps: list[int], burst: int) -> None:
    """Who stops when told to fails at most burst + elapsed × rate times (rate 1/s)."""
    attempts, now_ns, failures = limiter(burst=burst), 0, 0
    for gap in gaps:
        now_ns += gap
        if not attempts.blocked_s("a", now_ns=now_ns):
            attempts.failed("a", now_ns=now_ns)
            failures += 1
        assert failures <= burst + now_ns / S
