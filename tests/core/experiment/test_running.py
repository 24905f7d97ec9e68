from __future__ import annotations

import heapq
from collections import Counter
from random import Random
from typing import Any

import pytest
from msgspec import structs

from extproc.core.cachekeys import CacheCharge, CachedAnswer, Usage
from extproc.core.experiment import (
    Arm,
    Experiment,
    Experiments,
    Guardrail,
    ShadowSpec,
    arm_parameters,
    shares_of,
)
from extproc.core.experiment.spec import composite
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.outcome import CacheHit, End, Outcome, Reject, Reservation, Routed
from extproc.core.policy import ClassSpec, Policy
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scheduler import Scheduler
from extproc.core.strategies import STRATEGIES, Strategy
from extproc.core.strategies.steer import Steer
from extproc.core.tenant import ANONYMOUS, Tenant
from tests.stand.changed import replace
from tests.stand.schedulers import make_pool, make_scheduler

S, MS = 1_000_000_000, 1_000_000
ADDRESSES = tuple(f"10.0.0.{i}:80" for i in range(1, 5))
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=400, max_new_tokens=50, stream=True)
AB = Experiment(
    name="x",
    pools=("p",),
    arms=(
        Arm(name="control", strategy="least_request", share=0.5),
        Arm(name="b", strategy="random", share=0.5),
    ),
)


def scheduler_of(
    *experiments: Experiment, seed: int = 1, policy: Policy | None = None, permits: int = 100
) -> Scheduler:
    spec = make_pool(
        *ADDRESSES, permits=permits, strategy="least_request", parameters=arm_parameters(experiments, "p", {})
    )
    scheduler = make_scheduler(spec, rng=Random(seed), policy=policy, experiments=Experiments(rng=Random(99)))
    scheduler.experiments.apply(experiments, now_ns=0)
    return scheduler


def admit(
    scheduler: Scheduler, request: Request = CHAT, tenant: Tenant = ANONYMOUS, now_ns: int = 0
) -> Reservation:
    decision = scheduler.admit(request, tenant, now_ns=now_ns)
    assert isinstance(decision, Routed), decision
    return decision.reservation


def end(reservation: Reservation, **facts: Any) -> Outcome:
    return Outcome(reservation=reservation, final=True, status=200, served_by=reservation.address, **facts)


def view(scheduler: Scheduler, now_ns: int = 0) -> dict[str, Any]:
    [found] = scheduler.experiments.view(now_ns=now_ns)
    return found


def arms(scheduler: Scheduler) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in view(scheduler)["arms"]}


def test_an_arm_decides_and_its_results_come_from_the_record() -> None:
    """The ticket says which arm it was, so another service counts the same from the same records."""
    here, there = scheduler_of(AB), scheduler_of(AB)
    records = []
    for i in range(40):
        reservation = admit(here, now_ns=i)
        records.append(end(reservation, ttft_ns=100 * MS, duration_ns=200 * MS, output_tokens=50))
    seen = Counter((record.reservation.arm, record.reservation.strategy) for record in records)
    assert set(seen) == {("x/control", "least_request"), ("x/b", "random")}
    for record in records:
        here.settlement.settle(record, now_ns=S)
        there.settlement.settle(record, now_ns=2 * S)
    assert arms(here) == arms(there)
    assert sum(arm["requests"] for arm in arms(here).values()) == 40
    assert arms(here)["b"]["attainment"]["mean"] == 1.0


def test_a_hit_of_the_cache_is_in_no_arm() -> None:
    """Nor refused in one: its figures are of what replicas served."""
    tokens = CachedAnswer(body=b"{}", stream=False, age_s=1, usage=Usage(5, 5), charge=CacheCharge.TOKENS)
    mixed = scheduler_of(AB)
    for _ in range(60):
        reservation = admit(mixed)
        mixed.settlement.settle(end(reservation, output_tokens=5), now_ns=S)
    before = arms(mixed)
    for _ in range(60):
        assert isinstance(mixed.admit(CHAT, ANONYMOUS, now_ns=S, cached=tokens), CacheHit)
    assert arms(mixed) == before
    assert before["b"] != arms(scheduler_of(AB))["b"]
    assert mixed.counts["cache.hits"] == 60


