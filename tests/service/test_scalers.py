"""The part that tells KEDA, a webhook and Kubernetes, over a real scheduler and a test's plans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.config.load import ConfigError
from extproc.config.model import Config
from extproc.config.restart import restart_needed
from extproc.core.errors import Error
from extproc.core.events import Observer
from extproc.core.outcome import Hold, Reject
from extproc.core.request import Dialect, Request, RouteKind
from extproc.core.scaling.values import LoadTime, Need, PoolPlan
from extproc.core.tenant import Tenant
from extproc.core.turns import TurnRow
from extproc.observe.alerts.engine import AlertState
from extproc.service.app import App
from tests.stand.cluster import cluster, pod
from tests.stand.keda import KedaClient
from tests.stand.waits import until

S = 1_000_000_000


def config_of(*, scaled: bool = True, cold_hold_ms: int = 0, **scaling: Any) -> Config:
    pool: dict[str, Any] = {
        "name": "llama",
        "models": ["llama"],
        "hardware": "nvidia-h100",
        "endpoints": [{"address": "127.0.0.1:9"}],
    }
    if scaled:
        pool["scaling"] = {"min_replicas": 0, "max_replicas": 4}
    classes = [{"name": "standard", "cold_hold_ms": cold_hold_ms}]
    given = {"gateway": {"auth": "none"}, "pools": [pool], "classes": classes, "scaling": scaling}
    return Config.model_validate(given)


CHAT = Request(
    kind=RouteKind.CHAT, dialect=Dialect.OPENAI, model="llama", prompt_bytes=400, max_new_tokens=50
)
ACME = Tenant(name="acme", service_class="standard")


KEDA = {"external_scaler": {"listen": "127.0.0.1:1"}}


class World:
    """A service that listens on any free port, on a clock of the test's."""

    def __init__(self, config: Config) -> None:
        self.now_ns = 1_000_000 * S
        if config.scaling.external_scaler is not None:
            # Port 0 is none in a file; here it is any.
            object.__setattr__(config.scaling.external_scaler, "listen", "127.0.0.1:0")
        self.app = App(config, clock=lambda: self.now_ns)
        self.part = self.app.scalers

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """The part runs, and ends however a test does: a server that is left behind takes others along."""
        await self.part.start()
        try:
            yield
        finally:
            await self.part.stop()

    def publish(self, wanted: int, ready: int = 1, **more: Any) -> None:
        given: dict[str, Any] = {"loading": 0, "draining": 0, "why": "a test", **more}
        plan = PoolPlan(pool="llama", at_ns=self.now_ns, wanted=wanted, ready=ready, **given)
        self.app.scaling.publish(plan)

    def text(self) -> str:
        found = asyncio.run(self.app.measuring.exposition())
        return found[0].decode()

    def lines(self, *beginnings: str) -> dict[str, float]:
        """What /metrics says of names that begin so."""
        found = {}
        for line in self.text().splitlines():
            if line.startswith(beginnings):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def alerts(self, seconds: int) -> dict[str, AlertState]:
        """Rules that are pending or fire after so many seconds of one look each."""
        for _ in range(seconds):
            self.now_ns += S
            self.app.alerting.step(now_ns=self.now_ns)
        return {each.rule.name: each.state for each in self.app.alerting.engine.active.values()}


@pytest.fixture(autouse=True)
def in_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "llm")


def test_keda_is_told_of_plans_and_of_who_waits() -> None:
    """Through the service's own part: no plan, a plan, nothing wanted, somebody turned away, an old plan."""
    world = World(config_of(**KEDA))

    async def run() -> None:
        async with world.run():
            assert world.part.scaler is not None
            async with (
                KedaClient(world.part.scaler.address, pool="llama") as keda,
                aclosing(keda.stream_active()) as said,
            ):
                name, _ = await keda.metric_spec()
                with pytest.raises(grpc.aio.AioRpcError, match="no plan yet"):
                    await keda.metrics(name)
                world.publish(3)
                assert await keda.metrics(name) == 3_000
                assert await anext(said)
                world.publish(0, ready=0)
                assert not await anext(said)
                await until(lambda: world.part.scaler is not None and world.part.scaler.sleeping)
                routing = type("Routing", (), {"pool": "llama"})()
                world.part.refused(routing, Error.OVERLOADED.reject("full"), now_ns=world.now_ns)
                assert not await keda.is_active()
                world.part.refused(routing, Error.NO_READY_ENDPOINT.reject(), now_ns=world.now_ns)
                assert await anext(said)
                assert await keda.is_active()
                world.now_ns += 61 * S
                with pytest.raises(grpc.aio.AioRpcError, match="none that is fresh"):
                    await keda.is_active()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert world.part.status()["external"]["calls"]["GetMetrics"] == 2  # type: ignore[index]


