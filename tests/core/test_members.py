from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from extproc.core.endpoint import Endpoint
from extproc.core.fleet import Fleet, Member
from extproc.core.outcome import Outcome, Reservation, Routed
from extproc.core.reports import GpuReport, ReplicaReport, ReportedState
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.tenant import ANONYMOUS
from tests.stand.examples import examples
from tests.stand.schedulers import make_pool, make_scheduler

S = 1_000_000_000
POOLS = ("p", "q")
ADDRESSES = tuple(f"10.0.0.{i}:80" for i in range(5))


def fleet(**members: tuple[str, ...]) -> Fleet:
    return Fleet(
        make_pool(
            *members.get(pool, ()), permits=6, name=pool, models=(f"model-{pool}",), strategy="round_robin"
        )
        for pool in POOLS
    )


def scheduler(known: Fleet) -> Scheduler:
    return make_scheduler(known, default_model="model-p")


def admitted(scheduler: Scheduler, pool: str = "p", sequences: int = 1) -> Reservation | None:
    request = Request(
        kind=RouteKind.CHAT,
        dialect=Dialect.OPENAI,
        model=f"model-{pool}",
        prompt_bytes=40,
        sequences=sequences,
    )
    decision = scheduler.admit(request, ANONYMOUS, now_ns=0)
    return decision.reservation if isinstance(decision, Routed) else None


def members(*addresses: str, most: int = 6) -> list[Member]:
    return [Member(address, max_concurrent=most) for address in addresses]


def test_leaving_keeps_the_books_until_the_last_request_ends() -> None:
    """No decision names it any more; its requests settle on it; then it is gone."""
    here = scheduler(fleet(p=("1:1",)))
    reservation = admitted(here)
    assert reservation is not None
    [endpoint] = here.fleet.endpoints
    here.fleet.set_members({"p": members("2:2")})
    assert here.fleet.owner("1:1") is None
    assert here.fleet.endpoint("p", "1:1") is endpoint
    second = admitted(here)
    assert second is not None
    assert second.address == "2:2"
    here.fleet.step(now_ns=S)
    assert here.fleet.leaving == {"1:1": endpoint}
    assert here.settlement.settle(
        Outcome(reservation=reservation, final=True, status=200, served_by="1:1"), now_ns=S
    )
    here.fleet.step(now_ns=2 * S)
    assert here.fleet.leaving == {}
    assert here.fleet.endpoint("p", "1:1") is None
    assert endpoint.requests == 0


def test_a_return_finds_its_own_books() -> None:
    """Removed and back while requests run: one object, one set of permits (law: reserve, settle, expire)."""
    here = scheduler(fleet(p=("1:1",)))
    assert admitted(here, sequences=6) is not None
    [endpoint] = here.fleet.endpoints
    here.fleet.set_members({"p": []})
    assert admitted(here) is None
    here.fleet.set_members({"p": members("1:1")})
    assert here.fleet.endpoints == [endpoint]
    assert here.fleet.leaving == {}
    assert admitted(here) is None, "its permits are still taken"


def test_a_drain_outlives_a_blink() -> None:
    """An operator's drain holds through removal and return, and can be lifted after it."""
    here = scheduler(fleet(p=("1:1",)))
    assert admitted(here) is not None
    assert here.fleet.drain("1:1", draining=True)
    here.fleet.set_members({"p": []})
    assert not here.fleet.drain("1:1", draining=False), "it is not here now"
    here.fleet.set_members({"p": members("1:1")})
    here.fleet.step(now_ns=S)
    assert admitted(here) is None
    assert here.fleet.drain("1:1", draining=False)
    assert admitted(here) is not None


def test_what_left_idle_comes_back_new() -> None:
    """Without a request there is nothing to keep."""
    known = fleet(p=("1:1",))
    [before] = known.endpoints
    before.failures = 9
    known.set_members({"p": []})
    assert known.leaving == {}
    known.set_members({"p": members("1:1")})
    assert known.endpoints[0] is not before


