"""A scheduler with its metrics, driven as the service drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from extproc.core.accounts import Accounts, Price
from extproc.core.fairqueue import QueueBounds
from extproc.core.outcome import Hold, Outcome, Reject, Reservation, Routed
from extproc.core.quota import limits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Policy
from extproc.core.slo import ClassSpec
from extproc.core.tenant import Tenant
from extproc.observe.metrics.counting import Counting
from extproc.observe.metrics.samples import families
from extproc.observe.metrics.snapshot import CacheSeen, MetricsSnapshot, ScalingSeen, TokensSeen, take
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler, make_settled

MS, S = 1_000_000, 1_000_000_000
CHAT = Request(
    kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="m", prompt_bytes=400, max_new_tokens=50, stream=True
)
#: Label values by name, as a hashable whole; values of histograms are their counts.
Series = dict[str, dict[tuple[str, ...], float]]


class Scene:
    """One pool `chat` of one endpoint, classes premium (does not wait) and standard (does), some tenants."""

    def __init__(
        self,
        *names: str,
        tenants_max: int = 100,
        permits: int = 100,
        hold_ns: int = 5 * S,
        quota: Mapping[str, int] | None = None,
    ) -> None:
        self.now_ns = 1_000 * S
        self.tenants = {
            name: Tenant(name=name, service_class="premium" if name.startswith("p") else "standard")
            for name in names or ("acme",)
        }
        classes = (
            ClassSpec(name="premium", hold_ns=0, ttft_ns=200 * MS, tpot_ns=20 * MS),
            ClassSpec(name="standard", hold_ns=hold_ns, ttft_ns=S, tpot_ns=100 * MS),
        )
        accounts = Accounts(tenants={name: limits(**quota) for name in self.tenants} if quota else {})
        policy = Policy(
            classes=classes,
            bounds=QueueBounds(class_held_max=(1_000, 1_000)),
            accounts=accounts,
            prices={"chat": Price(input_per_million=10.0, output_per_million=30.0)},
        )
        pools = [
            make_pool(address, permits=permits, name=name, models=models, strategy="least_request")
            for name, models, address in (
                ("chat", ("m",), "10.0.0.1:80"),
                ("code", ("c",), "10.0.0.2:80"),
            )
        ]
        self.scheduler = make_scheduler(*pools, instance="one", policy=policy)
        self.released: list[tuple[str, Routed | Reject]] = []
        self.scheduler.dispatcher.on_release = lambda name, decision: self.released.append((name, decision))
        self.counting = Counting(self.scheduler, tenants=lambda: self.tenants, tenants_max=tenants_max)
        self.scheduler.events.observers = (self.counting,)
        self.scaling = ScalingSeen()
        self.cache = CacheSeen()
        self.tokens = TokensSeen()
        self.bound: dict[tuple[str, str], float] = {}
        self.adapter_calls: dict[tuple[str, str, str], int] = {}

    def admit(self, tenant: str = "acme", **facts: Any) -> Routed | Reject | Hold:
        """Decide on a request."""
        request = replace(CHAT, **facts)
        decision = self.scheduler.admit(request, self.tenants[tenant], now_ns=self.now_ns)
        assert isinstance(decision, Routed | Reject | Hold)
        return decision

    def reservation(self, tenant: str = "acme", **facts: Any) -> Reservation:
        """The reservation of a request that has room."""
        decision = self.admit(tenant, **facts)
        assert isinstance(decision, Routed)
        return decision.reservation

    def end(self, reservation: Reservation, *, here: bool = True, **facts: Any) -> None:
        """Its record comes: fast and whole unless told otherwise."""
        given: dict[str, Any] = {
            "reservation": reservation,
            "final": True,
            "status": 200,
            "served_by": reservation.address,
            "attempts": 1,
            "duration_ns": 500 * MS,
            "ttft_ns": 50 * MS,
            "prompt_tokens": 100,
            "output_tokens": 50,
        }
        outcome = Outcome(**given | facts)
        if here:
            self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)
        else:
            self.counting.settled(make_settled(outcome, here=False), now_ns=self.now_ns)

    def one(self, tenant: str = "acme", **facts: Any) -> None:
        """A request's whole way."""
        self.end(self.reservation(tenant), **facts)

    def snapshot(
        self, *, endpoints_max: int = 100, firing: Mapping[str, bool] | None = None
    ) -> MetricsSnapshot:
        """Everything now."""
        return asyncio.run(
            take(
                self.counting,
                self.scheduler,
                endpoints_max=endpoints_max,
                clock=lambda: self.now_ns,
                firing=lambda: firing or {},
                scaling=lambda: self.scaling,
                cache=lambda: self.cache,
                tokens=lambda: self.tokens,
                bound=lambda: self.bound,
                adapter_calls=lambda: self.adapter_calls,
            )
        )

    def series(self, **settings: Any) -> Series:
        """Every metric's values by label values; of a histogram its `_count` alone."""
        return {
            spec.name: {
                labels: value for ending, labels, value in samples if not ending or ending == "_count"
            }
            for spec, samples in families(self.snapshot(**settings))
        }


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """Builds a scene."""
    return Scene
