"""The scaling part: what it counts, when it plans, whose plans are kept, and who hears of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from extproc.config.model import Config
from extproc.core.outcome import Outcome, Routed
from extproc.core.reach import Look
from extproc.core.reports import GpuReport, ReplicaReport, ReportedState
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scaling.values import PoolPlan
from extproc.scaling.worker import Answer, Job, Worker
from extproc.service.app import App
from extproc.state.share import OwnLoad, PeerLoads

S = 1_000_000_000
GIB = 2**30
SCALED = {"max_replicas": 4}
CHAT = Request(kind=RouteKind.CHAT, dialect=Dialect.OPENAI, prompt_bytes=4_000, max_new_tokens=200)


def config(scaled: dict[str, Any] | None, *addresses: str, **more: Any) -> Config:
    """A pool of these replicas, or of one; nothing is simulated beside unless `more` says so."""
    endpoints = [{"address": each} for each in addresses or ("10.0.0.1:80",)]
    pool: dict[str, Any] = {"name": "llama", "models": ["llama"], "endpoints": endpoints}
    if scaled is not None:
        pool["scaling"] = scaled
    return Config.model_validate(
        {"gateway": {"auth": "none"}, "pools": [pool], "scaling": {"simulate": False, **more}}
    )


class Town:
    """An App whose clocks, both, are the test's."""

    def __init__(self, given: Config) -> None:
        self.now_ns = 1_000 * S
        self.app = App(given, clock=lambda: self.now_ns)
        self.scaling = self.app.scaling
        self.scaling._wall_s = lambda: 1_750_000_000.0 + self.now_ns / 1e9

    def pass_time(self, seconds: float, *, per_second: float = 0.0) -> None:
        """Quarters of a second go by; so many requests a second come and end at once."""
        owed = 0.0
        for _ in range(int(seconds * 4)):
            self.now_ns += S // 4
            owed += per_second / 4
            while owed >= 1.0:
                owed -= 1.0
                self.request()
            self.scaling.step(now_ns=self.now_ns)

    def request(self) -> None:
        """A request that is served at once, of 1,000 tokens and 200 more."""
        tenant = self.app.processor.directory.anonymous
        decision = self.app.scheduler.admit(CHAT, tenant, now_ns=self.now_ns)
        if isinstance(decision, Routed):
            self.app.settle(
                Outcome(
                    reservation=decision.reservation,
                    final=True,
                    status=200,
                    prompt_tokens=1_000,
                    output_tokens=200,
                    duration_ns=S,
                    ttft_ns=S // 5,
                )
            )

    @property
    def plan(self) -> PoolPlan:
        return self.scaling.plans["llama"]


def plan(wanted: int, pool: str = "llama") -> PoolPlan:
    return PoolPlan(pool=pool, at_ns=wanted, wanted=wanted, ready=1, loading=0, draining=0, why="because")


def test_a_service_without_scaling_pools_listens_to_no_request() -> None:
    """Who does not scale pays nothing: the part is no observer until a pool has `scaling`."""
    app = App(config(None))
    assert app.scaling.observers == ()
    app.scaling.apply(config(SCALED))
    assert app.scaling.observers


def test_plans_reach_every_listener_and_are_kept() -> None:
    """A listener that fails is counted, and the others hear of the plan all the same."""
    app = App(config(SCALED))
    heard: list[PoolPlan] = []

    def fails(_plan: PoolPlan) -> None:
        raise OSError("gone")

    app.scaling.listeners += [fails, heard.append]
    app.scaling.publish(plan(2))
    app.scaling.publish(plan(3))
    assert [each.wanted for each in heard] == [2, 3]
    assert app.scaling.plans["llama"].wanted == 3
    assert [each.wanted for each in app.scaling.history("llama")] == [2, 3]
    assert app.scaling.status()["llama"]["wanted"] == 3
    assert app.scheduler.counts["exception.telling of a plan"] == 2


def test_a_pool_that_scales_no_more_has_no_plan() -> None:
    """A reload that takes `scaling` away takes its plans along."""
    app = App(config(SCALED))
    app.scaling.publish(plan(2))
    app.scaling.apply(config(None))
    assert app.scaling.plans == {}
    assert app.scaling.history("llama") == []


def test_load_makes_the_plan_grow_and_the_plan_says_what_it_was_made_of() -> None:
    """Requests that come are counted, what they were is sampled, and more replicas are wanted."""
    town = Town(config({"max_replicas": 9}))
    town.pass_time(20.0, per_second=1.0)
    assert town.plan.wanted == 1
    town.pass_time(120.0, per_second=40.0)
    assert town.plan.wanted > 2
    assert 35.0 < town.plan.now.requests_per_s < 45.0
    sample = town.plan.now.samples[-1]
    assert (sample.service_class, sample.prompt_tokens, sample.output_tokens) == ("standard", 1_000, 200)
    assert town.plan.horizon_s == 60.0 + 15.0 + 5.0
    assert town.scaling.history("llama")[-1].now.samples == ()


