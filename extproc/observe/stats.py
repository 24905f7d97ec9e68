"""Running figures per tenant and endpoint, bounded, for `steersman status` and the live tables.

Owns counts since start and a short memory of times to first token. Percentiles over long spans are
the analytics' (later); these are the last few hundred requests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.fleet import Fleet
from extproc.core.outcome import End, Outcome, Reject, Reservation, Routed
from extproc.core.series import shown
from extproc.observe.endpoints import view

#: Times to first token kept per tenant and per endpoint.
TTFT_KEPT = 512
#: Tenants with figures of their own; those beyond are summed as `OTHER`.
TENANTS_MAX = 1_000
#: The same for endpoints: records may name some that no configuration here knows.
ENDPOINTS_MAX = 10_000
OTHER = "(other)"
#: The span over which tokens per second are reckoned, in one-second buckets.
RATE_SECONDS = 10


class EventRate:
    """Events per second over the last RATE_SECONDS whole seconds."""

    __slots__ = ("_buckets", "_second")

    def __init__(self) -> None:
        self._buckets = [0.0] * RATE_SECONDS
        self._second = 0

    def add(self, amount: float, *, now_ns: int) -> None:
        """Count an amount at a time."""
        self._roll(now_ns)
        self._buckets[self._second % RATE_SECONDS] += amount

    def per_second(self, *, now_ns: int) -> float:
        """The mean over the span."""
        self._roll(now_ns)
        return sum(self._buckets) / RATE_SECONDS

    def _roll(self, now_ns: int) -> None:
        second = now_ns // 1_000_000_000
        for passed in range(min(second - self._second, RATE_SECONDS)):
            self._buckets[(second - passed) % RATE_SECONDS] = 0.0
        self._second = max(self._second, second)


@dataclass(slots=True)
class Counters:
    """Figures of one tenant or endpoint since start."""

    decided: int = 0
    ok: int = 0
    refused: int = 0
    failed: int = 0
    client_gone: int = 0
    rejected: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    ttft_ns: deque[int] = field(default_factory=lambda: deque(maxlen=TTFT_KEPT))
    tokens: EventRate = field(default_factory=EventRate)

    def ended(self, outcome: Outcome, *, now_ns: int) -> None:
        """Count a request's end."""
        name = "failed" if outcome.end is End.ERROR else outcome.end.value
        setattr(self, name, getattr(self, name) + 1)
        self.prompt_tokens += outcome.prompt_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        self.tokens.add(outcome.output_tokens or 0, now_ns=now_ns)
        if outcome.ttft_ns is not None:
            self.ttft_ns.append(outcome.ttft_ns)

    def figures(self, *, now_ns: int) -> dict[str, Any]:
        """As plain values; times in milliseconds, None where nothing was seen."""
        times = sorted(self.ttft_ns)
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "tokens_per_s": round(self.tokens.per_second(now_ns=now_ns), 1),
            "ttft_p50_ms": shown(times, 0.50, scale=1e-6),
            "ttft_p99_ms": shown(times, 0.99, scale=1e-6),
        }


#: What a line counts.
COUNTED = tuple(each.name for each in fields(Counters) if each.name not in ("ttft_ns", "tokens"))


def _line(lines: dict[str, Counters], name: str, lines_max: int) -> Counters:
    line = lines.get(name)
    if line is None:
        line = lines.setdefault(name if len(lines) < lines_max else OTHER, Counters())
    return line


class Stats(Observer):
    """All lines."""

    def __init__(self) -> None:
        self.tenants: dict[str, Counters] = {}
        self.endpoints: dict[str, Counters] = {}

    def tenant(self, name: str) -> Counters:
        """A tenant's line; the shared one beyond TENANTS_MAX."""
        return _line(self.tenants, name, TENANTS_MAX)

    def endpoint(self, address: str) -> Counters:
        """An endpoint's line; the shared one beyond ENDPOINTS_MAX."""
        return _line(self.endpoints, address, ENDPOINTS_MAX)

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002
        """A request was sent to an endpoint."""
        self.tenant(routing.tenant.name).decided += 1
        self.endpoint(routed.reservation.address).decided += 1

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """A tenant's request was turned away."""
        self.tenant(routing.tenant.name).rejected += 1

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """The same before it was routed; of strangers nothing is counted."""
        if tenant:
            self.tenant(tenant).rejected += 1

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request's end never came."""
        self.tenant(reservation.tenant).expired += 1

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request ended; one that another service decided is counted as decided with its end."""
        outcome, reservation = event.outcome, event.outcome.reservation
        if not event.here:
            self.tenant(reservation.tenant).decided += 1
            self.endpoint(reservation.address).decided += 1
        self.tenant(reservation.tenant).ended(outcome, now_ns=now_ns)
        self.endpoint(outcome.served_by or reservation.address).ended(outcome, now_ns=now_ns)

    def forget_endpoints(self, fleet: Fleet) -> None:
        """Drop the lines of endpoints that left the fleet."""
        known = {endpoint.address for endpoint in fleet.endpoints}
        for address in [address for address in self.endpoints if address not in known]:
            del self.endpoints[address]

    def snapshot(self, fleet: Fleet, *, now_ns: int) -> dict[str, Any]:
        """Everything as plain values."""
        empty = Counters()
        return {
            "tenants": {name: line.figures(now_ns=now_ns) for name, line in self.tenants.items()},
            "endpoints": [
                {
                    **view(endpoint, now_ns=now_ns),
                    **self.endpoints.get(endpoint.address, empty).figures(now_ns=now_ns),
                }
                for endpoint in fleet.endpoints
            ],
        }