@pytest.mark.parametrize("where", ["held here", "turned away here", "held elsewhere"])
def test_a_request_that_finds_nobody_ready_wakes_keda(where: str) -> None:
    """With nothing wanted: whoever waits or is turned away here, through the scheduler, and who waits at a
    service that shares; long before the stream's next look."""
    world = World(config_of(external_scaler={"listen": "127.0.0.1:1", "push_interval_s": 60.0}, cold_hold_ms=(
        60_000 if where == "held here" else 0
    )))  # fmt: skip
    scheduler = world.app.scheduler

    async def run() -> None:
        async with world.run():
            scaler = world.part.scaler
            assert scaler is not None
            world.publish(0, ready=0)
            scheduler.fleet.set_members({"llama": []})
            async with (
                KedaClient(scaler.address, pool="llama") as keda,
                aclosing(keda.stream_active()) as said,
            ):
                assert not await anext(said)
                await until(lambda: scaler.sleeping == {"llama"})
                world.part.step(now_ns=world.now_ns)
                assert scaler.sleeping
                if where == "held elsewhere":
                    scheduler.peers.hear(["other"], {"other": {"llama": [TurnRow("acme", 0, 1, 0)]}})
                    world.part.step(now_ns=world.now_ns)
                else:
                    decision = scheduler.admit(CHAT, ACME, now_ns=world.now_ns)
                    assert isinstance(decision, Hold if where == "held here" else Reject)
                assert await anext(said)
                assert await keda.is_active()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_service_without_an_external_scaler_hears_of_no_request() -> None:
    """Who does not use it pays nothing; who does pays at refusals alone."""
    assert World(config_of()).part.observers == ()
    world = World(config_of(**KEDA))
    assert world.part.observers == (world.part,)
    heard = {
        name
        for name in vars(Observer)
        if getattr(type(world.part), name, None) is not getattr(Observer, name)
    }
    assert {name for name in heard if not name.startswith("_")} == {"refused"}


def test_gauges_are_those_that_others_look_for() -> None:
    """WVA's names and labels, our own, what HPA must see; an old plan says no number of replicas."""
    world = World(config_of(**KEDA))
    need = Need(replicas=13, attainment=0.9, utilization=0.8, binding="kv")
    load_time = LoadTime(p50_s=40.0, p90_s=60.0, measured=3)
    world.publish(
        11, ready=8, loading=2, bound="max", need=need, need_high=need, load_time=load_time, horizon_s=75.0
    )
    world.now_ns += 2 * S
    variant = '{accelerator_type="nvidia-h100",namespace="llm",variant_name="llama"}'
    found = world.lines("wva_")
    assert found == {
        f"wva_desired_replicas{variant}": 11.0,
        f"wva_current_replicas{variant}": 10.0,
        f"wva_desired_ratio{variant}": 1.1,
    }
    own = world.lines("steersman_scal")
    pool = '{pool="llama"}'
    expected = {
        f"steersman_scaling_wanted_replicas{pool}": 11.0,
        f"steersman_scaling_reported_replicas{pool}": 11.002,
        'steersman_scaling_replicas{pool="llama",stage="loading"}': 2.0,
        'steersman_scaling_load_seconds{percentile="90",pool="llama"}': 60.0,
        f"steersman_scaling_loads_measured{pool}": 3.0,
        'steersman_scaling_binding{pool="llama",resource="kv"}': 1.0,
        'steersman_scaling_binding{pool="llama",resource="ttft"}': 0.0,
        'steersman_scaling_bound{bound="max",pool="llama"}': 1.0,
        f"steersman_scaling_unmet_replicas{pool}": 2.0,
        f"steersman_scaling_horizon_seconds{pool}": 75.0,
        f"steersman_scaling_plan_age_seconds{pool}": 2.0,
        "steersman_scaler_silence_seconds": 2.0,
    }
    assert {name: own.get(name) for name in expected} == expected
    world.now_ns += 100 * S
    assert world.lines("wva_", "steersman_scaling_wanted", "steersman_scaling_reported") == {}
    assert world.lines("steersman_scaling_plan_age") == {f"steersman_scaling_plan_age_seconds{pool}": 102.0}


def test_a_service_that_does_not_scale_says_nothing_of_it() -> None:
    """No sample, and no silence of a scaler that is not there."""
    world = World(config_of(scaled=False))
    assert world.lines("wva_", "steersman_scal") == {}
    assert world.part.signals() == {}


