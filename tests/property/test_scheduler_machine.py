"""Any order of decide, settle, heartbeat, cancel, expiry and reload keeps the books."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec import structs

from extproc.core.decide import ENDPOINTS_NAMED
from extproc.core.fleet import Endpoint, PoolSpec
from extproc.core.outcome import End, Outcome, Reservation, Routed
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import SchedulerLimits
from extproc.core.strategies import STRATEGIES
from extproc.core.tenant import ANONYMOUS
from tests.stand.examples import examples
from tests.stand.schedulers import make_reservation, make_scheduler, step

S = 1_000_000_000
TTL_NS = 60 * S
ADDRESSES = [f"10.0.0.{i}:80" for i in range(6)]
POOLS = ("p", "q", "renamed")

addresses = st.sampled_from([*ADDRESSES, "10.9.9.9:80", ""])
layouts = st.lists(
    st.tuples(st.sampled_from(POOLS), st.integers(1, 5)), min_size=len(ADDRESSES), max_size=len(ADDRESSES)
)
strategies = st.sampled_from(sorted(STRATEGIES))


def specs(layout: list[tuple[str, int]], strategy: str, kept: int) -> list[PoolSpec]:
    """Pools as a layout says: for each of the first `kept` addresses its pool and its permits."""
    placed = list(zip(ADDRESSES[:kept], layout, strict=False))
    return [
        PoolSpec(
            name=pool,
            models=(f"model-{pool}",),
            strategy=strategy,
            endpoints=tuple((address, "", most) for address, (where, most) in placed if where == pool),
        )
        for pool in POOLS
    ]


class SchedulerMachine(RuleBasedStateMachine):
    """One scheduler, a clock, and everybody who may say something to it."""

    reservations: Bundle[Reservation] = Bundle("reservations")

    @initialize(layout=layouts, strategy=strategies, seed=st.integers(0, 99))
    def begin(self, layout: list[tuple[str, int]], strategy: str, seed: int) -> None:
        self.now_ns = 0
        self.number = 0
        self.scheduler = make_scheduler(
            *specs(layout, strategy, len(ADDRESSES)),
            default_model="model-p",
            limits=SchedulerLimits(
                reservation_ttl_ns=TTL_NS, reservations_max=12, settled_remembered_max=1024
            ),
            rng=Random(seed),
        )
        self.seen: dict[int, Endpoint] = {}
        self.ended: set[str] = set()

    @rule(
        target=reservations,
        pool=st.sampled_from(POOLS),
        sequences=st.integers(1, 6),
        size=st.integers(0, 100_000),
        kind=st.sampled_from([RouteKind.CHAT, RouteKind.GENERATE, RouteKind.TOKENIZE]),
        degraded=st.sampled_from(["", "internal error"]),
    )
    def decide(self, pool: str, sequences: int, size: int, kind: RouteKind, degraded: str) -> Reservation:
        request = Request(
            kind=kind,
            dialect=Dialect.OPENAI,
            model=f"model-{pool}",
            prompt_bytes=size,
            sequences=sequences,
        )
        room = {
            e.address
            for e in self.scheduler.fleet.pools[pool].endpoints
            if e.ready
            and (kind is RouteKind.TOKENIZE or e.permits + e.standby + sequences <= e.max_concurrent)
        }
        permits = 0 if kind is RouteKind.TOKENIZE else sequences
        # Where a retry may go, by which endpoint comes first.
        beside = {
            first: {
                e.address
                for e in self.scheduler.fleet.pools[pool].endpoints
                if e.address in room - {first} and (not permits or e.may_stand_by(first, permits))
            }
            for first in room
        }
        full = len(self.scheduler.ledger) >= self.scheduler.settings.limits.reservations_max
        decision = self.scheduler.admit(request, ANONYMOUS, now_ns=self.now_ns, degraded=degraded)
        assert isinstance(decision, Routed) == (bool(room) and not full), decision
        if not isinstance(decision, Routed):
            return self.made("nowhere:1")
        named = decision.addresses
        assert set(named) <= room
        reason = decision.reason
        first, *others = (reason.candidates[i].address for i in reason.best)
        assert len({first, *others}) == 1 + len(others) == min(ENDPOINTS_NAMED, len(room))
        assert list(named) == [first, *(each for each in others if each in beside[first])]
        assert len(reason.scores) == len(reason.candidates)
        assert all(score >= 0 and not math.isnan(score) for score in reason.scores)
        assert reason.text()
        return decision.reservation

    def made(self, address: str) -> Reservation:
        """A reservation that another process made."""
        self.number += 1
        return make_reservation(
            id=f"other-{self.number}",
            model="model-p",
            pool=POOLS[self.number % 2],
            address=address,
            input_tokens=7,
            output_tokens=5,
            permits=2,
            prompt_bytes=28,
            stream=True,
        )

    @rule(target=reservations, address=addresses)
    def decided_elsewhere(self, address: str) -> Reservation:
        return self.made(address)

    @rule(
        reservation=reservations,
        end=st.sampled_from(list(End)),
        served_by=addresses,
        attempts=st.integers(0, 3),
        tokens=st.none() | st.integers(0, 10**8),
    )
    def settle(
        self, reservation: Reservation, end: End, served_by: str, attempts: int, tokens: int | None
    ) -> None:
        outcome = Outcome(
            reservation=reservation,
            final=True,
            end=end,
            served_by=served_by,
            attempts=attempts,
            prompt_tokens=tokens,
            output_tokens=tokens,
        )
        first = reservation.id not in self.ended
        assert self.scheduler.settlement.settle(outcome, now_ns=self.now_ns) is first, (
            "an end counts exactly once"
        )
        assert not self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)
        self.ended.add(reservation.id)
        assert reservation.id not in self.scheduler.ledger

    @rule(reservation=reservations, served_by=addresses)
    def heartbeat(self, reservation: Reservation, served_by: str) -> None:
        self.scheduler.settlement.settle(
            Outcome(reservation=reservation, final=False, served_by=served_by), now_ns=self.now_ns
        )

    @rule(reservation=consumes(reservations))
    def cancel(self, reservation: Reservation) -> None:
        self.scheduler.cancel(reservation.id, now_ns=0)
        assert reservation.id not in self.scheduler.ledger

    @rule(seconds=st.integers(0, 70))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * S
        step(self.scheduler, now_ns=self.now_ns)

    @rule(layout=layouts, strategy=strategies, kept=st.integers(0, len(ADDRESSES)))
    def reload(self, layout: list[tuple[str, int]], strategy: str, kept: int) -> None:
        self.scheduler.fleet.apply(specs(layout, strategy, kept))

    @rule(which=st.integers(0, 5), ready=st.booleans())
    def readiness(self, which: int, ready: bool) -> None:
        for endpoint in self.scheduler.fleet.endpoints[which : which + 1]:
            endpoint.ready = ready

    @invariant()
    def every_sum_is_its_reservations(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for endpoint in self.scheduler.fleet.endpoints:
            self.seen[id(endpoint)] = endpoint
        requests, permits, tokens = Counter[int](), Counter[int](), Counter[int]()
        for entry in self.scheduler.ledger.entries():
            key, reservation = id(entry.endpoint), entry.reservation
            self.seen[key] = entry.endpoint
            requests[key] += 1
            permits[key] += reservation.permits
            tokens[key] += reservation.input_tokens + reservation.output_tokens
        for key, endpoint in self.seen.items():
            assert (endpoint.requests, endpoint.permits, endpoint.tokens) == (
                requests[key],
                permits[key],
                tokens[key],
            )
        assert len(self.scheduler.ledger) <= self.scheduler.settings.limits.reservations_max

    @invariant()
    def an_address_has_one_set_of_books(self) -> None:
        if hasattr(self, "scheduler"):
            named = [endpoint.address for endpoint in self.scheduler.fleet.endpoints]
            assert len(named) == len(set(named))

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        step(self.scheduler, now_ns=self.now_ns + TTL_NS)
        assert len(self.scheduler.ledger) == 0
        for endpoint in self.seen.values():
            assert (endpoint.requests, endpoint.permits, endpoint.tokens) == (0, 0, 0), "zero at rest"


SchedulerMachine.TestCase.settings = examples(150, steps=40)
TestScheduler = SchedulerMachine.TestCase


def test_the_machine_can_fail() -> None:
    """A ledger that forgot to release would be noticed: the invariant is not vacuous."""
    machine = SchedulerMachine()
    machine.begin([("p", 5)] * len(ADDRESSES), "least_work", 1)
    reservation = machine.decide("p", 1, 10, RouteKind.CHAT, "")
    machine.scheduler.ledger._running[reservation.id].reservation = structs.replace(reservation, permits=2)
    try:
        machine.every_sum_is_its_reservations()
    except AssertionError:
        return
    raise AssertionError("the invariant did not notice a wrong sum")