def test_a_record_that_comes_twice_counts_once() -> None:
    """And one of an experiment that is not here counts nowhere."""
    scheduler = scheduler_of(AB)
    record = end(admit(scheduler), ttft_ns=1, duration_ns=2)
    scheduler.settlement.settle(record, now_ns=1)
    scheduler.settlement.settle(record, now_ns=2)
    stranger = replace(record, reservation=structs.replace(record.reservation, id="other-1", arm="y/b"))
    scheduler.settlement.settle(stranger, now_ns=3)
    assert sum(arm["requests"] for arm in arms(scheduler).values()) == 1


def test_who_is_left_out() -> None:
    """Tenants with a strategy of their own, what costs no permit; and all before its time and after."""
    scheduler = scheduler_of(replace(AB, start_ns=10, end_ns=20))
    own = replace(ANONYMOUS, strategy="round_robin")
    tokenize = replace(CHAT, kind=RouteKind.TOKENIZE)
    assert admit(scheduler, now_ns=5).arm == ""
    assert admit(scheduler, now_ns=15).arm.startswith("x/")
    assert (admit(scheduler, CHAT, own, now_ns=15).arm, admit(scheduler, CHAT, own, now_ns=15).strategy) == (
        "",
        "round_robin",
    )
    assert admit(scheduler, tokenize, now_ns=15).arm == ""
    assert admit(scheduler, now_ns=20).arm == ""
    assert [each.why for each in scheduler.experiments.step(now_ns=20)] == ["its time is over"]
    assert view(scheduler, 21)["state"] == "ended"


@pytest.mark.parametrize(
    ("requests", "same"),
    [
        ([replace(CHAT, user="ann", segments=(str(i),)) for i in range(6)], True),
        # A conversation grows behind its first user's text.
        (
            [
                replace(
                    CHAT,
                    segments=("be kind", "hello", *("more",) * i),
                    marks=(b'\xff"system"', b'\xff"user"', *(b'\xff"assistant"',) * i),
                )
                for i in range(6)
            ],
            True,
        ),
        # The same system prompt and another question is another conversation: arms differ among so many.
        (
            [
                replace(CHAT, segments=("be kind", f"q{i}"), marks=(b'\xff"system"', b'\xff"user"'))
                for i in range(30)
            ],
            False,
        ),
        ([CHAT] * 30, False),
    ],
)
def test_sessions_stay_in_their_arm(requests: list[Request], same: bool) -> None:
    """By the user that the client names, else by how the conversation begins."""
    scheduler = scheduler_of(replace(AB, split="session"))
    drawn = [admit(scheduler, request) for request in requests]
    assert (len({each.arm for each in drawn}) == 1) is same
    assert all(each.unit for each in drawn)
    if same:
        assert len({each.unit for each in drawn}) == 1


def test_tenants_stay_in_their_arm() -> None:
    """Whatever they ask; and the intervals count tenants."""
    scheduler = scheduler_of(replace(AB, split="tenant", unit_requests=2))
    tenants = [replace(ANONYMOUS, name=f"t{i}") for i in range(12)]
    for tenant in tenants:
        drawn = [admit(scheduler, replace(CHAT, user=str(i)), tenant) for i in range(4)]
        assert len({each.arm for each in drawn}) == 1
        for each in drawn:
            scheduler.settlement.settle(end(each, ttft_ns=1, duration_ns=2), now_ns=1)
    found = arms(scheduler)
    assert sum(arm["requests"] for arm in found.values()) == 48
    assert sum(arm["attainment"]["count"] for arm in found.values()) == 12