def test_a_move_takes_up_the_other_pools_turn() -> None:
    """Each pool has its own rotation: one that comes from a busy pool is not left waiting."""
    here = scheduler(fleet(p=("1:1",), q=("2:2", "3:3")))
    for _ in range(100):
        reservation = admitted(here)
        assert reservation is not None
        here.cancel(reservation.id, now_ns=0)
    here.fleet.set_members({"p": [], "q": members("1:1", "2:2", "3:3")})
    chosen = []
    for _ in range(9):
        reservation = admitted(here, "q")
        assert reservation is not None
        chosen.append(reservation.address)
        here.cancel(reservation.id, now_ns=0)
    assert Counter(chosen) == {"1:1": 3, "2:2": 3, "3:3": 3}


def test_pools_not_named_stay_as_they_are() -> None:
    """A source speaks for its own pools; a pool that is not configured is no pool."""
    known = fleet(p=("1:1",), q=("2:2",))
    known.set_members({"q": members("3:3"), "nowhere": members("4:4")})
    assert [endpoint.address for endpoint in known.endpoints] == ["1:1", "3:3"]
    with pytest.raises(AssertionError, match="twice"):
        known.set_members({"q": members("1:1")})
    assert [endpoint.address for endpoint in known.endpoints] == ["1:1", "3:3"]


def test_reports_are_for_members_of_their_pool() -> None:
    """An agent cannot speak a replica into a pool, nor for another's."""
    known = fleet(p=("1:1",), q=("2:2",))
    assert known.heard(ReplicaReport(address="1:1", pool="p"), now_ns=1)
    assert not known.heard(ReplicaReport(address="1:1", pool="q"), now_ns=1)
    assert not known.heard(ReplicaReport(address="9:9", pool="p"), now_ns=1)


def test_what_silences_acts_before_the_next_step() -> None:
    """A dead or draining replica is out with the report that says so, and Envoy hears of it."""
    known = fleet(p=("1:1", "2:2"))
    version = known.version
    known.heard(ReplicaReport(address="1:1", pool="p", state=ReportedState.GONE), now_ns=S)
    known.heard(ReplicaReport(address="2:2", pool="p", state=ReportedState.DRAINING), now_ns=S)
    assert [endpoint.ready for endpoint in known.endpoints] == [False, False]
    assert known.version == version + 2
    known.heard(ReplicaReport(address="2:2", pool="p", state=ReportedState.READY), now_ns=S)
    assert known.endpoints[1].ready


def test_a_good_bye_makes_stale_and_does_not_raise_the_dead() -> None:
    """An agent that leaves while a model loads has not said that it is ready."""
    known = fleet(p=("1:1",))
    known.heard(ReplicaReport(address="1:1", pool="p", state=ReportedState.LOADING), now_ns=100 * S)
    known.silenced("1:1")
    known.silenced("9:9")
    known.step(now_ns=100 * S)
    [endpoint] = known.endpoints
    assert endpoint.stale
    assert known.pools["p"].blind
    known.step(now_ns=104 * S)
    assert not endpoint.ready


def test_versions_count_what_envoy_must_hear() -> None:
    """A steady fleet publishes nothing; a weight that moves does."""
    known = fleet(p=("1:1",))
    for second in range(1, 5):
        known.heard(ReplicaReport(address="1:1", pool="p", running=second), now_ns=second * S)
        known.step(now_ns=second * S)
    version = known.version
    hot = GpuReport(uuid="g", throttle_reasons=0x40, sm_clock_mhz=500, sm_clock_max_mhz=1000)
    known.heard(ReplicaReport(address="1:1", pool="p", gpus=(hot,)), now_ns=5 * S)
    known.step(now_ns=5 * S)
    assert known.version == version + 1
    known.step(now_ns=5 * S + 1)
    assert known.version == version + 1


