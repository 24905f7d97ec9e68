from __future__ import annotations

from typing import Any

from extproc.core.accounts import Accounts, Price
from extproc.core.decide import RoutingRequest
from extproc.core.outcome import QUOTA_EXCEEDED, End, Outcome, Reason, Reject, Reservation, Routed
from extproc.core.quota import ScopeLimits, limits
from extproc.core.strategies import Work
from extproc.core.tenant import Tenant
from extproc.observe import what_if as module
from extproc.observe.what_if import RECENT_NS_MAX, RECENT_PER_TENANT_MAX, Recent, ReplayTerms, WhatIf, replay
from tests.stand.schedulers import make_reservation, make_settled

S = 1_000_000_000
NOW = 10_000 * S
WORLD = ReplayTerms(gpu_ms=lambda _, i, o: float(i + o), price=lambda _: Price(), running=lambda _: False)


def reservation(number: int, tenant: str = "acme", key: str = "") -> Reservation:
    return make_reservation(id=f"i-{number}", tenant=tenant, output_tokens=50, stream=True, key=key)


def end(number: int, **facts: int) -> Outcome:
    return Outcome(reservation=reservation(number), final=True, status=200, end=End.OK, **facts)


def routing(**facts: Any) -> RoutingRequest:
    usual = {"id": "i-0", "tenant": Tenant(name="acme"), "key": "", "model": "m", "pool": "p"}
    costs = {"work": Work(100, 5), "permits": 1, "prompt_bytes": 400, "stream": True, "free": False}
    return RoutingRequest(**{**usual, **costs, **facts})


def let_in(recent: Recent, reserved: Reservation, *, now_ns: int) -> None:
    reason = Reason("steer", (), (), (), {})
    recent.placed(
        routing(), Routed(cluster="c", addresses=(), reservation=reserved, reason=reason), now_ns=now_ns
    )


def verdict(recent: Recent, own: ScopeLimits, *, world: ReplayTerms = WORLD, idle: bool = False) -> WhatIf:
    found = WhatIf()
    for _ in replay(
        list(recent.of("acme", since_ns=0)), "acme", Accounts(tenants={"acme": own}), world, found, idle=idle
    ):
        pass
    return found


def test_a_rate_is_replayed() -> None:
    """Ten in a second of four a minute: six too many, as the books themselves would count them."""
    recent = Recent()
    for i in range(10):
        let_in(recent, reservation(i), now_ns=NOW + i)
    found = verdict(recent, limits(requests_per_minute=4))
    assert found.plain() == {"refused": 6, "by_limit": {"requests_per_minute (tenant)": 6}}
    assert verdict(recent, limits(requests_per_minute=10)).refused == 0
    assert verdict(recent, limits(requests_per_minute=4, borrow=2.0), idle=True).refused == 2


def test_real_counts_settle() -> None:
    """A request that used less than predicted gives back in the replay too."""
    recent = Recent()
    let_in(recent, reservation(1), now_ns=NOW)
    recent.settled(make_settled(end(1, prompt_tokens=100, output_tokens=1)), now_ns=NOW + S)
    let_in(recent, reservation(2), now_ns=NOW + 2 * S)
    assert verdict(recent, limits(output_tokens_per_minute=60)).refused == 0
    recent = Recent()
    let_in(recent, reservation(1), now_ns=NOW)
    let_in(recent, reservation(2), now_ns=NOW + 2 * S)
    assert verdict(recent, limits(output_tokens_per_minute=60)).refused == 1


def test_who_runs_holds_a_place() -> None:
    """In flight as long as it was; what was cancelled never was."""
    recent = Recent()
    let_in(recent, reservation(1), now_ns=NOW)
    let_in(recent, reservation(2), now_ns=NOW + S)
    one = limits(concurrent_requests=1)
    still = ReplayTerms(gpu_ms=WORLD.gpu_ms, price=WORLD.price, running=lambda _: True)
    assert verdict(recent, one, world=still).by_limit == {"concurrent_requests (tenant)": 1}
    recent.settled(make_settled(end(1)), now_ns=NOW + S // 2)
    assert verdict(recent, one, world=still).refused == 0
    recent.left("i-2", None, now_ns=NOW + S)
    let_in(recent, reservation(3), now_ns=NOW + 2 * S)
    assert verdict(recent, one, world=still).refused == 0


def test_refused_requests_are_known_too() -> None:
    """A larger quota shows whom it would have let in; what found no room was no quota's doing."""
    recent = Recent()
    spent = Reject(status=429, code=QUOTA_EXCEEDED, message="spent")
    for _ in range(3):
        recent.refused(routing(), spent, now_ns=NOW)
    recent.refused(routing(), Reject(status=429, code="overloaded", message="full"), now_ns=NOW)
    seen = recent.of("acme", since_ns=NOW)
    assert [(each.refused, each.input, each.output) for each in seen] == [(True, 100, 5)] * 3
    assert verdict(recent, limits(requests_per_minute=2)).refused == 1
    assert verdict(recent, limits(requests_per_minute=3)).refused == 0


def test_the_memory_is_bounded() -> None:
    """Of a tenant, of all, of tenants, and in time; what is forgotten is forgotten whole."""
    recent = Recent()
    for i in range(RECENT_PER_TENANT_MAX + 10):
        let_in(recent, reservation(i), now_ns=NOW + i)
    assert len(recent) == len(recent._ends) == RECENT_PER_TENANT_MAX
    assert next(recent.of("acme", since_ns=0)).id == "i-10"
    let_in(recent, reservation(-1), now_ns=NOW + RECENT_NS_MAX + 100)
    assert next(recent.of("acme", since_ns=0)).id != "i-10"
    recent.settled(make_settled(end(0)), now_ns=NOW)  # forgotten: nothing happens


def test_a_loud_tenant_pays_for_the_common_bound() -> None:
    """The largest memory is cut, the others' stay."""
    recent = Recent()
    for i in range(5):
        let_in(recent, reservation(i, "quiet"), now_ns=NOW)
    for t in range(module.RECENT_MAX // RECENT_PER_TENANT_MAX + 1):
        for i in range(RECENT_PER_TENANT_MAX):
            let_in(recent, reservation(i, f"loud-{t}"), now_ns=NOW)
    assert len(recent) <= module.RECENT_MAX
    assert len(list(recent.of("quiet", since_ns=0))) == 5


def test_quiet_tenants_are_forgotten_first() -> None:
    """At most so many have a memory."""
    recent = Recent()
    for i in range(module.TENANTS_MAX + 3):
        let_in(recent, reservation(i, f"t-{i}"), now_ns=NOW)
        let_in(recent, reservation(-i - 1, "t-0"), now_ns=NOW)
    assert list(recent.of("t-1", since_ns=0)) == []
    assert list(recent.of("t-0", since_ns=0))
    assert len(recent._tenants) == module.TENANTS_MAX