def test_what_we_refuse_is_missed() -> None:
    """Refused and shed for want of room count against the arm, a spent quota or a bad request does not."""
    policy = Policy(classes=(ClassSpec(hold_ns=5 * S),))
    scheduler = scheduler_of(AB, policy=policy, permits=1)
    heard = []
    scheduler.dispatcher.on_release = lambda _id, decision: heard.append(decision)
    for _ in range(8):
        scheduler.admit(CHAT, ANONYMOUS, now_ns=1)
    assert isinstance(scheduler.admit(replace(CHAT, sequences=2), ANONYMOUS, now_ns=1), Reject)
    scheduler.leave(next(iter(scheduler.dispatcher.waiting)), now_ns=2 * S)
    scheduler.dispatcher.shed(now_ns=7 * S)
    assert all(isinstance(each, Reject) for each in heard)
    found = arms(scheduler).values()
    # Four wait; the client of one left after its first token was due, three are shed.
    assert sum(arm["shed"] for arm in found) == 4
    assert sum(arm["requests"] for arm in found) == 4
    assert sum(arm["attainment"]["count"] for arm in found) == 4


def test_parameters_of_an_arm_are_its_own() -> None:
    """The pool's of that strategy, and the arm's over them; the instances are apart, and outlive a reload."""
    arms_of_steer = (
        Arm(name="control", strategy="steer", share=0.5),
        Arm(name="b", strategy="steer", share=0.5, parameters={"queue_tokens": 2048}),
    )
    pool = {"steer": {"queue_tokens": 512, "guard": False}}
    given = arm_parameters([replace(AB, arms=arms_of_steer)], "p", pool)
    assert given == {
        "steer#x/control": {"queue_tokens": 512, "guard": False},
        "steer#x/b": {"queue_tokens": 2048, "guard": False},
    }
    assert arm_parameters([replace(AB, arms=arms_of_steer)], "other", pool) == {}
    endpoints = ((ADDRESSES[0], "", 4),)
    spec = PoolSpec(
        name="p", models=("m",), strategy="steer", endpoints=endpoints, parameters={**pool, **given}
    )
    fleet = Fleet([spec])
    own = fleet.pools["p"].strategy_named("steer")
    control = fleet.pools["p"].strategy_named(composite("steer", "x", "control"))
    arm = fleet.pools["p"].strategy_named(composite("steer", "x", "b"))
    tokens = [each.queue_tokens for each in (own, control, arm) if isinstance(each, Steer)]
    assert tokens == [512, 512, 2048]
    assert len({id(own), id(control), id(arm)}) == 3
    fleet.apply([replace(spec, parameters=pool)])
    assert fleet.pools["p"].strategy_named("steer") is own
    assert fleet.pools["p"].plain


def test_a_reload_goes_on_counting_the_same_question() -> None:
    """Another share is another question; what was taken away is still told."""
    scheduler = scheduler_of(AB)
    scheduler.settlement.settle(end(admit(scheduler), ttft_ns=1, duration_ns=2), now_ns=1)
    scheduler.experiments.apply([replace(AB, guardrail=Guardrail(worse_by=0.2), requests_max=9)], now_ns=2)
    assert sum(arm["requests"] for arm in arms(scheduler).values()) == 1
    shares = (replace(AB.arms[0], share=0.75), replace(AB.arms[1], share=0.25))
    scheduler.experiments.apply([replace(AB, arms=shares)], now_ns=3)
    assert sum(arm["requests"] for arm in arms(scheduler).values()) == 0
    scheduler.experiments.apply([], now_ns=4)
    assert scheduler.experiments.view(now_ns=5) == []
    assert scheduler.experiments.past == ["x"]
    assert scheduler.experiments.view("x", now_ns=5)[0]["state"] == "stopped"
    assert admit(scheduler).arm == ""


def test_a_stop_in_the_file_holds_and_can_be_taken_back() -> None:
    """A stopped arm's traffic goes the control's way and is in no arm; the file can take a stop back."""
    stopped = replace(AB, stopped={"b": "too slow"})
    scheduler = scheduler_of(stopped)
    drawn = [admit(scheduler) for _ in range(30)]
    assert {(each.arm, each.strategy) for each in drawn} == {
        ("x/control", "least_request"),
        ("", "least_request"),
    }
    assert view(scheduler)["rerouted"] == sum(each.arm == "" for each in drawn)
    assert view(scheduler)["verdict"] == ["b was stopped: too slow."]
    scheduler.experiments.apply([AB], now_ns=1)
    assert {admit(scheduler).arm for _ in range(30)} == {"x/control", "x/b"}


