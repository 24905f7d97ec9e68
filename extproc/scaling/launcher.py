"""Replicas as local processes: as many as are wanted, each in its own place, started again when they die.

Owns how many there are, who leaves, and the pause after a crash. What is wanted is told (`want`); what
becomes of one replica is replica.py's. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from extproc.config.pools import PoolConfig
from extproc.config.scaling import LauncherConfig
from extproc.core.scaling.values import ReplicaFact
from extproc.scaling.places import LocalPlace, LocalPlaces
from extproc.scaling.process import KeptFolder, KeptProcess
from extproc.scaling.replica import FleetSide, LaunchedReplica

log = logging.getLogger(__name__)

#: How long nothing is started after there was no place for a replica.
NO_PLACE_S: Final = 5.0
#: Doublings of the pause after a crash, at the most: beyond that it is backoff_max_s anyway.
DOUBLINGS_MAX: Final = 20
#: The pauses begin anew when there was no crash for so many of the longest one.
CALM_PAUSES: Final = 2.0

#: Takes (pool, hardware, seconds from the start to the first answer, whether none had been loaded before).
OnLoaded = Callable[[str, str, float, bool], None]


class PoolLauncher:
    """One pool's replicas on this machine. `where` is the settings' path in the file, for messages."""

    def __init__(
        self,
        pool: PoolConfig,
        settings: LauncherConfig,
        *,
        where: str,
        places: LocalPlaces,
        folder: KeptFolder,
        side: FleetSide,
        clock: Callable[[], int],
        on_loaded: OnLoaded,
        on_began: Callable[[str], None],
    ) -> None:
        self.pool, self.settings, self.where = pool, settings, where
        self._places, self._folder, self._side, self._clock = places, folder, side, clock
        self._on_loaded, self._on_began = on_loaded, on_began
        self.wanted = 0
        self.starts = self.crashes = self.loads = 0
        #: What keeps it from having as many as are wanted; "" when nothing does.
        self.problem = ""
        self._leaving: Sequence[str] = ()
        self._lives: dict[LaunchedReplica, asyncio.Task[None]] = {}
        self._since_ns: dict[LaunchedReplica, tuple[str, int]] = {}
        self._failures, self._failed_s = 0, 0.0
        #: Cards on which one has failed of late: they come last.
        self._bad: list[int] = []
        self._not_before_s = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def replicas(self) -> tuple[LaunchedReplica, ...]:
        """All that are not gone."""
        return tuple(self._lives)

    @property
    def staying(self) -> list[LaunchedReplica]:
        """Those that serve or will."""
        return [each for each in self._lives if not each.leaving]

    def want(self, count: int, leaving: Sequence[str] = ()) -> None:
        """Have so many; `leaving` are the addresses that go first when there are more."""
        self.wanted, self._leaving = max(0, count), tuple(leaving)
        self._settle()

    def take(self, settings: LauncherConfig, pool: PoolConfig, where: str) -> None:
        """A new configuration: what runs goes on as it was started; what starts from now on goes by it."""
        if settings != self.settings:
            # Perhaps it is what was wrong.
            self._failures, self._not_before_s = 0, 0.0
        self.pool, self.settings, self.where = pool, settings, where
        self._settle()

    def adopt(self, process: KeptProcess) -> None:
        """Take over a replica that runs already."""
        facts = process.facts
        place = self._places.hold(LocalPlace(int(facts["port"]), tuple(facts.get("cards", ()))))
        log.info("pool %s: the replica at %s runs on", self.pool.name, place.address)
        self._live(place, process)

    async def stop(self) -> None:
        """End all, at once; returns when nothing of them is left."""
        self._closing = True
        if self._again is not None:
            self._again.cancel()
        tasks = list(self._lives.items())
        for _, task in tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica, _ in tasks), return_exceptions=True)

    def facts(self) -> list[ReplicaFact]:
        """Each replica as scaling counts it."""
        found = []
        for each in self._lives:
            stage, since_ns = self._since_ns.get(each, ("", 0))
            if stage != each.stage:
                since_ns = self._clock()
                self._since_ns[each] = (each.stage, since_ns)
            fact = ReplicaFact(
                address=each.address,
                stage="draining" if each.leaving and each.stage != "gone" else each.stage,
                kind=self.pool.hardware,
                requests=self._side.requests(each.address),
                price_per_hour=self.pool.price_per_hour,
                since_ns=since_ns,
            )
            found.append(fact)
        return found

    def status(self) -> dict[str, Any]:
        """Figures."""
        return {
            "wanted": self.wanted,
            "problem": self.problem,
            "starts": self.starts,
            "crashes": self.crashes,
            "replicas": [
                {"address": fact.address, "stage": fact.stage, "requests": fact.requests, "gpus": list(cards)}
                for fact, cards in zip(self.facts(), (each.place.cards for each in self._lives), strict=True)
            ],
        }

    def _settle(self) -> None:
        if self._closing:
            return
        staying = self.staying
        for each in self._order(staying)[: max(0, len(staying) - self.wanted)]:
            log.info("pool %s: the replica at %s is not wanted any more", self.pool.name, each.address)
            each.leave()
        missing = self.wanted - len(self.staying)
        # Who has not gone yet stays: it is there already.
        for each in [each for each in self._lives if each.leaving][: max(0, missing)]:
            missing -= each.stay()
        loop = asyncio.get_running_loop()
        if missing <= 0:
            self._relieved()
            return
        if loop.time() < self._not_before_s:
            self._later(self._not_before_s - loop.time())
            return
        for _ in range(missing):
            if not self._begin():
                break

    def _order(self, replicas: Iterable[LaunchedReplica]) -> list[LaunchedReplica]:
        """Who goes first: as was told; then who does not serve yet, the youngest first; then by load."""
        told = {address: place for place, address in enumerate(self._leaving)}
        young = {each: -number for number, each in enumerate(self._lives)}
        return sorted(
            replicas,
            key=lambda each: (
                told.get(each.address, len(told)),
                each.stage == "ready",
                self._side.requests(each.address),
                young[each],
            ),
        )

    def _begin(self) -> bool:
        settings = self.settings
        place = self._places.take(
            settings.ports, settings.gpus, cards_each=self.pool.gpus if settings.gpus else 1, avoid=self._bad
        )
        if isinstance(place, str):
            self._complain(f"{self.where}: {place}")
            self._later(NO_PLACE_S)
            return False
        self.starts += 1
        self._on_began(self.pool.name)
        self._live(place, None)
        return True

    def _live(self, place: LocalPlace, process: KeptProcess | None) -> None:
        replica = LaunchedReplica(self.pool.name, place, self.settings, self._side, loaded=self._loaded)

        async def start() -> KeptProcess:
            settings, name = replica.settings, self.pool.name
            return await asyncio.to_thread(
                self._folder.start,
                [place.filled(part, name) for part in settings.command],
                environment={key: place.filled(value, name) for key, value in settings.environment.items()},
                port=place.port,
                stop_s=settings.stop_timeout_s,
                log_dir=None if settings.log_dir is None else Path(settings.log_dir),
                facts={"pool": name, "cards": list(place.cards)},
            )

        task = asyncio.get_running_loop().create_task(self._run(replica, process or start))
        self._lives[replica] = task

    async def _run(self, replica: LaunchedReplica, start: Any) -> None:
        try:
            await replica.run(start)
            log.info("pool %s: the replica at %s has ended", self.pool.name, replica.address)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next start waits its pause)
            await self._failed(replica, error)
        finally:
            if not self._closing:
                self._lives.pop(replica, None)
                self._since_ns.pop(replica, None)
                self._places.give_back(replica.place)
                self._settle()

    async def _failed(self, replica: LaunchedReplica, error: Exception) -> None:
        process, settings = replica.process, self.settings
        tail = process.tail if process is not None else []
        if process is not None:
            left = await asyncio.to_thread(process.sweep)
            if left:
                log.warning("pool %s: %d processes that it had left were ended", self.pool.name, left)
        if replica.leaving:
            return
        loop = asyncio.get_running_loop()
        self.crashes += 1
        calm = loop.time() - self._failed_s > CALM_PAUSES * settings.backoff_max_s
        self._failures, self._failed_s = 1 if calm else self._failures + 1, loop.time()
        self._bad = [*(card for card in self._bad if card not in replica.place.cards), *replica.place.cards]
        doublings = min(self._failures - 1, DOUBLINGS_MAX)
        pause_s = min(settings.backoff_max_s, settings.backoff_s * 2.0**doublings)
        self._not_before_s = loop.time() + pause_s
        said = "".join(f"\n  {line}" for line in tail)
        self._complain(
            f"{self.where}.command: {settings.command[0]!r} at {replica.address} {_worded(error)}; "
            f"the next start is in {pause_s:g} s{'. Its last lines:' if said else ''}{said}"
        )

    def _loaded(self, replica: LaunchedReplica, seconds: float) -> None:
        log.info("pool %s: the replica at %s is ready after %.1f s", self.pool.name, replica.address, seconds)
        self.loads += 1
        self._relieved()
        self._bad = [card for card in self._bad if card not in replica.place.cards]
        self._on_loaded(self.pool.name, self.pool.hardware, seconds, self.loads == 1)

    def _relieved(self) -> None:
        """As many serve as are wanted: nothing is wrong any more."""
        if sum(each.stage == "ready" for each in self.staying) >= self.wanted:
            self.problem = ""

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem)
        self.problem = problem

    def _later(self, seconds: float) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(seconds, self._settle)


def _worded(error: Exception) -> str:
    """How it failed, and where it can be mended."""
    said = getattr(error, "strerror", None) or str(error)
    if "No such file" in said:
        return f"{said}; write the path of a program, or install it"
    return str(said)
