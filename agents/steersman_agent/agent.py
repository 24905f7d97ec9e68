"""The agent: composes collection and pushing, and lives until it is told to stop.

Owns the tasks and the newest view; judgement is replica.py's and report.py's, sending push.py's.
In-process use: `await Agent(config).run(stop_event)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

from steersman_agent.config import AgentConfig, AgentConfigError, ReplicaSettings, load
from steersman_agent.fetch import Fetcher
from steersman_agent.figures import GpuFigures, NodeView, ReplicaView
from steersman_agent.gpus import GpuSnapshot, GpuWatch, read_once
from steersman_agent.nvml_real import NoDriverError
from steersman_agent.others import Others, working
from steersman_agent.push import LEAVE_S, Numbers, pushers_for
from steersman_agent.replica import ReplicaBook
from steersman_agent.report import Pacer, resolve_gpus
from steersman_agent.state import ReplicaState
from steersman_agent.watch import ReplicaWatch

log = logging.getLogger(__name__)

#: GPU figures older than this (a driver that blocks) are not figures any more: only who the cards are.
GPUS_STALE_S: Final = 5.0
#: So long a replica is not spoken of before it was looked at in full: what is unknown counts as trouble.
FIRST_LOOK_S: Final = 1.0
#: A watch that failed begins anew after so long, twice as long each time, up to the most.
WATCH_AGAIN_S: Final = 1.0
WATCH_AGAIN_S_MAX: Final = 60.0
#: How often the configuration file is looked at.
CONFIG_LOOK_S: Final = 1.0


class Agent:
    """One node's agent; build and run it inside its event loop."""

    def __init__(
        self, config: AgentConfig, *, config_file: Path | None = None, rng: Random | None = None
    ) -> None:
        self.config = config
        self.pushers = pushers_for(
            config, numbers=Numbers(secrets.randbits(64)), rng=rng or Random(secrets.randbits(64))
        )
        self._rng = rng or Random(secrets.randbits(64))
        self._config_file = config_file
        self._fetcher: Fetcher | None = None
        self._watches: dict[str, tuple[ReplicaBook, asyncio.Task[None]]] = {}
        self._views: dict[str, ReplicaView] = {}
        self._watched_s: dict[str, float] = {}
        #: How long the next failure of a watch is waited for, by address.
        self._pauses_s: dict[str, float] = {}
        self._gpus = GpuSnapshot()
        self._others = Others()
        self._learnt = asyncio.Event()
        self._stopping = False
        self._pacer = Pacer(spacing_s=config.spacing_ms / 1000, heartbeat_s=config.heartbeat_ms / 1000)

    def view(self) -> NodeView:
        """Everything known now."""
        gpus = self._gpus.gpus
        if gpus and time.monotonic() - self._gpus.read_s > max(GPUS_STALE_S, 3 * self.config.nvml_ms / 1000):
            gpus = tuple(_identity_only(gpu) for gpu in gpus)
        return NodeView(node=self.config.node, replicas=tuple(self._views.values()), gpus=gpus)

    async def run(self, stop: asyncio.Event) -> None:
        """Collect and push until `stop`; then send `leaving` and end."""
        self._fetcher = Fetcher()
        gpu_watch = self._start_gpus()
        pushes = [asyncio.create_task(pusher.run()) for pusher in self.pushers]
        tasks = [asyncio.create_task(self._publish())]
        if self._config_file is not None:
            tasks.append(asyncio.create_task(self._follow_config(self._config_file)))
        for settings in self.config.replicas:
            self._watch(settings)
        stopped = asyncio.create_task(stop.wait())
        try:
            # A task of ours that ends before we are told to stop is a programmer's mistake: let it show.
            done, _ = await asyncio.wait({stopped, *tasks, *pushes}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._stopping = True
            for pusher in self.pushers:
                pusher.leave()
            await asyncio.wait(pushes, timeout=2 * LEAVE_S) if pushes else None
            for task in (stopped, *tasks, *pushes):
                task.cancel()
            watches = [task for _, task in self._watches.values()]
            for task in watches:
                task.cancel()
            await asyncio.gather(stopped, *tasks, *pushes, *watches, return_exceptions=True)
            if gpu_watch is not None:
                await asyncio.to_thread(gpu_watch.stop)
            await self._fetcher.close()

    def apply(self, config: AgentConfig) -> None:
        """Take the replicas and the drain list of a changed configuration; the rest needs a restart."""
        kept = {"replicas", "drain"}
        differing = [
            name
            for name in AgentConfig.model_fields
            if name not in kept and getattr(config, name) != getattr(self.config, name)
        ]
        if differing:
            log.warning("changed, but taken only at the next start: %s", ", ".join(differing))
        self.config = self.config.model_copy(update={"replicas": config.replicas, "drain": config.drain})
        wanted = {settings.address: settings for settings in config.replicas}
        for address, (book, task) in list(self._watches.items()):
            if wanted.get(address) != book.settings:
                task.cancel()
                del self._watches[address], self._watched_s[address]
                self._pauses_s.pop(address, None)
                self._views.pop(address, None)
        for settings in config.replicas:
            if settings.address not in self._watches:
                self._watch(settings)
            book = self._watches[settings.address][0]
            book.draining = settings.address in config.drain
            self._learn(book)

    def _watch(self, settings: ReplicaSettings) -> None:
        assert self._fetcher is not None
        book = ReplicaBook(settings, self.config)
        watch = ReplicaWatch(book, self._fetcher, changed=self._learn, rng=self._rng)
        task = asyncio.create_task(watch.run())
        task.add_done_callback(lambda ended: self._watch_ended(book, ended))
        self._watches[settings.address] = (book, task)
        self._watched_s[settings.address] = time.monotonic()
        self._learn(book)

    def _watch_ended(self, book: ReplicaBook, task: asyncio.Task[None]) -> None:
        """A watch ends by cancellation alone. Another end is our mistake: its replica is unknown until the
        watch, which begins anew, has looked at it in full."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        address = book.settings.address
        pause_s = self._pauses_s.get(address, WATCH_AGAIN_S)
        self._pauses_s[address] = min(2 * pause_s, WATCH_AGAIN_S_MAX)
        log.error("%s: watching it failed; again in %.0f s", address, pause_s, exc_info=error)
        view = self._views.get(address)
        if view is not None:
            detail = "the agent failed to watch it; see its log"
            self._views[address] = replace(view, state=ReplicaState.UNKNOWN, detail=detail)
            self._learnt.set()
        asyncio.get_running_loop().call_later(pause_s, self._watch_again, book, task)

    def _watch_again(self, book: ReplicaBook, ended: asyncio.Task[None]) -> None:
        """Unless it is watched by another by now, or no more."""
        address = book.settings.address
        if self._stopping or self._watches.get(address, (None, None))[1] is not ended:
            return
        since_s = self._watched_s[address]
        self._watch(book.settings)
        # It is no newcomer, whose first look would be waited for: what is not known of it is told.
        self._watched_s[address] = since_s
        self._watches[address][0].draining = book.draining

    def _learn(self, book: ReplicaBook) -> None:
        """A piece of evidence came in."""
        book.gpu_uuids = gpus_of(book.settings, self._gpus)
        view = book.view()
        before = self._views.get(book.settings.address)
        if before is not None and before.state is not view.state:
            log.info("%s: %s, was %s. %s", view.address, view.state.name, before.state.name, view.detail)
        self._views[book.settings.address] = view
        self._learnt.set()

    async def _publish(self) -> None:
        """Hand the view to the pushers when it changed, and at each heartbeat."""
        await self._first_look()
        while True:
            self._learnt.clear()
            now_s = time.monotonic()
            view = self._looked_at(now_s)
            due_s = self._pacer.due_s(view, now_s)
            if due_s <= now_s:
                self._pacer.sent(view, now_s)
                for pusher in self.pushers:
                    pusher.offer(view)
                continue
            try:
                async with asyncio.timeout(due_s - now_s):
                    await self._learnt.wait()
            except TimeoutError:
                continue

    def _looked_at(self, now_s: float) -> NodeView:
        """The view less the replicas whose first look is still under way."""
        view = self.view()
        told = tuple(
            replica
            for replica in view.replicas
            if replica.state is not ReplicaState.UNKNOWN
            or now_s - self._watched_s[replica.address] >= FIRST_LOOK_S
        )
        return view if len(told) == len(view.replicas) else replace(view, replicas=told)

    async def _first_look(self) -> None:
        """Until the first report can tell of every replica: it counts as all that the node has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                while any(view.state is ReplicaState.UNKNOWN for view in self._views.values()):
                    self._learnt.clear()
                    await self._learnt.wait()

    def _start_gpus(self) -> GpuWatch | None:
        if self.config.nvml == "off":
            return None
        loop = asyncio.get_running_loop()

        def publish(snapshot: GpuSnapshot) -> None:
            try:
                loop.call_soon_threadsafe(self._take_gpus, snapshot)
            except RuntimeError:
                log.debug("the loop is closed; a GPU reading came too late")

        watch = GpuWatch(
            self.config.nvml,
            interval_s=self.config.nvml_ms / 1000,
            ports=lambda: [one.port for one in self.config.replicas],
            publish=publish,
        )
        watch.start()
        return watch

    def _take_gpus(self, snapshot: GpuSnapshot) -> None:
        gpus = self._others.look(snapshot.gpus, snapshot.own_pids, working(self._views.values()))
        self._gpus = snapshot = replace(snapshot, gpus=gpus)
        for book, _ in self._watches.values():
            if book.gpu_uuids != gpus_of(book.settings, snapshot):
                self._learn(book)
        self._learnt.set()

    async def _follow_config(self, path: Path) -> None:
        """Take the file when it changes; one that cannot be used changes nothing."""
        seen = _stamp(path)
        while True:
            await asyncio.sleep(CONFIG_LOOK_S)
            stamp = _stamp(path)
            if stamp == seen or stamp is None:
                continue
            seen = stamp
            try:
                config = await asyncio.to_thread(load, path)
            except AgentConfigError as error:
                log.warning("the configuration stays as it was:\n%s", error)
            else:
                self.apply(config)
                log.info("took the replicas and the drain list of %s", path)


async def collect_once(config: AgentConfig) -> tuple[NodeView, str]:
    """One look at everything, and why there are no GPUs (empty where there are, or none are wanted)."""
    why = ""
    snapshot = GpuSnapshot()
    if config.nvml != "off":
        ports = [settings.port for settings in config.replicas if not settings.gpus]
        try:
            snapshot = await asyncio.to_thread(read_once, config.nvml, ports)
        except NoDriverError as error:
            why = str(error)
    fetcher = Fetcher()
    books = [ReplicaBook(settings, config) for settings in config.replicas]
    try:
        rng = Random(0)
        await asyncio.gather(
            *(ReplicaWatch(book, fetcher, changed=_ignore, rng=rng).once() for book in books)
        )
    finally:
        await fetcher.close()
    for book in books:
        book.gpu_uuids = gpus_of(book.settings, snapshot)
    view = NodeView(node=config.node, replicas=tuple(book.view() for book in books), gpus=snapshot.gpus)
    return view, why


def gpus_of(settings: ReplicaSettings, snapshot: GpuSnapshot) -> tuple[str, ...]:
    """UUIDs of the GPUs that a replica runs on: as configured, else by its process."""
    by_port: Mapping[int, tuple[str, ...]] = snapshot.uuids_by_port
    return resolve_gpus(settings.gpus, snapshot.gpus) if settings.gpus else by_port.get(settings.port, ())


def _identity_only(gpu: GpuFigures) -> GpuFigures:
    """Who a card is and what it has told of; no figure."""
    known = GpuFigures(uuid=gpu.uuid, index=gpu.index, name=gpu.name, pci_id=gpu.pci_id)
    return replace(known, xids=gpu.xids, lost=gpu.lost)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # being replaced
    return stat.st_mtime_ns, stat.st_ino


def _ignore(_book: ReplicaBook) -> None:
    """`--once` looks at the books when all is done."""
