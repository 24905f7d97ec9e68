"""Several services before one pool, simulated: what they tell each other, clients in closed loops.

Virtual time. A replica gives each of its places to one request for as long as that takes; records reach every
service, loads each 100 ms. Clients choose a service at random, as one Envoy does for them. The timings stand
for no engine.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from extproc.core.fairqueue import QueueBounds
from extproc.core.outcome import End, Hold, Outcome, Reject, Reservation, Routed
from extproc.core.peers import owner_of
from extproc.core.policy import ClassSpec, Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import STEP_NS, Scheduler
from extproc.core.tenant import Tenant
from extproc.state.share import OwnLoad, PeerLoads
from tests.stand.schedulers import make_pool, make_scheduler

S, MS = 1_000_000_000, 1_000_000
MESSAGE_NS = 100 * MS
HOLD_NS = 120 * S


@dataclass(frozen=True, slots=True)
class Client:
    """Clients of a tenant, one request after the other each; `pause_s` between them on the mean."""

    tenant: str
    count: int
    output: int = 40
    pause_s: float = 0.0


@dataclass
class Figures:
    """What came of a run after its warm-up: waits for a place and output tokens by tenant."""

    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rejected: int = 0
    #: Requests beyond a replica's places, at the worst moment and as a share of all.
    overfull: int = 0
    overfilled: float = 0.0
    #: The share of the places that was in use.
    busy: float = 0.0

    def p99(self, tenant: str) -> float:
        ordered = sorted(self.waits[tenant])
        return ordered[int(0.99 * len(ordered))]

    def jain(self, *tenants: str) -> float:
        values = [self.tokens[each] for each in tenants]
        return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


class Services:
    """`count` services; `shared` says whether they tell each other anything."""

    def __init__(
        self,
        count: int,
        clients: list[Client],
        *,
        replicas: int = 2,
        permits: int = 4,
        shared: bool = True,
        seed: int = 1,
        weights: Mapping[str, float] | None = None,
        token_ms: float = 25.0,
    ) -> None:
        addresses = [f"10.0.0.{i}:80" for i in range(replicas)]
        bounds = QueueBounds(held_max=10_000, class_held_max=(10_000,), tenant_held_max=10_000)
        policy = Policy(
            classes=(ClassSpec(hold_ns=HOLD_NS, ttft_ns=600 * S),), bounds=bounds, weights=dict(weights or {})
        )
        self.names = [f"s{i}" for i in range(count)]
        self._policy, self._addresses = policy, addresses
        self.schedulers: list[Scheduler] = []
        self.rng, self.token_ms, self.permits = Random(seed), token_ms, permits
        self.own = [OwnLoad(f"{name}-x") for name in self.names]
        self.peers = [PeerLoads(f"{name}-x") for name in self.names]
        self.shared = shared and count > 1
        self.clients = clients
        self.figures = Figures()
        self._events: list[tuple[int, int, Any, tuple[Any, ...]]] = []
        self._serial = 0
        self._waiting: dict[str, tuple[Client, int]] = {}
        self._running: dict[str, int] = dict.fromkeys(addresses, 0)
        self._queued: dict[str, list[tuple[int, Reservation, Client]]] = {each: [] for each in addresses}
        self._warm_ns = 0
        self._used_ns = 0
        self.now_ns = S
        self.schedulers += [self._scheduler(index) for index in range(count)]

    def _scheduler(self, index: int) -> Scheduler:
        pool = make_pool(*self._addresses, permits=self.permits)
        made = make_scheduler(pool, instance=self.names[index], policy=self._policy)
        made.dispatcher.on_release = self._decided
        made.next_step.sooner = partial(self._step_at, index)
        return made

    def run(self, seconds: float, *, warm_s: float = 10.0) -> Figures:
        """Play; the figures leave out the warm-up."""
        self._warm_ns = self.now_ns + int(warm_s * S)
        for client in self.clients:
            for _ in range(client.count):
                self._at(int(self.rng.random() * S), self._ask, client)
        for index in range(len(self.schedulers)):
            if self.shared:
                self._at(index * MESSAGE_NS // len(self.schedulers), self._tell, index)
            self._at(index * STEP_NS // len(self.schedulers), self._step, index, 0)
        ends_ns = self._warm_ns + int(seconds * S)
        while self._events[0][0] < ends_ns:
            at_ns, _, call, what = heapq.heappop(self._events)
            if at_ns > self._warm_ns:
                used = sum(min(each, self.permits) for each in self._running.values())
                self._used_ns += used * (at_ns - max(self.now_ns, self._warm_ns))
            self.now_ns = at_ns
            call(*what)
        places = self.permits * len(self._running)
        self.figures.busy = self._used_ns / (places * (ends_ns - self._warm_ns))
        placed = sum(map(len, self.figures.waits.values()))
        self.figures.overfilled /= max(1, placed)
        return self.figures

    def _at(self, in_ns: int, call: Any, *what: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now_ns + in_ns, self._serial, call, what))

    def _chosen(self, client: Client) -> int:
        """The service that Envoy asks."""
        return self.rng.randrange(len(self.schedulers))

    def _ask(self, client: Client, asked_ns: int = 0) -> None:
        asked_ns, index = asked_ns or self.now_ns, self._chosen(client)
        request = Request(
            kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=40, max_new_tokens=client.output
        )
        scheduler = self.schedulers[index]
        decision = scheduler.admit(request, Tenant(name=client.tenant), now_ns=self.now_ns)
        if isinstance(decision, Hold):
            self._waiting[decision.id] = (client, asked_ns)
        elif isinstance(decision, Routed):
            self._placed(decision, client, asked_ns)
        else:
            assert isinstance(decision, Reject)
            self._refused(client)

    def _decided(self, name: str, decision: Routed | Reject) -> None:
        client, asked_ns = self._waiting.pop(name)
        if isinstance(decision, Routed):
            self._placed(decision, client, asked_ns)
        else:
            self._refused(client)

    def _refused(self, client: Client) -> None:
        self.figures.rejected += 1
        self._at(S, self._ask, client)

    def _placed(self, routed: Routed, client: Client, asked_ns: int) -> None:
        address = routed.reservation.address
        if self._running[address] >= self.permits:
            # The engine's own queue takes what does not fit.
            self.figures.overfilled += asked_ns > self._warm_ns
            self._queued[address].append((asked_ns, routed.reservation, client))
        else:
            self._begin(address, routed.reservation, client, asked_ns)
        over = self._running[address] + len(self._queued[address]) - self.permits
        self.figures.overfull = max(self.figures.overfull, over)

    def _begin(self, address: str, reservation: Reservation, client: Client, asked_ns: int) -> None:
        self._running[address] += 1
        if asked_ns > self._warm_ns:
            self.figures.waits[client.tenant].append((self.now_ns - asked_ns) / S)
        tokens = max(1, round(client.output * self.rng.uniform(0.5, 1.5)))
        self._at(int(tokens * self.token_ms * MS), self._end, address, reservation, client, tokens)

    def _end(self, address: str, reservation: Reservation, client: Client, tokens: int) -> None:
        self._running[address] -= 1
        if self.now_ns > self._warm_ns:
            self.figures.tokens[client.tenant] += tokens
        if self._queued[address]:
            asked_ns, waiting, other = self._queued[address].pop(0)
            self._begin(address, waiting, other, asked_ns)
        outcome = Outcome(
            reservation=reservation,
            final=True,
            status=200,
            end=End.OK,
            served_by=address,
            attempts=1,
            duration_ns=int(tokens * self.token_ms * MS),
            prompt_tokens=10,
            output_tokens=tokens,
        )
        # To every service, one a little after the other.
        for scheduler in self.rng.sample(self.schedulers, len(self.schedulers)):
            self._serial += 1
            self._at(int(self.rng.uniform(0.5, 2.0) * MS), self._record, scheduler, outcome)
        self._at(int(self.rng.expovariate(1.0) * client.pause_s * S) + MS, self._ask, client)

    def _record(self, scheduler: Scheduler, outcome: Outcome) -> None:
        scheduler.settlement.settle(outcome, now_ns=self.now_ns)

    def _step(self, index: int, due_ns: int) -> None:
        scheduler = self.schedulers[index]
        if due_ns == scheduler.next_step.due_ns:  # otherwise one came sooner
            self._step_at(index, scheduler.step(now_ns=self.now_ns))

    def _step_at(self, index: int, due_ns: int) -> None:
        self._at(due_ns - self.now_ns, self._step, index, due_ns)

    def _tell(self, index: int) -> None:
        scheduler = self.schedulers[index]
        loads = {
            (each.pool, each.address): (each.requests, each.permits, each.tokens)
            for each in scheduler.fleet.endpoints
            if each.requests
        }
        publication = self.own[index].next(
            loads,
            now_ns=self.now_ns,
            needs=scheduler.peers.needs(scheduler.dispatcher.queue, now_ns=self.now_ns),
        )
        if publication is not None:
            for other in range(len(self.schedulers)):
                if other != index:
                    self._sent(other, publication.frame)
        self._at(self._pause_ns(index), self._tell, index)

    def _sent(self, other: int, frame: bytes) -> None:
        self._at(MS, self._hear, other, frame)

    def _pause_ns(self, index: int) -> int:
        """Until a service tells the next time."""
        return max(MS, self.own[index].due_ns - self.now_ns)

    def _hear(self, index: int, frame: bytes) -> None:
        self.peers[index].take(frame, now_ns=self.now_ns)
        self._told(index)

    def _told(self, index: int) -> None:
        """What is known of peers is another."""
        peers, scheduler = self.peers[index], self.schedulers[index]
        scheduler.peers.hear(map(owner_of, peers.names), peers.needs)
        for each in scheduler.fleet.endpoints:
            each.peer_requests, each.peer_permits, each.peer_tokens = peers.load(each.pool, each.address)
        peers.told()
