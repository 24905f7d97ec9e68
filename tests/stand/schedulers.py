"""Schedulers of one pool, as most tests want them; what a test is about, it says itself."""

from __future__ import annotations

from random import Random
from typing import Any

from extproc.core.decide import resolve
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Fleet, Member, PoolSpec
from extproc.core.ledger import Ledger
from extproc.core.outcome import Outcome, Reject, Reservation, Routed
from extproc.core.placement import Full, full, place
from extproc.core.policy import ClassSpec
from extproc.core.quota import NOTHING, Amounts
from extproc.core.request import Request
from extproc.core.scheduler import Scheduler, SchedulerLimits
from extproc.core.slo import sample_of
from extproc.core.tenant import Directory, Tenant
from extproc.wire.processor import Processor
from tests.stand.seals import SEAL


def make_pool(*addresses: str, permits: int = 4, **facts: Any) -> PoolSpec:
    """The pool `p` of the model `m`: addresses with so many permits each, placed by least work."""
    members = tuple(Member(address, max_concurrent=permits) for address in addresses)
    return PoolSpec(
        **{"name": "p", "models": ("m",), "strategy": "least_work", "endpoints": members, **facts}
    )


def make_scheduler(*fleet: Fleet | PoolSpec, kind: type[Scheduler] = Scheduler, **facts: Any) -> Scheduler:
    """A scheduler over a fleet, or over pools; its chance is the same in each test."""
    if len(fleet) == 1 and isinstance(fleet[0], Fleet):
        known = fleet[0]
    else:
        known = Fleet(pool for pool in fleet if isinstance(pool, PoolSpec))
    usual = {"instance": "i", "default_model": "m", "limits": SchedulerLimits(), "rng": Random(1)}
    return kind(known, **{**usual, **facts})


def decided(
    request: Request,
    tenant: Tenant,
    fleet: Fleet,
    books: Ledger,
    *,
    now_ns: int,
    rng: Random,
    degraded: str = "",
    **facts: Any,
) -> Routed | Reject:
    """Both halves of a decision at once, for who cannot wait: full is a 429."""
    routing = resolve(request, tenant, fleet, books, now_ns=now_ns, **facts)
    if isinstance(routing, Reject):
        return routing
    placed = place(routing, fleet, now_ns=now_ns, rng=rng, degraded=degraded)
    return full(routing) if isinstance(placed, Full) else placed


def make_processor(scheduler: Scheduler, tenants: Directory | None = None, **facts: Any) -> Processor:
    """A processor before a scheduler that lets everybody in, at a clock that stands at 0."""
    usual = {"decisions_concurrent_max": 8, "body_bytes_max": 10_000, "clock": lambda: 0, "seal": SEAL}
    return Processor(scheduler, tenants or Directory([], required=False), **{**usual, **facts})


def make_reservation(**facts: Any) -> Reservation:
    """A request of one permit on its way to 10.0.0.1:80."""
    usual = {
        "id": "i-1",
        "tenant": "t",
        "model": "m",
        "pool": "p",
        "address": "10.0.0.1:80",
        "input_tokens": 100,
        "output_tokens": 10,
        "permits": 1,
        "prompt_bytes": 400,
    }
    return Reservation(**{**usual, **facts})


def make_settled(
    outcome: Outcome, *, here: bool = True, charged: Amounts = NOTHING, spec: ClassSpec | None = None
) -> Settled:
    """What observers hear of an end, judged by a class's targets."""
    return Settled(outcome, charged, sample_of(outcome, spec or ClassSpec()), here)


class _Expiries(Observer):
    def __init__(self) -> None:
        self.found: list[Reservation] = []

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        self.found.append(reservation)


def step(scheduler: Scheduler, *, now_ns: int) -> list[Reservation]:
    """Let time pass; the reservations that expired."""
    heard, before = _Expiries(), scheduler.events.observers
    scheduler.events.observers = (*before, heard)
    scheduler.step(now_ns=now_ns)
    scheduler.events.observers = before
    return heard.found
