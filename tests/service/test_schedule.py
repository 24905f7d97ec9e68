"""The service and the simulator step the same scheduler on the same schedule; a fault stops nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from random import Random

import pytest
import uvloop

from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer
from extproc.core.outcome import Hold, Reject, Reservation, Routed
from extproc.core.policy import Policy, SchedulerLimits
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import ROUND_NS, STEP_NS, Scheduler
from extproc.core.slo import ClassSpec
from extproc.core.tenant import ANONYMOUS, Tenant
from extproc.service.schedule import Schedule
from extproc.sim.arrival import Arrival, Workload
from extproc.sim.replica import SimReplica
from extproc.sim.slots import ReplicaLimits
from extproc.sim.timing import hardware_named
from extproc.sim.world.world import Delays, World, WorldFault
from tests.stand.schedulers import make_pool, make_scheduler

S, MS = 1_000_000_000, 1_000_000
ADDRESS, TTL_S, GRACE_S = "10.0.0.1:80", 3, 6


class OverError(Exception):
    """The clock has come to its end."""


class VirtualClock:
    """Time that passes only while somebody sleeps; on its way it brings the requests that are due."""

    def __init__(self, scheduler: Scheduler, asked: list[tuple[int, Request, Tenant]], until_ns: int) -> None:
        self.now_ns, self.until_ns = 0, until_ns
        self.scheduler, self.asked = scheduler, deque(asked)

    def __call__(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        wake_ns = self.now_ns + round(seconds * 1e9)
        while self.asked and self.asked[0][0] <= wake_ns:
            self.now_ns, request, tenant = self.asked.popleft()
            self.scheduler.admit(request, tenant, now_ns=self.now_ns)
            wake_ns = min(wake_ns, self.scheduler.next_step.due_ns)
        self.now_ns = wake_ns
        if self.now_ns > self.until_ns:
            raise OverError


class Heard(Observer):
    """What became of whom, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        self.told.append(("placed", routing.id, now_ns))

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        self.told.append((reject.code, routing.id, now_ns))

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        self.told.append(("expired", reservation.id, now_ns))


class Asked(Scheduler):
    """A scheduler that remembers who asked when."""

    asked: list[tuple[int, Request, Tenant]]

    def admit(self, request: Request, tenant: Tenant, *, now_ns: int, **how: str):  # type: ignore[no-untyped-def,override]
        self.asked.append((now_ns, request, tenant))
        return super().admit(request, tenant, now_ns=now_ns, **how)


def scheduler_of(kind: type[Scheduler] = Scheduler) -> tuple[Scheduler, Heard]:
    """One replica of few places, before which requests wait for a while; nobody hears of its ends."""
    policy = Policy(classes=(ClassSpec(hold_ns=1_330 * MS),))
    made = make_scheduler(
        make_pool(ADDRESS, permits=4, strategy="steer"),
        kind=kind,
        instance="sim",
        policy=policy,
        limits=SchedulerLimits(reservation_ttl_ns=TTL_S * S),
    )
    heard = Heard()
    made.events.observers = (heard,)
    return made, heard


def test_the_service_sheds_when_the_simulator_does() -> None:
    """Who is placed, shed and expired, to the nanosecond: both before a replica that answers nobody."""
    rng = Random(7)
    times = sorted(rng.randrange(1, 8 * S) for _ in range(60))
    arrivals = [Arrival(at_ns, f"t{at_ns % 3}", 200 + at_ns % 900, 50, 60) for at_ns in times]
    simulated, there = scheduler_of(Asked)
    assert isinstance(simulated, Asked)
    simulated.asked = []
    limits = ReplicaLimits(kv_capacity_tokens=100_000, max_concurrent_requests=1_000, block_tokens=16)
    replica = SimReplica(hardware_named("a100-80g/llama-3-8b"), limits, rng=Random(1))
    World(
        simulated,
        {ADDRESS: replica},
        Workload("w", arrivals, 16, ("t0", "t1", "t2")),
        model="m",
        pool="p",
        delays=Delays(report_interval_ms=0.0),
        rng=Random(1),
        faults=[WorldFault(at_s=0.0, replica=0, hang=True)],
        grace_s=GRACE_S,
    ).run()

    served, here = scheduler_of()
    clock = VirtualClock(served, simulated.asked, times[-1] + GRACE_S * S)

    def failed(error: Exception, _what: str) -> None:
        raise error

    schedule = Schedule(served, clock=clock, failed=failed, sleep=clock.sleep)
    with pytest.raises(OverError):
        asyncio.run(schedule.steps())

    assert here.told == [each for each in there.told if each[2] <= clock.until_ns]
    kinds = {kind for kind, _, _ in here.told}
    assert kinds == {"placed", "overloaded", "expired"}
    shed = [
        at_ns - times[int(name.partition("-")[2]) - 1]
        for kind, name, at_ns in here.told
        if kind == "overloaded"
    ]
    assert all(1_330 * MS <= waited_ns < 1_330 * MS + STEP_NS for waited_ns in shed)


