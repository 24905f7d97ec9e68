"""The counters that requests move: one observer on the request path, plain lists behind one dict look-up.

Owns what is counted, and when. Only requests that this service decided count here, so that the sums over
several services are true. How the figures are shown is samples.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from extproc.core.decide import RoutingRequest
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.outcome import End, Reject, Routed
from extproc.core.scheduler import Scheduler
from extproc.core.series import Counted, Histogram
from extproc.core.slo import Sample
from extproc.core.tenant import Tenant
from extproc.observe.metrics.labels import OTHER, Labels, Tenants
from extproc.observe.metrics.rows import Read, Rows
from extproc.observe.metrics.table import DECISION_S, HOLD_S, LAG_S, REQUEST_S, TPOT_S, TTFT_S

#: Values of the other labels; what comes beyond is `other`. A configuration may name more over its reloads.
POOLS_MAX, CLASSES_MAX, STRATEGIES_MAX, CODES_MAX, EVENTS_MAX = 256, 16, 64, 64, 256
ADAPTERS_MAX = 256
#: Combinations of tenant, pool and class, and of tenant and code; beyond, all labels are `other`.
CELLS_MAX, REFUSALS_MAX = 50_000, 20_000
#: Tokens that weigh as much as a request, where tenants compete for a name.
TOKENS_PER_WEIGHT = 1_000.0

#: Places in a row of traffic, and in one of judgements.
OK, REFUSED, ERROR, CLIENT_GONE, INPUT, OUTPUT, COST, GPU_S = range(8)
MET, MISSED = range(2)
PLACES = {End.OK: OK, End.REFUSED: REFUSED, End.ERROR: ERROR, End.CLIENT_GONE: CLIENT_GONE}

Key = tuple[str, str, str]


class Histograms:
    """The histograms of a pool and class."""

    __slots__ = ("hold", "request", "tpot", "ttft")

    def __init__(self) -> None:
        self.ttft, self.tpot = Histogram(TTFT_S), Histogram(TPOT_S)
        self.request, self.hold = Histogram(REQUEST_S), Histogram(HOLD_S)


class CounterCell:
    """Where the figures of a tenant, pool and class are: rows of traffic and of judgements; its times."""

    __slots__ = ("slo", "times", "traffic")

    def __init__(self, traffic: int, slo: int, times: Histograms) -> None:
        self.traffic, self.slo, self.times = traffic, slo, times


class Counts(NamedTuple):
    """What was counted, by label values."""

    #: By tenant, pool and class; by tenant and class.
    traffic: Read
    slo: Read
    #: By pool and class, and by the metric's name.
    times: list[tuple[tuple[str, str], dict[str, Counted]]]
    #: By tenant and code; by pool, strategy, and whether degraded.
    refusals: dict[tuple[str, str], int]
    decisions: dict[tuple[str, str, bool], int]
    #: The scheduler's counts; names beyond EVENTS_MAX are summed.
    events: dict[str, int]
    decision: Counted
    lag: Counted


class Counting(Observer):
    """All counters and histograms of the service. `tenants` are those of the configuration, by name."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        tenants: Callable[[], Mapping[str, Tenant]],
        tenants_max: int,
    ) -> None:
        self._scheduler = scheduler
        self._tenants_of = tenants
        self.tenants = Tenants(tenants_max, expected=len(tenants()))
        self.pools, self.classes = Labels(POOLS_MAX), Labels(CLASSES_MAX)
        self._strategies, self._codes = Labels(STRATEGIES_MAX), Labels(CODES_MAX)
        self._events, self.adapters = Labels(EVENTS_MAX), Labels(ADAPTERS_MAX)
        self._cells: dict[Key, CounterCell] = {}
        #: By tenant, pool and class; by tenant and class.
        self.traffic, self.slo = Rows(8), Rows(2)
        self._times: dict[tuple[str, str], Histograms] = {}
        self._refusals: dict[tuple[str, str], int] = {}
        self._decisions: dict[tuple[str, str, bool], int] = {}
        self._decision, self._lag = Histogram(DECISION_S), Histogram(LAG_S)

    def apply(self, tenants_max: int) -> None:
        """Other bounds, and perhaps other tenants."""
        self.tenants.apply(tenants_max, expected=len(self._tenants_of()))

    def lagged(self, seconds: float) -> None:
        """The event loop woke so much later than it was asked to."""
        self._lag.saw(seconds)

    # -- on the request path -------------------------------------------------------------------------------

    def decided(self, elapsed_ns: int, *, now_ns: int) -> None:  # noqa: ARG002 (the observer's)
        """A decision took so long."""
        self._decision.saw(elapsed_ns / 1e9)

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002
        """It goes to an endpoint."""
        reservation = routed.reservation
        self.tenants.met(reservation.tenant)
        key = (reservation.pool, reservation.strategy, routed.reason.degraded != "")
        count = self._decisions.get(key)
        if count is None:
            key = (self.pools.of(key[0]), self._strategies.of(key[1]), key[2])
            count = self._decisions.get(key, 0)
        self._decisions[key] = count + 1
        if reservation.permits:
            self._of(reservation.pool, reservation.service_class).hold.saw(reservation.held_ms / 1e3)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """It was shed, or its quota is spent."""
        tenant = self._refuse(routing.tenant.name, reject.code)
        if not wanted_room(reject.code) or not routing.permits:
            return
        self._of(routing.pool, routing.tenant.service_class).hold.saw((now_ns - routing.arrived_ns) / 1e9)
        self._missed(tenant, routing.tenant.service_class)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """Refused before it was a case; for want of room it is a request that missed its targets."""
        label = self._refuse(tenant, reject.code)
        known = self._tenants_of().get(tenant) if wanted_room(reject.code) else None
        if known is not None:
            self._missed(label, known.service_class)

    def left(
        self, reservation_id: str, routing: RoutingRequest | None, *, gave_up: bool, now_ns: int
    ) -> None:
        """Its client left before it was anywhere."""
        kept = None
        if routing is None:
            kept = self._scheduler.dispatcher.decisions.get(reservation_id)
            if kept is None:
                return
            routing = kept.routing
        service_class, waited_ns = routing.tenant.service_class, now_ns - routing.arrived_ns
        cell = self._cell((routing.tenant.name, routing.pool, service_class))
        self.traffic.values[cell.traffic + CLIENT_GONE] += 1
        if kept is None and routing.permits:
            cell.times.hold.saw(waited_ns / 1e9)
            self.slo.values[cell.slo + MISSED] += gave_up

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """A request has ended."""
        if not event.here:
            return
        outcome, charged = event.outcome, event.charged
        reservation = outcome.reservation
        key = (reservation.tenant, reservation.pool, reservation.service_class)
        cell = self._cells.get(key)
        if cell is None:
            tokens = charged.input_tokens + charged.output_tokens
            cell = self._cell(key, weight=1.0 + tokens / TOKENS_PER_WEIGHT)
        figures, at = self.traffic.values, cell.traffic
        figures[at + PLACES[outcome.end]] += 1
        figures[at + INPUT] += charged.input_tokens
        figures[at + OUTPUT] += charged.output_tokens
        figures[at + COST] += charged.cost
        figures[at + GPU_S] += charged.gpu_ms / 1e3
        self._judge(event.sample, cell)

    # ------------------------------------------------------------------------------------------------------

    def _judge(self, sample: Sample, cell: CounterCell) -> None:
        """Its times, and whether they are what its class aims at."""
        times = cell.times
        if sample.ttft_ms is not None:
            times.ttft.saw(sample.ttft_ms / 1e3)
        if sample.tpot_ms is not None:
            times.tpot.saw(sample.tpot_ms / 1e3)
        if sample.total_ms is not None:
            times.request.saw(sample.total_ms / 1e3)
        if sample.attained is not None:
            self.slo.values[cell.slo + (MET if sample.attained else MISSED)] += 1

    def _cell(self, key: Key, *, weight: float = 1.0) -> CounterCell:
        cell = self._cells.get(key)
        if cell is not None:
            return cell
        labels = self.tenants.of(key[0], weight=weight), self.pools.of(key[1]), self.classes.of(key[2])
        cell = self._cells.get(labels)
        if cell is None and len(self._cells) >= CELLS_MAX:
            labels = (OTHER, OTHER, OTHER)
            cell = self._cells.get(labels)
        if cell is None:
            tenant, pool, klass = labels
            slo = self._slo_of(tenant, klass)
            cell = self._cells[labels] = CounterCell(self.traffic.add(labels), slo, self._of(pool, klass))
        return cell

    def _slo_of(self, tenant: str, klass: str) -> int:
        """The place of two label values' judgements."""
        key = (tenant, klass)
        place = self.slo.get(key)
        if place is None and len(self.slo) >= CELLS_MAX:
            key = (OTHER, OTHER)
            place = self.slo.get(key)
        return self.slo.add(key) if place is None else place

    def _missed(self, tenant: str, service_class: str) -> None:
        """A request of a tenant (its label value) was turned away for want of room."""
        self.slo.values[self._slo_of(tenant, self.classes.of(service_class)) + MISSED] += 1

    def _of(self, pool: str, klass: str) -> Histograms:
        found = self._times.get((pool, klass))
        if found is None:
            key = (self.pools.of(pool), self.classes.of(klass))
            found = self._times.get(key)
            if found is None:
                found = self._times[key] = Histograms()
        return found

    def _refuse(self, tenant: str, code: str) -> str:
        """Count a refusal; the tenant's label value."""
        label = self.tenants.of(tenant)
        key = (label, self._codes.of(code))
        if key not in self._refusals and len(self._refusals) >= REFUSALS_MAX:
            key = (OTHER, OTHER)
        self._refusals[key] = self._refusals.get(key, 0) + 1
        return label

    # -- read by a scrape ----------------------------------------------------------------------------------

    def read(self) -> Counts:
        """Everything as it is now, in one go: its parts agree with one another."""
        events: dict[str, int] = {}
        for name in sorted(self._scheduler.counts):
            label = self._events.of(name)
            events[label] = events.get(label, 0) + self._scheduler.counts[name]
        return Counts(
            traffic=self.traffic.read(),
            slo=self.slo.read(),
            times=[
                (
                    key,
                    {
                        "ttft_seconds": times.ttft.read(),
                        "tpot_seconds": times.tpot.read(),
                        "request_seconds": times.request.read(),
                        "hold_seconds": times.hold.read(),
                    },
                )
                for key, times in self._times.items()
            ],
            refusals=self._refusals.copy(),
            decisions=self._decisions.copy(),
            events=events,
            decision=self._decision.read(),
            lag=self._lag.read(),
        )

    @property
    def series(self) -> int:
        """Combinations of label values that are counted, for the status."""
        return len(self.traffic) + len(self.slo) + len(self._refusals) + len(self._decisions)