def test_it_ends_by_size() -> None:
    """When so many were counted."""
    scheduler = scheduler_of(replace(AB, requests_max=3))
    for _ in range(3):
        scheduler.settlement.settle(end(admit(scheduler), ttft_ns=1, duration_ns=2), now_ns=1)
    assert scheduler.experiments.step(now_ns=1) == []
    [happened] = scheduler.experiments.step(now_ns=2 * S)
    assert (happened.experiment, happened.arm) == ("x", "")
    assert admit(scheduler).arm == ""


def test_shares() -> None:
    """Arms without one divide what is left; too much or too little is a mistake."""
    assert shares_of({"a": None, "b": 0.1, "c": None}) == {
        "a": pytest.approx(0.45),
        "b": 0.1,
        "c": pytest.approx(0.45),
    }
    assert shares_of({"a": 0.5, "b": 0.5}) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match=r"sum to 0\.7"):
        shares_of({"a": 0.5, "b": 0.2})
    with pytest.raises(ValueError, match="leaves nothing for c"):
        shares_of({"a": 0.5, "b": 0.5, "c": None})


class Replicas:
    """Four replicas, each a line before one worker; the last is eight times as slow. Simulated."""

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self.scheduler, self.rng = scheduler, Random(seed)
        self.free_ns = dict.fromkeys(ADDRESSES, 0)
        self.ends: list[tuple[int, int, Outcome]] = []
        self.stops: list[tuple[int, str, str]] = []

    def run(self, requests: int, *, gap_ms: float, mean_ms: float) -> None:
        """Poisson arrivals; ends are settled in order, and the experiment looks each simulated second."""
        now_ns = 1
        for number in range(requests):
            now_ns += round(self.rng.expovariate(1 / gap_ms) * MS)
            while self.ends and self.ends[0][0] <= now_ns:
                at_ns, _, outcome = heapq.heappop(self.ends)
                self.scheduler.settlement.settle(outcome, now_ns=at_ns)
            for each in self.scheduler.experiments.step(now_ns=now_ns):
                self.stops.append((number, each.arm, each.why))
            reservation = admit(self.scheduler, now_ns=now_ns)
            where = reservation.address
            took = round(self.rng.expovariate(1 / mean_ms) * MS) * (8 if where == ADDRESSES[-1] else 1)
            begins = max(now_ns, self.free_ns[where])
            self.free_ns[where] = begins + took
            outcome = end(
                reservation,
                ttft_ns=begins + took - now_ns,
                duration_ns=begins + took - now_ns,
                output_tokens=1,
            )
            heapq.heappush(self.ends, (begins + took, number, outcome))


def test_the_guardrail_stops_a_bad_arm() -> None:
    """Random among unequal replicas loses to least_request, and is stopped in time; simulated."""
    scheduler = scheduler_of(AB, permits=10_000)
    replicas = Replicas(scheduler, seed=4)
    replicas.run(4_000, gap_ms=90, mean_ms=150)
    [(number, arm, why)] = replicas.stops
    assert arm == "b"
    assert number < 2_000
    assert "points less than control" in why
    found = view(scheduler)
    assert found["arms"][1]["stopped"] == why
    assert found["rerouted"] > 800
    assert found["arms"][0]["attainment"]["mean"] > found["arms"][1]["attainment"]["mean"] + 0.05


