"""The counters that requests move: one observer on the request path, plain lists behind one dict look-up.

Owns what is counted, and when. Only requests that this service decided count here, so that the sums over
several services are true. How the figures are shown is samples.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import End, Outcome, Reject, Routed, wanted_room
from extproc.core.scheduler import Scheduler
from extproc.core.slo import tokens_each
from extproc.core.tenant import Tenant
from extproc.observe.metrics.histogram import Counted, Histogram
from extproc.observe.metrics.labels import OTHER, Labels, Tenants
from extproc.observe.metrics.rows import Rows
from extproc.observe.metrics.table import DECISION_S, HOLD_S, LAG_S, REQUEST_S, TPOT_S, TTFT_S

#: Values of the other labels; what comes beyond is `other`. A configuration may name more over its reloads.
POOLS_MAX, CLASSES_MAX, STRATEGIES_MAX, CODES_MAX, EVENTS_MAX = 256, 16, 64, 64, 256
#: Combinations of tenant, pool and class, and of tenant and code; beyond, all labels are `other`.
CELLS_MAX, REFUSALS_MAX = 50_000, 20_000
#: Tokens that weigh as much as a request, where tenants compete for a name.
TOKENS_PER_WEIGHT = 1_000.0

#: The only 4xx of an engine that is not its client's mistake.
ENGINE_FULL = 429

#: Places in a row of traffic, and in one of judgements.
OK, REFUSED, ERROR, CLIENT_GONE, INPUT, OUTPUT, COST, GPU_S = range(8)
MET, MISSED = range(2)

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
        self._events = Labels(EVENTS_MAX)
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
        if not wanted_room(reject.status, reject.code) or not routing.permits:
            return
        self._of(routing.pool, routing.tenant.service_class).hold.saw((now_ns - routing.arrived_ns) / 1e9)
        self._missed(tenant, routing.tenant.service_class)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """Refused before it was a case; for want of room it is a request that missed its targets."""
        label = self._refuse(tenant, reject.code)
        known = self._tenants_of().get(tenant) if wanted_room(reject.status, reject.code) else None
        if known is not None:
            self._missed(label, known.service_class)

    def left(self, reservation_id: str, routing: RoutingRequest | None, *, now_ns: int) -> None:
        """Its client left before it was anywhere."""
        if routing is None:
            kept = self._scheduler.dispatcher.decisions.get(reservation_id)
            if kept is None:
                return
            routing = kept.routing
        elif routing.permits:
            held_s = (now_ns - routing.arrived_ns) / 1e9
            self._of(routing.pool, routing.tenant.service_class).hold.saw(held_s)
        cell = self._cell((routing.tenant.name, routing.pool, routing.tenant.service_class))
        self.traffic.values[cell.traffic + CLIENT_GONE] += 1

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
        end, figures, at = outcome.end, self.traffic.values, cell.traffic
        if end is End.OK:
            figures[at + OK] += 1
        elif end is End.CLIENT_GONE:
            figures[at + CLIENT_GONE] += 1
        else:
            figures[at + (ERROR if end is End.ERROR else REFUSED)] += 1
        figures[at + INPUT] += charged.input_tokens
        figures[at + OUTPUT] += charged.output_tokens
        figures[at + COST] += charged.cost
        figures[at + GPU_S] += charged.gpu_ms / 1e3
        if reservation.permits:
            self._judge(outcome, event.sample.attained, cell)

    # ------------------------------------------------------------------------------------------------------

    def _judge(self, outcome: Outcome, attained: bool | None, cell: CounterCell) -> None:
        """Its times, and whether they are what its class aims at."""
        times, ttft_ns, end = cell.times, outcome.ttft_ns, outcome.end
        if ttft_ns is not None:
            times.ttft.saw(ttft_ns / 1e9)
        if end is End.CLIENT_GONE:
            return
        if end is End.REFUSED and outcome.status != ENGINE_FULL and not outcome.refused:
            # The engine did not like the request itself.
            return
        if end is End.OK:
            times.request.saw(outcome.duration_ns / 1e9)
            further = tokens_each(outcome) - 1 if outcome.output_tokens is not None else 0
            if ttft_ns is not None and further > 0:
                times.tpot.saw((outcome.duration_ns - ttft_ns) / 1e9 / further)
        self.slo.values[cell.slo + (MET if attained else MISSED)] += 1

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

    # -- read by the snapshot ------------------------------------------------------------------------------

    def events(self) -> dict[str, int]:
        """The scheduler's counts by label value; names beyond EVENTS_MAX are summed."""
        found: dict[str, int] = {}
        for name in sorted(self._scheduler.counts):
            label = self._events.of(name)
            found[label] = found.get(label, 0) + self._scheduler.counts[name]
        return found

    def times(self) -> list[tuple[tuple[str, str], dict[str, Counted]]]:
        """The histograms by pool and class, by the metrics' names."""
        return [
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
        ]

    def refusals(self) -> dict[tuple[str, str], int]:
        """By tenant and code."""
        return self._refusals.copy()

    def decisions(self) -> dict[tuple[str, str, bool], int]:
        """By pool, strategy, and whether degraded."""
        return self._decisions.copy()

    def decision(self) -> Counted:
        """What decisions took."""
        return self._decision.read()

    def lag(self) -> Counted:
        """How late the event loop was."""
        return self._lag.read()

    @property
    def series(self) -> int:
        """Combinations of label values that are counted, for the status."""
        return len(self.traffic) + len(self.slo) + len(self._refusals) + len(self._decisions)
