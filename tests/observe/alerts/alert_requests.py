"""Requests as the watch hears of them, for tests."""

from __future__ import annotations

from extproc.core.decide import RoutingRequest
from extproc.core.outcome import End, Outcome, Reason, Reject, Reservation, Routed
from extproc.core.slo import ClassSpec
from extproc.core.strategies import Work
from extproc.core.tenant import Tenant
from extproc.observe.alerts.watch import SECOND, AlertWatch
from tests.stand.schedulers import make_reservation, make_settled

SPEC = ClassSpec(name="standard", ttft_ns=500_000_000, tpot_ns=50_000_000)


def watch(*, tenants_max: int = 100) -> AlertWatch:
    """One class `standard`, one pool `chat`."""
    found = AlertWatch([SPEC], tenants_max=tenants_max)
    found.apply([SPEC], pools=["chat"])
    return found


def reservation(number: int = 1, *, tenant: str = "acme", held_ms: float = 0.0) -> Reservation:
    """One request's."""
    return make_reservation(id=f"i-{number}", tenant=tenant, pool="chat", stream=True, held_ms=held_ms)


def routing(number: int = 1, *, tenant: str = "acme", arrived_ns: int = 0) -> RoutingRequest:
    """The same, before it was placed."""
    return RoutingRequest(
        id=f"i-{number}",
        tenant=Tenant(name=tenant),
        key="",
        model="m",
        pool="chat",
        work=Work(100, 10),
        permits=1,
        prompt_bytes=400,
        stream=True,
        free=False,
        arrived_ns=arrived_ns,
    )


def ended(
    heard: AlertWatch,
    at_s: float,
    *,
    number: int = 1,
    tenant: str = "acme",
    end: End = End.OK,
    ttft_ms: float | None = 100.0,
    duration_ms: float = 300.0,
    tokens: int = 11,
    prompt: int = 100,
) -> None:
    """A request's record comes."""
    outcome = Outcome(
        reservation=reservation(number, tenant=tenant),
        final=True,
        status=200,
        end=end,
        duration_ns=int(duration_ms * 1e6),
        ttft_ns=None if ttft_ms is None else int(ttft_ms * 1e6),
        prompt_tokens=prompt,
        output_tokens=tokens,
    )
    heard.settled(make_settled(outcome, spec=SPEC), now_ns=int(at_s * SECOND))


def placed(
    heard: AlertWatch, at_s: float, *, number: int = 1, tenant: str = "acme", held_ms: float = 0.0
) -> None:
    """A request is sent to its endpoint."""
    routed = Routed(
        cluster="c",
        addresses=("10.0.0.1:80",),
        reservation=reservation(number, tenant=tenant, held_ms=held_ms),
        reason=Reason("steer", (), (), (), {}),
    )
    now_ns = int(at_s * SECOND)
    heard.placed(routing(number, tenant=tenant, arrived_ns=now_ns), routed, now_ns=now_ns)


def refused(heard: AlertWatch, at_s: float, *, code: str = "overloaded", tenant: str = "acme") -> None:
    """The gateway refuses one."""
    heard.refused(
        routing(tenant=tenant), Reject(status=429, code=code, message=""), now_ns=int(at_s * SECOND)
    )
