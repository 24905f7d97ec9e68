"""One simulated world: arrivals, the scheduler, the replicas, and the delays between them.

Owns the virtual clock and its events. Decides nothing: the service's own `Scheduler` does. Draws chance only
from seeded generators, so equal settings give equal worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from extproc.core.outcome import CacheHit, End, Hold, Outcome, Reject, Reservation, Routed
from extproc.core.reports import ReplicaReport
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import AskQuota, Scheduler
from extproc.core.slo import NO_ROOM
from extproc.core.tenant import Tenant
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.events import Accepted, Cancelled, Finished, FirstToken, SimRequest
from extproc.sim.replica import SimReplica
from extproc.sim.served import Served
from extproc.sim.world.adapters import blocks_of, prefix_for, with_adapters
from extproc.sim.world.conduct import ORDINARY, Conduct
from extproc.sim.world.flight import SimFlight
from extproc.sim.world.upsets import Upsets

MS_NS = 1_000_000
#: Limit of a request whose client set none, at the replica.
UNLIMITED_TOKENS = 1024
#: A request is tried so often at most, as Envoy's routes say.
ATTEMPTS_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """One-way times and losses. `hop_ms` is decision to replica, `event_ms` replica to service;
    each takes up to `event_jitter_ms` more, by chance, so that first tokens, ends and decisions overtake each
    other, as over several connections or workers. Reports are made each `report_interval_ms` (0: none) and
    arrive `report_delay_ms` later. Losses are shares, 0 to 1."""

    hop_ms: float = 0.5
    event_ms: float = 1.0
    event_jitter_ms: float = 0.0
    report_interval_ms: float = 100.0
    report_delay_ms: float = 50.0
    event_loss: float = 0.0
    report_loss: float = 0.0
    record_loss: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFault:
    """Something that happens to a replica at a time: its `slowdown` changes, it hangs, or it refuses."""

    at_s: float
    replica: int
    slowdown: float | None = None
    hang: bool | None = None
    refuse: bool | None = None


class World:
    """Runs one workload to its end; `run` gives what became of each request, in order of arrival."""

    def __init__(
        self,
        scheduler: Scheduler,
        replicas: Mapping[str, SimReplica],
        workload: Workload,
        *,
        model: str,
        pool: str,
        delays: Delays,
        rng: Random,
        faults: Sequence[WorldFault] = (),
        tenants: Mapping[str, Tenant] | None = None,
        grace_s: float = 600.0,
        conducts: Mapping[str, Conduct] | None = None,
        own_share: float = 1.0,
        chance: Random | None = None,
        adapters_told: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.replicas = replicas
        self.workload = workload
        self.delays = delays
        self.asked_output = 0
        self._model, self._pool = model, pool
        self._rng, self._adapters_told = rng, adapters_told
        self._tenants = dict(tenants or {})
        self._names = list(replicas)
        self._served: list[Served | None] = [None] * len(workload.arrivals)
        self._events: list[tuple[int, int, Any, Any]] = []
        self._serial = 0
        self._held: dict[str, SimFlight] = {}
        self._flights: dict[str, SimFlight] = {}
        self._wake: dict[str, int] = {}
        self._left = len(workload.arrivals)
        self._arrived = 0
        last_ns = workload.arrivals[-1].at_ns if workload.arrivals else 0
        self._last_ns = last_ns + int(grace_s * 1e9)
        self.now_ns = 0
        #: Time with a step under way, by address, of what has ended.
        self.busy_ns = dict.fromkeys(replicas, 0)
        self._busy_since: dict[str, int] = {}
        scheduler.dispatcher.on_release = self._released
        for fault in faults:
            self._at(int(fault.at_s * 1e9), self._fault, fault)
        self._conducts = {address: (conducts or {}).get(address, ORDINARY) for address in replicas}
        self._chance = chance or Random(0)
        #: Requests that are on their way to a replica.
        self._coming = dict.fromkeys(replicas, 0)
        self.upsets = Upsets(
            self._conducts,
            replicas,
            scheduler.fleet,
            workload.arrivals,
            at=self._later,
            changed=self._changed,
            own_share=own_share,
            rng=self._chance,
        )

    def run(self) -> list[Served]:
        """Play everything. What has not ended `grace_s` after the last arrival counts as failed."""
        self.begin()
        while self.turn():
            pass
        return self.finish()

    def begin(self) -> None:
        """Start what happens at its own times."""
        if self.delays.report_interval_ms:
            self._at(0, self._report, None)
        self.scheduler.next_step.sooner = self._step_at
        self.scheduler.next_step.due_ns = 0
        self._step_at(0)

    @property
    def next_ns(self) -> int:
        """When the next thing happens: an arrival, or an event. Time steps are events, so there is one."""
        arrivals, at_ns = self.workload.arrivals, self._events[0][0]
        return min(at_ns, arrivals[self._arrived].at_ns) if self._arrived < len(arrivals) else at_ns

    def turn(self) -> bool:
        """Have the next thing happen; false, and nothing does, when everything has ended or is overdue."""
        if not self._left:
            return False
        arrivals, events, i = self.workload.arrivals, self._events, self._arrived
        if i < len(arrivals) and arrivals[i].at_ns <= events[0][0]:
            self.now_ns = arrivals[i].at_ns
            self._arrived += 1
            self._arrive(i, arrivals[i])
            return True
        at_ns, _, call, what = heappop(events)
        if at_ns > self._last_ns:
            return False
        self.now_ns = at_ns
        call(what)
        return True

    def finish(self) -> list[Served]:
        """What became of each request; those that have not ended have failed."""
        for flight in [*self._flights.values(), *self._held.values()]:
            self._end(flight, "failed", "")
        for address, since_ns in self._busy_since.items():
            self.busy_ns[address] += self.now_ns - since_ns
        return [served for served in self._served if served is not None]

    def watch(self, every_ns: int, look: Callable[[], None]) -> None:
        """Call `look` now and then while it runs; it may read everything and change nothing."""

        def again(_: None) -> None:
            look()
            self._at(self.now_ns + every_ns, again, None)

        self._at(self.now_ns, again, None)

    def happens(self, at_ns: int, call: Callable[[], None]) -> None:
        """Have something happen to the fleet at a moment of its own: a replica becomes ready, or leaves."""
        self._at(at_ns, lambda _: call(), None)

    def _at(self, at_ns: int, call: Any, what: Any) -> None:
        self._serial += 1
        heappush(self._events, (at_ns, self._serial, call, what))

    def _later(self, at_ns: int, call: Callable[[Any, int], None], what: Any) -> None:
        """Schedule a call that is told the time."""
        self._at(at_ns, lambda told: call(told, self.now_ns), what)

    def _arrive(self, index: int, arrival: Arrival) -> None:
        flight = SimFlight(index, arrival)
        tenant = self._tenant(arrival.tenant)
        self._admit(flight, self._request(arrival), tenant)

    def _tenant(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name=name)
        return tenant

    def _request(self, arrival: Arrival) -> Request:
        return Request(
            kind=RouteKind.CHAT,
            dialect=Dialect.OPENAI,
            model=arrival.model or self._model,
            stream=True,
            max_new_tokens=arrival.max_new_tokens,
            prompt_tokens=arrival.prompt_tokens,
            prefix=prefix_for(arrival, self.scheduler.fleet.pools[self._pool]),
            prefix_block_tokens=float(self.workload.block_tokens),
            user=arrival.session or None,
        )

    def _admit(self, flight: SimFlight, request: Request, tenant: Tenant) -> None:
        self.asked_output = flight.arrival.output_tokens
        decision = self.scheduler.admit(request, tenant, now_ns=self.now_ns)
        assert not isinstance(decision, AskQuota | CacheHit), "a simulation keeps quotas here, and no answers"
        if isinstance(decision, Hold):
            self._held[decision.id] = flight
        elif isinstance(decision, Reject):
            self._shed(flight)
        else:
            self._go(flight, decision)

    def _released(self, reservation_id: str, decision: Routed | Reject) -> None:
        flight = self._held.pop(reservation_id)
        if isinstance(decision, Reject):
            self._shed(flight)
        else:
            self._go(flight, decision)

    def _shed(self, flight: SimFlight) -> None:
        """Turned away: note whether a replica stood idle, by the truth and not by what the gateway knows."""
        arrival = flight.arrival
        for endpoint in self.scheduler.fleet.pools[self._pool].endpoints:
            replica = self.replicas[endpoint.address]
            fits = arrival.prompt_tokens + arrival.output_tokens <= replica.limits.kv_capacity_tokens
            suspect = endpoint.suspect_until_ns > self.now_ns
            if endpoint.ready and fits and not suspect and not self._coming[endpoint.address]:
                flight.idle = flight.idle or replica.idle
                flight.room = flight.room or replica.has_room
        self._end(flight, "shed", "")

    def _go(self, flight: SimFlight, decision: Routed) -> None:
        flight.reservation = decision.reservation
        flight.decided_ns = self.now_ns
        self._flights[decision.reservation.id] = flight
        flight.addresses = decision.addresses
        self._try(decision.reservation)

    def _try(self, reservation: Reservation) -> None:
        """Send it to the next address of its list, as Envoy does."""
        flight = self._flights[reservation.id]
        flight.at = flight.addresses[flight.attempts]
        flight.attempts += 1
        self._coming[flight.at] += 1
        self._at(self.now_ns + int(self.delays.hop_ms * MS_NS), self._submit, reservation)

    def _submit(self, reservation: Reservation) -> None:
        flight = self._flights[reservation.id]
        self._coming[flight.at] -= 1
        if self._struck(self._conducts[flight.at].errors):
            self._at(self.now_ns + self._event_ns(), self._failed, reservation)
            return
        arrival, replica = flight.arrival, self.replicas[flight.at]
        limit = max(arrival.output_tokens, arrival.max_new_tokens or UNLIMITED_TOKENS)
        room = replica.limits.kv_capacity_tokens - arrival.prompt_tokens + 1
        answer = replica.submit(
            SimRequest(
                request_id=reservation.id,
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=min(arrival.output_tokens, room),
                max_new_tokens=min(limit, room),
                blocks=blocks_of(arrival),
                adapter=arrival.model,
            ),
            now_ns=self.now_ns,
        )
        if not isinstance(answer, Accepted):
            # TGI says so inside a 200 stream.
            self._at(self.now_ns + self._event_ns(), self._refused, reservation)
            return
        self._watch(flight.at)

    def _failed(self, reservation: Reservation, *, status: int = 503) -> None:
        """An attempt was answered so: the next address, or the end."""
        flight = self._flights[reservation.id]
        if flight.attempts < min(len(flight.addresses), ATTEMPTS_MAX):
            self._try(reservation)
            return
        del self._flights[reservation.id]
        end = End.REFUSED if status == NO_ROOM else End.ERROR
        self._record(flight, reservation, end, 0, status=status)
        self._end(flight, "shed" if status == NO_ROOM else "failed", flight.at)

    def _refused(self, reservation: Reservation) -> None:
        flight = self._flights.pop(reservation.id)
        self.scheduler.settlement.first_token(reservation.id, now_ns=self.now_ns, refused=True)
        self._record(flight, reservation, End.REFUSED, 0, refused=True)
        self._end(flight, "refused", flight.at)

    def _watch(self, address: str) -> None:
        at_ns = self.replicas[address].next_event_ns()
        if at_ns is None:
            since_ns = self._busy_since.pop(address, None)
            if since_ns is not None:
                self.busy_ns[address] += self.now_ns - since_ns
        elif self._wake.get(address) != at_ns:
            self._busy_since.setdefault(address, self.now_ns)
            self._wake[address] = at_ns
            self._at(at_ns, self._advance, address)

    def _advance(self, address: str) -> None:
        replica = self.replicas[address]
        if self._wake.get(address) == self.now_ns:
            del self._wake[address]
        for event in replica.advance(self.now_ns):
            if isinstance(event, FirstToken):
                flight = self._flights.get(str(event.request_id))
                if flight is not None:
                    self._first(flight, event.at_ns, event.cached_tokens)
                    if self._conducts[address].heard and not self._lost(self.delays.event_loss):
                        self._at(event.at_ns + self._event_ns(), self._first_token, event.request_id)
            elif isinstance(event, Finished):
                self._at(event.at_ns + self._event_ns(), self._finished, event)
            elif isinstance(event, Cancelled):
                continue
        self._watch(address)

    def _first(self, flight: SimFlight, at_ns: int, cached_tokens: int) -> None:
        """Its first token was made, or is there."""
        flight.first_ns, flight.cached = at_ns, cached_tokens

    def _first_token(self, reservation_id: str) -> None:
        flight = self._flights.get(reservation_id)
        served_by = flight.at if flight is not None else ""
        self.scheduler.settlement.first_token(reservation_id, now_ns=self.now_ns, served_by=served_by)

    def _finished(self, event: Finished) -> None:
        flight = self._flights.pop(str(event.request_id), None)
        if flight is None or flight.reservation is None:
            return
        self._end(flight, "ok", flight.at, at_ns=event.at_ns)
        if not self._lost(self.delays.record_loss):
            self._record(flight, flight.reservation, End.OK, event.output_tokens)

    def _record(
        self,
        flight: SimFlight,
        reservation: Reservation,
        end: End,
        output: int,
        *,
        refused: bool = False,
        status: int = 200,
    ) -> None:
        conduct = self._conducts[flight.at]
        heard = conduct.heard and flight.first_ns >= 0
        told = conduct.usage and not refused and end is End.OK
        outcome = Outcome(
            reservation=reservation,
            final=True,
            status=status,
            end=end,
            served_by=flight.at,
            attempts=flight.attempts,
            duration_ns=self.now_ns - flight.arrival.at_ns,
            ttft_ns=flight.first_ns - flight.arrival.at_ns if heard else None,
            prompt_tokens=flight.arrival.prompt_tokens if told else None,
            output_tokens=output if told else None,
            cached_tokens=max(0, flight.cached) if conduct.cached_told and told else None,
            refused=refused,
        )
        self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)

    def _end(self, flight: SimFlight, outcome: str, endpoint: str, *, at_ns: int | None = None) -> None:
        tenant = self._tenants.get(flight.arrival.tenant)
        self._served[flight.index] = Served(
            flight.arrival,
            outcome,
            endpoint,
            flight.decided_ns,
            flight.first_ns,
            self.now_ns if at_ns is None else at_ns,
            max(0, flight.cached),
            tenant.service_class if tenant is not None else "standard",
            # A retry was expected elsewhere.
            flight.reservation.ttft_ms if flight.reservation and flight.attempts == 1 else 0.0,
            flight.idle,
            flight.room,
        )
        self._left -= 1

    def _step(self, due_ns: int) -> None:
        if due_ns == self.scheduler.next_step.due_ns:  # otherwise one came sooner
            self._step_at(self.scheduler.step(now_ns=self.now_ns))

    def _step_at(self, due_ns: int) -> None:
        self._at(due_ns, self._step, due_ns)

    def _report(self, _: None) -> None:
        """Every replica's figures leave now and arrive later."""
        delays = self.delays
        for address, replica in self.replicas.items():
            conduct = self._conducts[address]
            if not conduct.agent or self._lost(delays.report_loss):
                continue
            report = ReplicaReport(
                address=address,
                pool=self._pool,
                waiting=None if conduct.hidden else replica.waiting,
                running=replica.running,
                kv_used_tokens=replica.kv_used_tokens,
                kv_capacity_tokens=replica.limits.kv_capacity_tokens,
            )
            report = with_adapters(report, replica, whole=self._adapters_told)
            delay_ns = int((delays.report_delay_ms + 1e3 * conduct.late_s) * MS_NS)
            self._at(self.now_ns + delay_ns, self._heard, report)
        self._at(self.now_ns + int(delays.report_interval_ms * MS_NS), self._report, None)

    def _heard(self, report: ReplicaReport) -> None:
        self.scheduler.fleet.heard(report, now_ns=self.now_ns)

    def _fault(self, fault: WorldFault) -> None:
        address = self._names[fault.replica % len(self._names)]
        self.replicas[address].set_fault(
            now_ns=self.now_ns, slowdown=fault.slowdown, hang=fault.hang, refuse=fault.refuse
        )
        self._changed(address)

    def _changed(self, address: str) -> None:
        """A replica was changed from outside: what it does next is to be asked anew."""
        self._wake.pop(address, None)
        self._watch(address)

    def _event_ns(self) -> int:
        jitter_ms = self.delays.event_jitter_ms
        later_ms = jitter_ms * self._rng.random() if jitter_ms else 0.0
        return int((self.delays.event_ms + later_ms) * MS_NS)

    def _lost(self, share: float) -> bool:
        return share > 0.0 and self._rng.random() < share

    def _struck(self, share: float) -> bool:
        return share > 0.0 and self._chance.random() < share
