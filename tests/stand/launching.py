"""A launcher of one pool with real processes, and what the service around it hears."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from extproc.config.load import loads
from extproc.scaling import keeper
from extproc.scaling.launcher import PoolLauncher
from extproc.scaling.places import LocalPlaces
from extproc.scaling.process import KeptFolder, marked
from extproc.scaling.replica import FleetSide
from extproc.service.probes import ALIVE, found
from extproc.service.upstreams import ask

ENGINE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_engine.py")), "{port}"]


class LauncherStand:
    """A launcher of one pool, and what the service around it hears."""

    def __init__(self, folder: Path, *traits: str, gpus: int = 1, **settings: Any) -> None:
        self.folder = KeptFolder(folder)
        self.folder.own()
        self.members: list[str] = []
        self.drained: dict[str, bool] = {}
        self.running: dict[str, int] = {}
        self.loads: list[tuple[str, str, float, bool]] = []
        self.places = LocalPlaces()
        self.launcher = self.of([*ENGINE, *traits], gpus=gpus, **settings)

    def of(self, command: list[str], *, gpus: int = 1, **settings: Any) -> PoolLauncher:
        """A launcher of a command."""
        quick = {"backoff_s": 0.05, "backoff_max_s": 0.2, "stop_timeout_s": 5.0, **settings}
        scaling = {"max_replicas": 4, "launcher": {"command": command, **quick}}
        pool = {"name": "chat", "models": ["m"], "hardware": "NVIDIA L4", "gpus": gpus, "scaling": scaling}
        (config,) = loads(repr({"gateway": {"auth": "none"}, "pools": [pool]})).pools
        assert config.scaling is not None
        assert config.scaling.launcher is not None
        return PoolLauncher(
            config,
            config.scaling.launcher,
            where="steersman.yaml: pools[0].scaling.launcher",
            places=self.places,
            folder=self.folder,
            side=FleetSide(
                healthy=self.healthy,
                joined=lambda _, address: self.members.append(address),
                left=lambda _, address: self.members.remove(address),
                drain=self.drained.__setitem__,
                requests=lambda address: self.running.get(address, 0),
            ),
            clock=lambda: 7,
            on_loaded=lambda *facts: self.loads.append(facts),
            on_began=lambda _: None,
        )

    async def healthy(self, address: str) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return found(await ask(address, "/health", 5.0), "tgi") in ALIVE
        return False

    @property
    def stages(self) -> list[str]:
        return sorted(fact.stage for fact in self.launcher.facts())

    @property
    def pids(self) -> set[int]:
        """All processes that its engines are and have started."""
        own = f"{self.folder.path}/"
        return {pid for pid, mark in marked() if mark.startswith(own) and keeper.started(pid)}