def test_a_fault_stops_nothing_else_that_time_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet cannot be stepped and a part fails: who else is due has a turn all the same."""
    scheduler, heard = scheduler_of()
    monkeypatch.setattr(scheduler.fleet, "step", lambda **_: 1 // 0)
    clock = VirtualClock(scheduler, [], 4 * ROUND_NS)
    faults: list[str] = []
    turns: list[int] = []

    def fails(_now_ns: int) -> None:
        raise ZeroDivisionError("a fault of ours")

    schedule = Schedule(scheduler, clock=clock, failed=lambda _, what: faults.append(what), sleep=clock.sleep)
    with pytest.raises(OverError):
        asyncio.run(schedule.steps(("one", fails), ("other", turns.append)))
    assert turns == [0, ROUND_NS, 2 * ROUND_NS, 3 * ROUND_NS, 4 * ROUND_NS]
    assert faults == ["stepping the fleet", "one"] * 5
    assert heard.told == []


def test_a_service_that_stalled_doubts_no_agent_before_it_could_be_heard() -> None:
    """Each sleep but one is punctual; the late one is made allowance for, from when it was due."""
    scheduler, _ = scheduler_of()
    clock = VirtualClock(scheduler, [], 30 * S)
    due: list[int] = []

    async def sleep(seconds: float) -> None:
        due.append(clock.now_ns + round(seconds * 1e9))
        await clock.sleep(10.0 if len(due) == 50 else seconds)

    schedule = Schedule(scheduler, clock=clock, failed=lambda error, _: None, sleep=sleep)
    with pytest.raises(OverError):
        asyncio.run(schedule.steps())
    absence, back_ns = scheduler.fleet.absence, due[48] + 10 * S
    assert absence.count == 1
    assert absence.as_of_ns(now_ns=back_ns) == due[49]


def test_what_waits_is_done_one_after_the_other_and_again_after_a_fault() -> None:
    """As often as rounds, each time from the first."""
    scheduler, _ = scheduler_of()
    clock = VirtualClock(scheduler, [], 2 * ROUND_NS)
    done: list[str] = []

    async def first() -> None:
        done.append("first")
        raise ZeroDivisionError("a fault of ours")

    async def second() -> None:
        done.append("second")

    schedule = Schedule(scheduler, clock=clock, failed=lambda _, what: done.append(what), sleep=clock.sleep)
    with pytest.raises(OverError):
        asyncio.run(schedule.beside(("fault", first), ("none", second)))
    assert done == ["first", "fault", "second"] * 2


def test_a_step_says_how_late_it_is() -> None:
    """Whoever watches the event loop hears it of each step."""
    scheduler, _ = scheduler_of()
    clock = VirtualClock(scheduler, [], 3 * ROUND_NS)

    async def oversleeps(seconds: float) -> None:
        await clock.sleep(seconds + 0.005)

    def failed(error: Exception, _what: str) -> None:
        raise error

    schedule = Schedule(scheduler, clock=clock, failed=failed, sleep=oversleeps)
    heard: list[float] = []
    schedule.late = heard.append
    with pytest.raises(OverError):
        asyncio.run(schedule.steps())
    assert heard == [pytest.approx(0.005)] * 2


def test_what_holds_the_loop_after_a_step_is_lag_too() -> None:
    """Others wait for it as long, whenever the next step is due."""
    scheduler, _ = scheduler_of()
    clock = VirtualClock(scheduler, [], ROUND_NS)

    def dawdles(_now_ns: int) -> None:
        clock.now_ns += 5 * STEP_NS

    schedule = Schedule(scheduler, clock=clock, failed=lambda _error, _what: None, sleep=clock.sleep)
    heard: list[float] = []
    schedule.late = heard.append
    with pytest.raises(OverError):
        asyncio.run(schedule.steps(("slow", dawdles)))
    assert heard == [pytest.approx(4 * STEP_NS / 1e9)]


def test_nobody_asks_and_the_service_sleeps() -> None:
    """It wakes for its rounds alone."""
    scheduler, _ = scheduler_of()
    clock = VirtualClock(scheduler, [], 4 * ROUND_NS)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await clock.sleep(seconds)

    schedule = Schedule(scheduler, clock=clock, failed=lambda _error, _what: None, sleep=sleep)
    with pytest.raises(OverError):
        asyncio.run(schedule.steps())
    assert slept == [ROUND_NS / 1e9] * 5


def test_who_is_held_wakes_the_service() -> None:
    """On the service's event loop: it sleeps until the next round, and is stepped within a step instead."""
    scheduler, _ = scheduler_of()
    clock_ns = 0
    stepped: list[int] = []

    def failed(error: Exception, _what: str) -> None:
        raise error

    async def scene() -> None:
        nonlocal clock_ns
        schedule = Schedule(scheduler, clock=lambda: clock_ns, failed=failed)
        heard = asyncio.Event()
        schedule.late = lambda _: heard.set()
        # The clock stands still and the round is an hour away by it: nothing but a request ends the sleep.
        scheduler.step(now_ns=0)
        scheduler.next_step.due_ns = scheduler._round_ns = 3_600 * S
        stepping = asyncio.create_task(schedule.steps())
        await asyncio.sleep(0)
        request = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=40, max_new_tokens=5)
        while not isinstance(scheduler.admit(request, ANONYMOUS, now_ns=clock_ns), Hold):
            pass
        async with asyncio.timeout(30):
            await heard.wait()
        stepped.append(scheduler.next_step.due_ns)
        stepping.cancel()

    uvloop.run(scene())
    assert stepped == [STEP_NS]


def test_no_step_comes_before_it_is_due() -> None:
    """On the service's event loop, whose timers come up to a millisecond early: no wake is in vain."""
    scheduler, _ = scheduler_of()
    early: list[float] = []

    def failed(error: Exception, _what: str) -> None:
        raise error

    async def ten() -> None:
        schedule = Schedule(scheduler, clock=time.monotonic_ns, failed=failed)
        done = asyncio.Event()

        def late(seconds: float) -> None:
            early.append(-seconds)
            if len(early) == 10:
                done.set()

        schedule.late = late
        stepping = asyncio.create_task(schedule.steps())
        async with asyncio.timeout(30):
            await done.wait()
        stepping.cancel()

    uvloop.run(ten())
    assert max(early) <= 0.0