def test_what_another_service_refused_is_demand_here_too() -> None:
    """The others are told with the loads; there it counts as work that came and did not attain."""
    cold = {"classes": [{"name": "standard", "cold_hold_ms": 0, "hold_ms": 0}]}
    given = Config.model_validate(
        {
            **cold,
            "gateway": {"auth": "none"},
            "pools": [
                {"name": "llama", "models": ["llama"], "scaling": {"min_replicas": 0, "max_replicas": 4}}
            ],
            "scaling": {"simulate": False},
        }
    )
    one, other = Town(given), Town(given)
    told, peers = OwnLoad("one-1"), PeerLoads("other-1")

    def tell() -> None:
        one.now_ns += S
        said = told.next({}, now_ns=one.now_ns, refused=one.app.agents.refused())
        assert said is not None
        peers.take(said.frame, now_ns=other.now_ns)
        other.app.agents._on_peers(peers)

    for town in (one, other):
        town.pass_time(1.0)
    tell()
    for _ in range(3):
        one.request()
    tell()
    for town in (one, other):
        pool = town.scaling.pools["llama"]
        assert (pool.judged, pool.attained) == (3, 0)
        town.pass_time(30.0)
        assert town.plan.now.requests_per_s > 0.0


def test_a_request_that_is_held_for_want_of_any_replica_is_planned_for_at_once() -> None:
    """Between two plans: the pool that stands at zero is due when somebody waits."""
    given = config({"min_replicas": 0, "max_replicas": 2, "down_after_s": 0, "zero_after_s": 0})
    town = Town(given)
    town.scaling.publish(plan(0))
    town.scaling._due["llama"] = town.now_ns + 100 * S
    town.pass_time(0.25)
    assert town.plan.wanted == 0
    town.app.scheduler.dispatcher.queue.by_pool_count = lambda pool: 1  # type: ignore[method-assign]
    town.pass_time(0.25)
    assert town.plan.wanted == 1
    assert town.plan.held == 1


