"""A scheduler of one busy replica, and the requests that wait before it."""

from __future__ import annotations

from typing import Any

from extproc.core.accounts import Accounts
from extproc.core.fairqueue import QueueBounds
from extproc.core.outcome import Hold, Outcome, Reject, Reservation, Routed
from extproc.core.quota import ExactBooks, limits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ClassSpec, Policy
from extproc.core.tenant import Tenant
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
A, B = "10.0.0.1:80", "10.0.0.2:80"
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50)
ACME, GLOBEX = Tenant(name="acme"), Tenant(name="globex")
ONE_CLASS = (ClassSpec(hold_ns=5 * S),)
#: Budgets that no test spends; what is outstanding of them shows what was refunded.
QUOTA = limits(requests_per_minute=600, concurrent_requests=50)


def policy(*classes: ClassSpec, quota: bool = True, **bounds: Any) -> Policy:
    classes = classes or ONE_CLASS
    bounds.setdefault("class_held_max", (100,) * len(classes))
    bounds.setdefault("ageing_ns", 3_600 * S)
    accounts = Accounts(tenants={"acme": QUOTA, "globex": QUOTA} if quota else {})
    return Policy(classes=classes, bounds=QueueBounds(**bounds), accounts=accounts)


class Scene:
    """A scheduler, and what became of those it held."""

    def __init__(self, given: Policy | None = None, *, permits: int = 1, addresses: tuple[str, ...] = (A,)):
        spec = make_pool(*addresses, permits=permits)
        self.quotas = ExactBooks()
        self.scheduler = make_scheduler(spec, policy=given or policy(), quotas=self.quotas)
        self.released: list[tuple[str, Routed | Reject]] = []
        self.scheduler.dispatcher.on_release = lambda id, decision: self.released.append((id, decision))  # noqa: A006

    def routed(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Reservation:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Routed), decision
        return decision.reservation

    def held(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Hold:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Hold), decision
        return decision

    def rejected(self, tenant: Tenant = ACME, request: Request = CHAT, *, now_ns: int = 0) -> Reject:
        decision = self.scheduler.admit(request, tenant, now_ns=now_ns)
        assert isinstance(decision, Reject), decision
        return decision

    def ends(self, reservation: Reservation, *, now_ns: int = 0) -> None:
        outcome = Outcome(reservation=reservation, final=True, served_by=reservation.address, attempts=1)
        assert self.scheduler.settlement.settle(outcome, now_ns=now_ns)

    def last(self) -> tuple[str, Routed | Reject]:
        (only,) = self.released
        self.released.clear()
        return only

    def next(self, *, now_ns: int = 0) -> Reservation:
        """The one just released ends; the one released for it."""
        _, decision = self.last()
        assert isinstance(decision, Routed), decision
        self.ends(decision.reservation, now_ns=now_ns)
        return decision.reservation

    @property
    def concurrent(self) -> int:
        """Reservations of quota that have not ended."""
        return len(self.quotas)
