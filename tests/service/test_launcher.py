"""Plans become processes, and processes members: the part between the launcher and the service."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import loads
from extproc.config.model import Config
from extproc.core.fleet import Fleet
from extproc.core.outcome import Hold, Routed
from extproc.core.scaling.values import LoadTime, PoolPlan
from extproc.core.scheduler import Scheduler
from extproc.scaling.process import marks
from extproc.service.build import pool_specs, settings_of
from extproc.service.launcher import LauncherPart
from extproc.service.roster import Roster
from extproc.service.scaling import ScalingPart
from tests.stand.holding import ACME, CHAT
from tests.stand.launching import ENGINE
from tests.stand.schedulers import make_scheduler
from tests.stand.waits import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is swept up is found in /proc")

S = 1_000_000_000


def config_of(folder: Path, *, command: list[str] = ENGINE, launched: bool = True, **scaling: Any) -> Config:
    settings = {"min_replicas": 0, "max_replicas": 3, "load_time_s": 60, **scaling}
    if launched:
        settings["launcher"] = {"command": command, "backoff_s": 0.05, "max_concurrent": 2}
    pool = {
        "name": "chat",
        "models": ["m"],
        "hardware": "NVIDIA L4",
        "endpoints": [{"address": "10.0.0.1:80"}] if not launched or scaling.get("min_replicas") else [],
        "scaling": settings,
    }
    text = {
        "gateway": {"auth": "none"},
        "service": {"run_dir": str(folder), "zone": "here"},
        "pools": [pool],
    }
    return loads(repr(text))


class PartStand:
    """A service's parts around the launcher."""

    def __init__(self, config: Config) -> None:
        fleet = Fleet(pool_specs(config))
        self.now_ns = 100 * S
        settings = settings_of(config)
        self.scheduler: Scheduler = make_scheduler(fleet, policy=settings.policy)
        self.roster = Roster(config, fleet)
        self.released: list[Any] = []
        self.scheduler.dispatcher.on_release = lambda _, decision: self.released.append(decision)
        self.scaling = ScalingPart(
            config, self.scheduler, clock=lambda: self.now_ns, failed=lambda error, _: print(error)
        )
        self.part = LauncherPart(
            config, self.scheduler, self.roster, self.scaling, clock=lambda: self.now_ns, file=lambda: None
        )
        self.loads: list[tuple[str, str, float, bool]] = []
        self.part.loaded.append(lambda *facts: self.loads.append(facts))

    def plan(self, wanted: int, *leaving: str) -> None:
        self.scaling.publish(
            PoolPlan(
                pool="chat",
                at_ns=self.now_ns,
                wanted=wanted,
                ready=0,
                loading=0,
                draining=0,
                why="",
                leaving=leaving,
                load_time=LoadTime(p50_s=20.0, p90_s=30.0),
            )
        )

    @property
    def addresses(self) -> list[str]:
        """Members that are ready, by the fleet."""
        return [each.address for each in self.scheduler.fleet.pools["chat"].endpoints if each.ready]

    @property
    def stages(self) -> list[str]:
        return sorted(each.stage for each in self.part.facts("chat"))


def play(config: Config, scene: Callable[[PartStand], Awaitable[None]]) -> None:
    async def run() -> None:
        stand = PartStand(config)
        try:
            await stand.part.start()
            await scene(stand)
        finally:
            await stand.part.stop()

    asyncio.run(run())
    folder = f"{config.service.run_dir}/"
    assert not [mark for mark in marks() if mark.startswith(folder)]


