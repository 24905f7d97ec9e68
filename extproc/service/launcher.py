"""The part that has replicas started and stopped as processes of this machine, as many as plans want.

Owns what passes between the launcher and the rest of the service: a replica that answers is a member of its
pool, one that is to go is drained first, and a pool that was found empty gets one at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from extproc.config.model import Config, PoolConfig
from extproc.config.places import name_of, run_folder
from extproc.config.scaling import LauncherConfig
from extproc.core.reach import ALIVE
from extproc.core.scaling.values import PoolPlan, ReplicaFact
from extproc.core.scheduler import Scheduler
from extproc.discovery.member import DiscoveredMember
from extproc.scaling.launcher import OnLoaded, PoolLauncher
from extproc.scaling.places import LocalPlaces
from extproc.scaling.process import KeptFolder, KeptProcess
from extproc.scaling.replica import FleetSide
from extproc.service.parts import Part
from extproc.service.pool_facts import kind_name
from extproc.service.probes import HEALTH_PATH, Ask, found
from extproc.service.roster import Roster
from extproc.service.scaling import ScalingPart
from extproc.service.upstreams import LookFailedError, ask

log = logging.getLogger(__name__)

SOURCE = "launcher"
FOLDER_SUFFIX = ".launcher"


class LauncherPart(Part):
    """One launcher for each pool that has `scaling.launcher`."""

    name = "launcher"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        roster: Roster,
        scaling: ScalingPart,
        *,
        clock: Callable[[], int],
        file: Callable[[], Path | None],
        asking: Ask = ask,
    ) -> None:
        self._config, self._scheduler, self._roster = config, scheduler, roster
        self._clock, self._file, self._ask = clock, file, asking
        self._places = LocalPlaces()
        self._folder: KeptFolder | None = None
        self._launchers: dict[str, PoolLauncher] = {}
        self._members: dict[str, dict[str, DiscoveredMember]] = {}
        #: Hear how long a replica took to load.
        self.loaded: list[OnLoaded] = []
        scaling.listeners.append(self._planned)
        scaling.starting = self.facts
        self.loaded.append(scaling.loaded)
        scheduler.dispatcher.on_cold.append(self._cold)

    async def start(self) -> None:
        """Take over what a predecessor has left running, and start what is to be there in any case."""
        if not any(_settings(pool) for pool in self._config.pools):
            return
        found_there = await asyncio.to_thread(self._found)
        self._set_up()
        for process in found_there:
            launcher = self._launchers.get(str(process.facts["pool"]))
            if launcher is None:
                log.info("the replica of pool %s is nobody's any more; it is ended", process.facts["pool"])
                await asyncio.to_thread(process.terminate)
            else:
                launcher.adopt(process)
        # Those that were ready are members before any Envoy is told who is there.
        await asyncio.sleep(0)
        for pool, launcher in self._launchers.items():
            self._tell(pool)
            self.want(pool, len(launcher.replicas))

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(launcher.stop() for launcher in self._launchers.values()))

    def apply(self, config: Config) -> None:
        """What runs goes on as it was started; pools that have no launcher any more lose their replicas."""
        self._config = config
        if self._folder is not None or any(_settings(pool) for pool in config.pools):
            self._set_up()
            for pool, launcher in self._launchers.items():
                self.want(pool, launcher.wanted)

    def want(self, pool: str, count: int, leaving: tuple[str, ...] = ()) -> None:
        """Have so many, within what the file allows; one at the least while somebody waits for a first."""
        launcher = self._launchers.get(pool)
        if launcher is None:
            return
        scaling = next((each.scaling for each in self._config.pools if each.name == pool), None)
        if scaling is None or scaling.launcher is None:
            launcher.want(0)
            return
        known = self._scheduler.fleet.pools.get(pool)
        held = self._scheduler.dispatcher.queue.by_pool.get(pool)
        asked = held or (known is not None and known.cold.wanted)
        floor = max(scaling.min_replicas, 1 if asked else 0)
        launcher.want(min(max(count, floor), scaling.max_replicas), leaving)

    def facts(self, pool: str) -> list[ReplicaFact]:
        """Each replica that was started here, those that load too; none of a pool without a launcher."""
        launcher = self._launchers.get(pool)
        if launcher is None:
            return []
        kind = kind_name(launcher.pool.hardware, launcher.pool.gpus)
        return [replace(fact, kind=kind) for fact in launcher.facts() if fact.stage != "gone"]

    def status(self) -> dict[str, Any]:
        """Figures of each pool."""
        return {pool: launcher.status() for pool, launcher in self._launchers.items()}

    def _found(self) -> list[KeptProcess]:
        return list(self._own().found())

    def _own(self) -> KeptFolder:
        """The folder of the replicas' state files, which is this process's from now on."""
        if self._folder is None:
            service = self._config.service
            listen = service.listen[0]
            self._folder = KeptFolder(
                run_folder(listen, service.run_dir) / f"{name_of(listen)}{FOLDER_SUFFIX}"
            )
            self._folder.own()
            self._places.elsewhere = self._folder.cards_elsewhere
        return self._folder

    def _set_up(self) -> None:
        folder = self._own()
        for i, pool in enumerate(self._config.pools):
            if (settings := _settings(pool)) is None:
                continue
            file = self._file()
            where = f"{f'{file}: ' if file is not None else ''}pools[{i}].scaling.launcher"
            known = self._launchers.get(pool.name)
            if known is not None:
                known.take(settings, pool, where)
                continue
            self._launchers[pool.name] = PoolLauncher(
                pool,
                settings,
                where=where,
                places=self._places,
                folder=folder,
                side=FleetSide(
                    healthy=self._healthy,
                    joined=self._joined,
                    left=self._left,
                    drain=lambda address, draining: self._drain(address, draining=draining),
                    requests=self._requests,
                ),
                clock=self._clock,
                on_loaded=self._loaded,
                on_began=self._began,
            )

    def _planned(self, plan: PoolPlan) -> None:
        pool = self._scheduler.fleet.pools.get(plan.pool)
        if pool is None or plan.pool not in self._launchers:
            return
        if plan.load_time.p90_s > 0.0:
            pool.cold.takes(round(plan.load_time.p90_s * 1e9))
        own = self._members.get(plan.pool, {})
        # What somebody else has listed counts too, and is not ours to start or stop.
        others = sum(not each.draining and each.address not in own for each in pool.endpoints)
        self.want(plan.pool, plan.wanted - others, plan.leaving)

    def _cold(self, pool: str, _now_ns: int) -> None:
        launcher = self._launchers.get(pool)
        if launcher is not None:
            self.want(pool, max(1, launcher.wanted))

    def _began(self, name: str) -> None:
        pool = self._scheduler.fleet.pools.get(name)
        if pool is not None and pool.starting:
            pool.cold.began(now_ns=self._clock())

    def _loaded(self, pool: str, hardware: str, seconds: float, cold: bool) -> None:
        known = self._scheduler.fleet.pools.get(pool)
        if known is not None:
            known.cold.takes(round(seconds * 1e9))
        for told in self.loaded:
            told(pool, hardware, seconds, cold)

    def _joined(self, pool: str, address: str) -> None:
        settings = next((_settings(each) for each in self._config.pools if each.name == pool), None)
        if settings is None:
            return
        # It is beside us: another zone than ours would be a handicap that it does not have.
        member = DiscoveredMember(
            address, zone=self._config.service.zone, max_concurrent=settings.max_concurrent
        )
        self._members.setdefault(pool, {})[address] = member
        self._tell(pool)
        # Another process had this port, and a drain outlives a replica's blink.
        self._drain(address, draining=False)

    def _left(self, pool: str, address: str) -> None:
        if self._members.get(pool, {}).pop(address, None) is not None:
            self._tell(pool)

    def _tell(self, pool: str) -> None:
        if any(each.name == pool for each in self._config.pools):
            self._roster.told(pool, SOURCE, tuple(self._members.get(pool, {}).values()))

    def _drain(self, address: str, *, draining: bool) -> None:
        self._scheduler.fleet.drain(address, draining=draining)
        self._roster.publish()

    def _requests(self, address: str) -> int:
        fleet = self._scheduler.fleet
        pool = fleet.owner(address)
        endpoint = fleet.endpoint(pool, address) if pool is not None else fleet.leaving.get(address)
        return endpoint.requests + endpoint.peer_requests if endpoint is not None else 0

    async def _healthy(self, address: str) -> bool:
        pool = self._pool_of(address)
        try:
            status = await self._ask(address, HEALTH_PATH, self._config.probes.timeout_s)
        except (ConnectionRefusedError, LookFailedError):
            return False
        return found(status, pool.engine if pool is not None else "") in ALIVE

    def _pool_of(self, address: str) -> PoolConfig | None:
        return next(
            (
                launcher.pool
                for launcher in self._launchers.values()
                if any(each.address == address for each in launcher.replicas)
            ),
            None,
        )


def _settings(pool: PoolConfig) -> LauncherConfig | None:
    return pool.scaling.launcher if pool.scaling is not None else None