def test_the_guardrail_leaves_an_equal_arm() -> None:
    """The same strategy in both arms is never stopped, on any of twelve seeds; simulated."""
    same = replace(
        AB,
        arms=(AB.arms[0], Arm(name="b", strategy="least_request", share=0.5)),
        guardrail=Guardrail(worse_by=0.0),
    )
    for seed in range(12):
        scheduler = scheduler_of(same, permits=10_000)
        replicas = Replicas(scheduler, seed=seed)
        replicas.run(400, gap_ms=90, mean_ms=150)
        assert replicas.stops == []
    [sentence] = view(scheduler)["verdict"]
    assert "not told apart" in sentence


def test_the_guardrail_heeds_errors() -> None:
    """An arm whose requests fail is stopped, though nothing else differs."""
    scheduler, rng = scheduler_of(AB), Random(6)
    happened = []
    for i in range(600):
        reservation = admit(scheduler, now_ns=i * S)
        bad = reservation.arm == "x/b" and rng.random() < 0.5
        facts = {"end": End.ERROR} if bad else {"ttft_ns": 1, "duration_ns": 2}
        scheduler.settlement.settle(end(reservation, **facts), now_ns=i * S)
        happened += scheduler.experiments.step(now_ns=i * S)
    assert [each.arm for each in happened] == ["b"]


def test_a_shadow_changes_no_decision() -> None:
    """With it and without, the same requests go the same ways, to the last draw of chance."""
    for strategy in ("random", "power_of_two", "least_request", "steer"):
        ways = []
        for experiments in ((), (Experiment(name="s", pools=("p",), shadow=_shadow("random")),)):
            scheduler = scheduler_of(*experiments)
            scheduler.fleet.pools["p"].strategy = strategy
            ways.append([admit(scheduler, now_ns=i).address for i in range(20)])
        assert ways[0] == ways[1]


def _shadow(strategy: str, share: float = 1.0) -> ShadowSpec:
    return ShadowSpec(strategy=strategy, share=share)


def test_a_shadow_agrees_with_itself() -> None:
    """The same strategy sees the same and says the same; another one's choices are kept."""
    scheduler = scheduler_of(Experiment(name="s", pools=("p",), shadow=_shadow("least_request")))
    for i in range(50):
        assert admit(scheduler, now_ns=i).arm == ""
    shadow = view(scheduler)["shadow"]
    assert (shadow["asked"], shadow["agreed"], shadow["agreement"], shadow["last"]) == (50, 50, 1.0, [])
    scheduler = scheduler_of(Experiment(name="s", pools=("p",), shadow=_shadow("random", 0.5)))
    for i in range(200):
        admit(scheduler, now_ns=i)
    shadow = view(scheduler)["shadow"]
    assert 60 < shadow["asked"] < 140
    assert 0.05 < shadow["agreement"] < 0.6
    assert len(shadow["last"]) == 16
    assert all(each["chosen"] != each["shadow"] for each in shadow["last"])


def test_a_shadow_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception is counted and said, and the request goes its way."""

    class Broken(Strategy):
        name = "broken"

        def rank(self, *_: object, **__: object) -> None:
            raise RuntimeError("no idea")

    monkeypatch.setitem(STRATEGIES, "broken", Broken())
    scheduler = scheduler_of(Experiment(name="s", pools=("p",), shadow=_shadow("broken")))
    assert admit(scheduler).address in ADDRESSES
    shadow = view(scheduler)["shadow"]
    assert (shadow["failed"], shadow["last_failure"]) == (1, "RuntimeError: no idea")


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_can_watch(strategy: str) -> None:
    """None fails as a shadow, and none moves the books of endpoints."""
    scheduler = scheduler_of(Experiment(name="s", pools=("p",), shadow=_shadow(strategy)))
    bare = scheduler_of()
    request = replace(CHAT, segments=("x" * 3_000,), user="ann")
    for i in range(20):
        assert admit(scheduler, request, now_ns=i).address == admit(bare, request, now_ns=i).address
    assert view(scheduler)["shadow"]["failed"] == 0
    for mine, its in zip(scheduler.fleet.endpoints, bare.fleet.endpoints, strict=True):
        assert (mine.picked, mine.turn, mine.smooth, mine.tokens) == (
            its.picked,
            its.turn,
            its.smooth,
            its.tokens,
        )