def test_plans_become_members(tmp_path: Path) -> None:
    """As many as are wanted, with the pool's hardware and the launcher's permits; the named one leaves."""

    async def scene(stand: PartStand) -> None:
        assert stand.stages == []
        stand.plan(2)
        await until(lambda: len(stand.addresses) == 2, stand.part.status)
        first, second = stand.addresses
        endpoint = stand.scheduler.fleet.endpoint("chat", first)
        assert endpoint is not None
        assert (endpoint.hardware, endpoint.max_concurrent, endpoint.zone) == ("NVIDIA L4", 2, "here")
        assert [(pool, cold) for pool, _, _, cold in stand.loads] == [("chat", True), ("chat", False)]
        stand.plan(1, first)
        await until(lambda: stand.stages == ["ready"], stand.part.status)
        assert stand.addresses == [second]

    play(config_of(tmp_path), scene)


def test_what_others_have_listed_counts(tmp_path: Path) -> None:
    """Of three that are wanted one is there already; never more than max_replicas."""

    async def scene(stand: PartStand) -> None:
        await until(lambda: stand.stages == ["ready"], "min_replicas is had without any plan")
        stand.plan(3)
        await until(lambda: stand.stages == ["ready", "ready"], stand.part.status)
        stand.plan(9)
        await until(lambda: len(stand.stages) == 3, stand.part.status)

    play(config_of(tmp_path, min_replicas=1), scene)


def test_the_first_request_starts_one_and_is_answered_by_it(tmp_path: Path) -> None:
    """At once, whatever the plan still says; the client hears nothing of it."""

    async def scene(stand: PartStand) -> None:
        held = stand.scheduler.admit(CHAT, ACME, now_ns=stand.now_ns)
        assert isinstance(held, Hold)
        assert stand.stages == ["starting"]
        stand.plan(0)
        assert len(stand.stages) == 1, "somebody waits for it"
        await until(lambda: stand.addresses, stand.part.status)
        stand.scheduler.step(now_ns=stand.now_ns + S)
        (decision,) = stand.released
        assert isinstance(decision, Routed)
        stand.plan(0)
        await until(lambda: stand.stages == ["draining"], stand.part.status)
        assert stand.scheduler.fleet.pools["chat"].endpoints, "its request still runs"
        stand.scheduler.cancel(decision.reservation.id, now_ns=stand.now_ns + 2 * S)
        await until(lambda: not stand.stages, stand.part.status)
        assert stand.scheduler.fleet.pools["chat"].endpoints == []

    play(config_of(tmp_path), scene)


def test_the_time_that_is_told_follows_what_was_measured(tmp_path: Path) -> None:
    """From the file at first, then by the plan's load time, from when the process began."""

    async def scene(stand: PartStand) -> None:
        cold = stand.scheduler.fleet.pools["chat"].cold
        assert cold.left_s(now_ns=stand.now_ns) == 60
        stand.plan(0)
        assert cold.left_s(now_ns=stand.now_ns) == 30
        stand.plan(1)
        stand.now_ns += 10 * S
        assert cold.left_s(now_ns=stand.now_ns) == 20

    play(config_of(tmp_path, command=[*ENGINE, "load=600"]), scene)


def test_a_reload_without_a_launcher_lets_its_replicas_go(tmp_path: Path) -> None:
    """Drained and ended; what the file lists stays. A reload with one begins anew."""

    async def scene(stand: PartStand) -> None:
        stand.plan(1)
        await until(lambda: len(stand.addresses) == 1, stand.part.status)
        without = config_of(tmp_path, launched=False)
        stand.roster.apply(without)
        stand.part.apply(without)
        await until(lambda: not stand.stages, stand.part.status)
        assert stand.addresses == ["10.0.0.1:80"]
        again = config_of(tmp_path)
        stand.roster.apply(again)
        stand.part.apply(again)
        stand.plan(1)
        await until(lambda: stand.stages == ["ready"], stand.part.status)

    play(config_of(tmp_path), scene)


def test_a_service_without_launchers_touches_nothing(tmp_path: Path) -> None:
    """No folder, no process, no figure."""

    async def scene(stand: PartStand) -> None:
        stand.plan(1)
        assert stand.part.status() == {}

    play(config_of(tmp_path, launched=False), scene)
    assert list(tmp_path.iterdir()) == []
