from __future__ import annotations

import pytest

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import End, Outcome
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.tenant import Tenant
from extproc.observe import stats as module
from extproc.observe.stats import OTHER, RATE_SECONDS, TTFT_KEPT, Counters, EventRate, Stats, percentile_ms
from tests.stand.schedulers import make_reservation, make_scheduler, make_settled

S = 1_000_000_000
A, B = "10.0.0.1:80", "10.0.0.2:80"


def fleet_of(*addresses: str) -> Fleet:
    endpoints = tuple((address, "z", 8) for address in addresses)
    return Fleet([PoolSpec(name="p", models=("m",), strategy="least_work", endpoints=endpoints)])


def outcome(tenant: str = "t", served_by: str = A, **facts: object) -> Outcome:
    reservation = make_reservation(
        tenant=tenant, address=A, input_tokens=1, output_tokens=1, prompt_bytes=1, stream=True
    )
    return Outcome(reservation=reservation, final=True, served_by=served_by, **facts)  # type: ignore[arg-type]


def test_rate() -> None:
    """The mean over ten one-second buckets; what is older has left it."""
    rate = EventRate()
    for second in range(20):
        rate.add(50, now_ns=second * S)
    assert rate.per_second(now_ns=19 * S) == 50
    assert rate.per_second(now_ns=24 * S) == 25
    assert rate.per_second(now_ns=28 * S + 999_999_999) == 5
    assert rate.per_second(now_ns=29 * S) == 0
    rate.add(10, now_ns=10_000 * S)
    assert rate.per_second(now_ns=10_000 * S) == 10 / RATE_SECONDS


def test_rate_when_time_stands_or_steps_back() -> None:
    """Nothing is lost and nothing breaks."""
    rate = EventRate()
    rate.add(10, now_ns=100 * S)
    rate.add(10, now_ns=97 * S)
    assert rate.per_second(now_ns=99 * S) == 2
    assert rate.per_second(now_ns=110 * S) == 0


@pytest.mark.parametrize(
    ("times_ms", "share", "percentile"),
    [
        ([], 0.5, None),
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        (list(range(1, 101)), 0.5, 50),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 1.0, 100),
    ],
)
def test_percentile(times_ms: list[int], share: float, percentile: float | None) -> None:
    """Nearest rank: the smallest that at least the share does not exceed."""
    assert percentile_ms([ms * 1_000_000 for ms in times_ms], share) == percentile


def test_a_line() -> None:
    """Ends by kind, tokens, times; the times kept are bounded."""
    line = Counters()
    for end in (End.OK, End.OK, End.REFUSED, End.ERROR, End.CLIENT_GONE):
        line.ended(outcome(end=end, prompt_tokens=2, output_tokens=10, ttft_ns=5_000_000), now_ns=0)
    line.ended(outcome(), now_ns=0)
    assert line.figures(now_ns=0) == {
        "decided": 0,
        "ok": 3,
        "refused": 1,
        "failed": 1,
        "client_gone": 1,
        "rejected": 0,
        "expired": 0,
        "prompt_tokens": 10,
        "output_tokens": 50,
        "tokens_per_s": 5.0,
        "ttft_p50_ms": 5.0,
        "ttft_p99_ms": 5.0,
    }
    for _ in range(2 * TTFT_KEPT):
        line.ended(outcome(ttft_ns=1), now_ns=0)
    assert len(line.ttft_ns) == TTFT_KEPT


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants and endpoints beyond the bounds are summed in one line each."""
    monkeypatch.setattr(module, "TENANTS_MAX", 3)
    monkeypatch.setattr(module, "ENDPOINTS_MAX", 3)
    stats = Stats()
    for i in range(10):
        stats.settled(make_settled(outcome(tenant=f"t{i}", served_by=f"10.0.0.{i}:80")), now_ns=0)
    assert list(stats.tenants) == ["t0", "t1", "t2", OTHER]
    assert stats.tenants[OTHER].ok == 7
    assert stats.endpoints[OTHER].ok == 7
    assert len(stats.endpoints) == 4


def test_an_end_counts_where_it_was_served() -> None:
    """At the last attempt's endpoint, at the chosen one when none was reached."""
    stats = Stats()
    stats.settled(make_settled(outcome(served_by=B)), now_ns=0)
    stats.settled(make_settled(outcome(served_by="", end=End.ERROR)), now_ns=0)
    assert (stats.endpoints[B].ok, stats.endpoints[A].failed) == (1, 1)


def test_snapshot() -> None:
    """Tenants, every endpoint of the fleet whether used or not, and the last decisions, newest first."""
    fleet = fleet_of(A, B)
    scheduler, stats = make_scheduler(fleet), Stats()
    scheduler.events.observers = (stats,)
    for _ in range(module.DECISIONS_KEPT + 3):
        request = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=40, max_new_tokens=5)
        scheduler.admit(request, Tenant(name="t"), now_ns=0)
    fleet.endpoints[1].failed(0)
    shown = stats.snapshot(fleet, now_ns=1)
    assert (shown["tenants"]["t"]["decided"], shown["tenants"]["t"]["rejected"]) == (12, 23)
    assert [(e["address"], e["suspect"], e["in_flight"], e["decided"]) for e in shown["endpoints"]] == [
        # Two of each are kept free for the other's retries.
        (A, False, 6, 6),
        (B, True, 6, 6),
    ]
    assert shown["decisions"][0]["id"] == "i-12"
    assert shown["decisions"][0]["reason"].startswith("least_work: ")
    stats.forget_endpoints(fleet_of(B))
    assert list(stats.endpoints) == [B]