class MembersMachine(RuleBasedStateMachine):
    """Members come, go, return and move while requests run on them and agents speak of them."""

    @initialize()
    def begin(self) -> None:
        self.now_ns = S
        self.scheduler = scheduler(fleet(p=ADDRESSES[:2], q=ADDRESSES[2:3]))
        self.running: dict[str, tuple[Reservation, Endpoint]] = {}

    @rule(layout=st.lists(st.sampled_from(["p", "q", ""]), min_size=5, max_size=5), most=st.integers(1, 8))
    def relist(self, layout: list[str], most: int) -> None:
        busy = {endpoint.address: endpoint for _, endpoint in self.running.values()}
        listed = {
            pool: members(
                *(a for a, where in zip(ADDRESSES, layout, strict=True) if where == pool), most=most
            )
            for pool in POOLS
        }
        self.scheduler.fleet.set_members(listed)
        for endpoint in self.scheduler.fleet.endpoints:
            assert busy.get(endpoint.address, endpoint) is endpoint, "a return is the same object"

    @rule(pool=st.sampled_from(POOLS), sequences=st.integers(1, 4))
    def admit(self, pool: str, sequences: int) -> None:
        reservation = admitted(self.scheduler, pool, sequences)
        if reservation is None:
            return
        endpoint = self.scheduler.ledger.endpoint_of(reservation.id)
        assert endpoint is not None
        assert endpoint in self.scheduler.fleet.pools[pool].endpoints
        assert endpoint.permits <= endpoint.max_concurrent
        self.running[reservation.id] = (reservation, endpoint)

    @rule(which=st.integers(0, 50))
    def end(self, which: int) -> None:
        if self.running:
            ident = sorted(self.running)[which % len(self.running)]
            reservation, endpoint = self.running.pop(ident)
            outcome = Outcome(reservation=reservation, final=True, served_by=endpoint.address)
            assert self.scheduler.settlement.settle(outcome, now_ns=self.now_ns)

    @rule(
        address=st.sampled_from(ADDRESSES),
        pool=st.sampled_from(POOLS),
        state=st.sampled_from(ReportedState),
        running=st.none() | st.integers(0, 9),
    )
    def report(self, address: str, pool: str, state: ReportedState, running: int | None) -> None:
        before = {e.address: (e.requests, e.permits, e.tokens) for e in self.scheduler.fleet.endpoints}
        said = ReplicaReport(address=address, pool=pool, state=state, running=running)
        assert self.scheduler.fleet.heard(said, now_ns=self.now_ns) == (
            self.scheduler.fleet.owner(address) == pool
        )
        for e in self.scheduler.fleet.endpoints:
            assert before[e.address] == (e.requests, e.permits, e.tokens)
            assert e.load_requests >= e.requests
            assert e.load_permits >= e.permits

    @rule(address=st.sampled_from(ADDRESSES), draining=st.booleans())
    def drain(self, address: str, draining: bool) -> None:
        self.scheduler.fleet.drain(address, draining=draining)

    @rule(quarters=st.integers(1, 40))
    def time_passes(self, quarters: int) -> None:
        for _ in range(quarters):
            self.now_ns += S // 4
            self.scheduler.fleet.step(now_ns=self.now_ns)
        for endpoint in self.scheduler.fleet.leaving.values():
            assert endpoint.requests > 0, "it leaves with its last request"

    @invariant()
    def one_set_of_books(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        here = self.scheduler.fleet
        addresses = [e.address for e in here.endpoints] + list(here.leaving)
        assert len(addresses) == len(set(addresses)), "no address twice"
        sums = Counter(endpoint.address for _, endpoint in self.running.values())
        for endpoint in [*here.endpoints, *here.leaving.values()]:
            assert endpoint.requests == sums[endpoint.address]
            assert min(endpoint.requests, endpoint.permits, endpoint.tokens, endpoint.foreign) >= 0
            assert 0.0 <= endpoint.health.value <= 1.0
        assert set(sums) <= set(addresses), "what runs is known"
        for name, pool in here.pools.items():
            assert all(endpoint.pool == name for endpoint in pool.endpoints)
        assert set(here._diagnoses) == set(addresses)

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            while self.running:
                self.end(0)
            self.scheduler.fleet.step(now_ns=self.now_ns)
            assert self.scheduler.fleet.leaving == {}


MembersMachine.TestCase.settings = examples(100, steps=40)
TestMembers = MembersMachine.TestCase