def test_fewer_are_told_when_kubernetes_knows_who_goes(tmp_path: Path) -> None:
    """Until the pods are marked, and for ten seconds at most, as many are reported as there are."""
    (tmp_path / "token").write_text("x")
    cost = {"namespace": "llm", "account_dir": str(tmp_path)}
    world = World(config_of(pod_deletion_cost=cost))

    async def run() -> None:
        async with world.run():
            world.publish(1, ready=3, leaving=("10.0.0.2:8000", "10.0.0.1:8000"))
            plan = world.part.plan("llama")
            assert plan is not None
            assert plan.wanted == 3
            world.now_ns += 9 * S
            world.publish(1, ready=3, leaving=("10.0.0.2:8000", "10.0.0.1:8000"))
            assert world.part.plan("llama").wanted == 3  # type: ignore[union-attr]
            world.now_ns += 2 * S
            assert world.part.plan("llama").wanted == 1  # type: ignore[union-attr]
            world.publish(4, ready=3)
            assert world.part.plan("llama").wanted == 4  # type: ignore[union-attr]

    asyncio.run(asyncio.wait_for(run(), 60))


def test_who_leaves_is_marked_before_fewer_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a plan to the pods' annotations, through a Kubernetes API, and then to KEDA; taken back when they
    stay, and when the setting goes."""
    (tmp_path / "token").write_text("the-account")
    cost = {"pod_deletion_cost": {"namespace": "llm", "account_dir": str(tmp_path)}}

    async def run() -> None:
        async with cluster(*(pod(f"llama-{i}", f"10.0.0.{i}") for i in range(3))) as api:
            monkeypatch.setenv("KUBERNETES_API", api.url)
            world = World(config_of(**cost, **KEDA))
            async with world.run():
                scaler, costs = world.part.scaler, world.part.costs
                assert scaler is not None
                assert costs is not None
                async with KedaClient(scaler.address, pool="llama") as keda:
                    name, _ = await keda.metric_spec()
                    api.open.clear()
                    world.publish(1, ready=3, leaving=("10.0.0.2:8000", "10.0.0.0:8000"))
                    assert await keda.metrics(name) == 3_000
                    api.open.set()
                    await until(lambda: costs.written("llama"))
                    assert api.costs() == {"llama-2": "-2", "llama-0": "-1"}
                    assert await keda.metrics(name) == 1_000
                    world.publish(3, ready=3)
                    await until(lambda: costs.written("llama"))
                    assert api.costs() == {}

    asyncio.run(asyncio.wait_for(run(), 60))


def test_alerts_fire_for_what_is_wrong() -> None:
    """Each of the four rules by its signal, after its time, and not before; not one when all is well."""
    world = World(config_of(**KEDA))
    world.publish(2, ready=2)
    assert world.alerts(110) == {}
    assert world.alerts(20) == {"ScalerUnasked": AlertState.FIRING}
    load = {"load_time": LoadTime(p50_s=10.0, p90_s=20.0), "horizon_s": 20.0}
    need = Need(replicas=6, attainment=0.9, utilization=0.9, binding="permits")
    world.publish(4, ready=2, bound="max", need=need, **load)
    found = world.alerts(59)
    assert found["ScalingLimited"] is AlertState.PENDING
    assert "ReplicasNotComing" not in found
    assert world.alerts(70)["ReplicasNotComing"] is AlertState.FIRING
    assert world.alerts(500)["ScalingLimited"] is AlertState.FIRING
    for wanted in (3, 4) * 4:
        world.publish(wanted, ready=4)
    found = world.alerts(62)
    assert found["ScalingFlaps"] is AlertState.FIRING


def test_a_reload_changes_who_is_told(tmp_path: Path) -> None:
    """A webhook comes and goes, and a pool that scales no more; the scaler's address needs a restart."""
    world = World(config_of())

    async def run() -> None:
        async with world.run():
            world.publish(2)
            assert world.part.notices is None
            hooked = config_of(webhook={"url": "http://127.0.0.1:1/x"})
            world.part.apply(hooked)
            notices = world.part.notices
            assert notices is not None
            assert notices.status()["waiting"] == 1
            world.part.apply(hooked)
            assert world.part.notices is notices
            world.part.apply(config_of(scaled=False))
            assert world.part.notices is None
            assert not world.part.pools()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert restart_needed(config_of(), config_of(**KEDA)) == ["scaling.external_scaler"]


def test_files_that_are_no_good_are_said(tmp_path: Path) -> None:
    """At the start, with the setting's path and the file."""
    empty = tmp_path / "token"
    empty.write_text("")
    for scaling, said in (
        (
            {"webhook": {"url": "http://h/x", "bearer_file": str(empty)}},
            r"scaling\.webhook\.bearer_file.*no token",
        ),
        (
            {"external_scaler": {"tls": {"certificate": str(empty), "key": str(tmp_path / "none")}}},
            r"scaling\.external_scaler\.tls.*cannot be read",
        ),
        (
            {"external_scaler": {"tls": {"certificate": str(empty), "key": str(empty)}}},
            r"scaling\.external_scaler\.tls.*no certificate",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            App(config_of(**scaling))