def test_replicas_are_told_apart_by_what_they_do() -> None:
    """Ready, loading by its agent's word, draining by an operator's; a dead one was ready once."""
    town = Town(config(SCALED, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"))
    fleet = town.app.scheduler.fleet
    town.pass_time(5.0)
    assert (town.plan.ready, town.plan.loading, town.plan.draining) == (4, 0, 0)
    loads = ReplicaReport(address="10.0.0.2:80", pool="llama", state=ReportedState.LOADING)
    fleet.heard(loads, now_ns=town.now_ns)
    fleet.drain("10.0.0.3:80", draining=True)
    fleet.looked("10.0.0.4:80", Look.REFUSED, now_ns=town.now_ns)
    fleet.step(now_ns=town.now_ns)
    town.pass_time(5.0)
    assert (town.plan.ready, town.plan.loading, town.plan.draining) == (1, 1, 1)


def test_a_load_is_measured_by_what_agents_say() -> None:
    """From the report that it loads to the one that it is ready; plans look as far ahead as that takes."""
    town = Town(config(SCALED))
    fleet = town.app.scheduler.fleet
    for state, seconds in ((ReportedState.LOADING, 120.0), (ReportedState.READY, 30.0)):
        for _ in range(int(seconds)):
            report = ReplicaReport(address="10.0.0.1:80", pool="llama", state=state)
            fleet.heard(report, now_ns=town.now_ns)
            fleet.step(now_ns=town.now_ns)
            town.pass_time(1.0)
    load = town.plan.load_time
    assert load.measured == 1
    assert 115.0 <= load.p90_s <= 125.0


def test_a_node_that_changes_models_is_measured_offered_and_told_of() -> None:
    """Its card bore one pool's replica and then another's: how long that took is advice, and where a pool
    wants more while the other gives one up on such a card, the plan names it."""
    scaled = {"max_replicas": 6, "load_time_s": 300.0, "down_after_s": 0.0}
    endpoints = {"chat": ["10.0.0.1:80"], "code": ["10.0.1.1:80", "10.0.1.2:80", "10.0.1.3:80"]}
    given = Config.model_validate(
        {
            "gateway": {"auth": "none"},
            "pools": [
                {
                    "name": name,
                    "models": [name],
                    "hardware": "A100",
                    "endpoints": [{"address": each} for each in addresses],
                    "scaling": scaled,
                }
                for name, addresses in endpoints.items()
            ],
            "scaling": {"simulate": False},
        }
    )
    town = Town(given)
    fleet = town.app.scheduler.fleet

    def reports(state: ReportedState, pool: str, address: str, seconds: int, kv: int = 100_000) -> None:
        card = GpuReport(
            uuid="GPU-1", name="A100", memory_used_bytes=70 * GIB, memory_total_bytes=80 * GIB,
            memory_others_bytes=3 * GIB,
        )  # fmt: skip
        for _ in range(seconds):
            told = {"node": "node-1", "models": (pool,), "kv_capacity_tokens": kv, "gpus": (card,)}
            fleet.heard(ReplicaReport(address=address, pool=pool, state=state, **told), now_ns=town.now_ns)
            fleet.step(now_ns=town.now_ns)
            town.pass_time(1.0)

    reports(ReportedState.READY, "chat", "10.0.0.1:80", 20)
    reports(ReportedState.GONE, "chat", "10.0.0.1:80", 60)
    reports(ReportedState.READY, "code", "10.0.1.1:80", 90, kv=80_000)
    (kind,) = {each.kind for each in town.scaling._facts["code"].values()}
    took = town.scaling.switches.of("code", kind)
    assert took.measured == 1
    assert 55.0 <= took.p50_s <= 75.0
    fact = town.scaling._facts["code"]["10.0.1.1:80"]
    assert (fact.node, fact.room_bytes, fact.used_bytes) == ("node-1", 77 * GIB, 67 * GIB)
    assert "a node that changes to this model: " in town.scaling.notes("code")[0]
    # Back again: code gives it up, and chat's replicas take five minutes.
    town.scaling.switches.times.loaded("chat", kind, 70.0)
    town.scaling.plans["code"] = PoolPlan(
        pool="code", at_ns=0, wanted=2, ready=3, loading=0, draining=0, why="", leaving=("10.0.1.1:80",)
    )
    (offer,) = town.scaling._offers("chat", {kind})
    assert (offer.node, offer.pool, offer.switch.p50_s) == ("node-1", "code", 70.0)


def test_what_was_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    """Counts, samples and load times are written at the end and read at the beginning."""
    given = config(SCALED, dir=str(tmp_path))

    async def life(town: Town, seconds: float) -> None:
        await town.scaling.start()
        town.pass_time(seconds, per_second=8.0)
        await town.scaling.stop()

    first = Town(given)
    first.scaling.loaded("llama", "", 77.0)
    first.scaling.loaded("llama", "", 78.0)
    first.scaling.loaded("llama", "", 79.0)
    asyncio.run(life(first, 180.0))
    second = Town(given)
    second.now_ns = first.now_ns
    asyncio.run(life(second, 0.0))
    pool = second.scaling.pools["llama"]
    _, rates = pool.forecaster.seasons.kept()
    assert [round(rate) for rate in rates if rate == rate][-1] == 8
    assert len(pool.demand.samples) > 100
    assert second.scaling.loads.of("llama", prior_s=60.0).p50_s == 78.0


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    """A file that is not ours, or was cut, stops nothing: it stands beside under another name."""
    for content in (b"", b"nonsense", b"steersman scaling 1\n" + b"x" * 40):
        (tmp_path / "scaling.kept").write_bytes(content)
        town = Town(config(SCALED, dir=str(tmp_path)))
        asyncio.run(town.scaling.start())
        assert (tmp_path / "scaling.kept.damaged").read_bytes() == content
        assert not (tmp_path / "scaling.kept").exists()
        town.pass_time(5.0)
        assert town.plan.wanted == 1


def test_many_pools_are_planned_a_few_at_a_time() -> None:
    """Twenty pools every five seconds: one a step, none left out."""
    pools = [
        {
            "name": f"p{i}",
            "models": [f"m{i}"],
            "endpoints": [{"address": f"10.0.{i}.1:80"}],
            "scaling": SCALED,
        }
        for i in range(20)
    ]
    town = Town(
        Config.model_validate({"gateway": {"auth": "none"}, "pools": pools, "scaling": {"simulate": False}})
    )
    seen: list[str] = []
    town.scaling.listeners.append(lambda each: seen.append(each.pool))
    town.pass_time(0.25)
    assert len(seen) == 1
    town.pass_time(4.75)
    assert sorted(seen) == sorted(f"p{i}" for i in range(20))


def test_the_worker_process_rests_three_times_as_long_as_it_worked() -> None:
    """However many pools want a check: one job at a time, and a fourth of the time at the most."""

    class Slow(Worker):
        jobs = 0

        async def ask(self, job: Job, *, timeout_s: float) -> Answer | None:
            self.jobs += 1
            town.now_ns += 40 * S
            return None

    async def go() -> None:
        town.pass_time(300.0, per_second=2.0)
        assert slow.jobs == 0  # nothing is asked for before the loop turns
        for _ in range(100):
            town.pass_time(1.0, per_second=2.0)
            await asyncio.sleep(0)
        assert slow.jobs == 1
        for _ in range(100):
            town.pass_time(1.0, per_second=2.0)
            await asyncio.sleep(0)
        assert slow.jobs == 2

    town = Town(config(SCALED, simulate=True))
    slow = Slow(clock=lambda: town.now_ns)
    town.scaling.worker = slow
    asyncio.run(go())
