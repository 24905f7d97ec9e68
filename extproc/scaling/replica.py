"""One replica of the launcher, from its start to its end.

Owns the order: started, looked at until it answers, a member, drained, stopped.

    STARTING ── runs ──▶ LOADING ── answers ──▶ READY ── not wanted ──▶ DRAINING ── empty ──▶ stopped
        └────────── ends, or is silent too long ──┴──▶ failed          └── wanted again ──▶ READY
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from extproc.config.scaling import LauncherConfig
from extproc.core.scaling.values import ReplicaStage
from extproc.scaling.places import LocalPlace
from extproc.scaling.process import KeptProcess

#: How often a process is looked at: while it loads, drains or is stopped, and while it serves.
LOOK_S, SERVING_LOOK_S = 0.1, 0.25
#: A keeper gets so much longer than its own patience before it is killed.
BEYOND_STOP_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class FleetSide:
    """What the launcher asks of the service around it."""

    #: Whether a replica's health page says that it serves.
    healthy: Callable[[str], Awaitable[bool]]
    #: It serves: decisions may name it. And: it is no member any more.
    joined: Callable[[str, str], None]
    left: Callable[[str, str], None]
    #: No new request goes there; or may again.
    drain: Callable[[str, bool], None]
    #: Requests that run there.
    requests: Callable[[str], int]


class ReplicaFailedError(Exception):
    """It did not come up, or ended by itself; the message says how."""


class LaunchedReplica:
    """One process, its place and its stage. `run` is its life; `leave` and `stay` bend it."""

    def __init__(
        self,
        pool: str,
        place: LocalPlace,
        settings: LauncherConfig,
        side: FleetSide,
        *,
        loaded: Callable[[LaunchedReplica, float], None],
    ) -> None:
        self.pool, self.place, self.settings = pool, place, settings
        self.stage: ReplicaStage = "starting"
        self.process: KeptProcess | None = None
        #: When it was started and when it became ready, by the loop's clock.
        self.began_s: float | None = None
        self.ready_s: float | None = None
        self._side, self._loaded = side, loaded
        self._wanted = True
        self._changed = asyncio.Event()

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.place.address

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out."""
        return not self._wanted

    def leave(self) -> None:
        """It is not wanted any more."""
        self._wanted = False
        self._changed.set()

    def stay(self) -> bool:
        """It is wanted after all; false where it is too late for that."""
        if self.stage != "draining":
            return False
        self._wanted = True
        self._changed.set()
        return True

    async def run(self, start: Callable[[], Awaitable[KeptProcess]] | KeptProcess) -> None:
        """Start it, or take over one that runs; returns when it has left. Raises ReplicaFailedError."""
        try:
            if isinstance(start, KeptProcess):
                self.process = start
            else:
                self.began_s = asyncio.get_running_loop().time()
                starting = asyncio.ensure_future(start())
                try:
                    self.process = await asyncio.shield(starting)
                except asyncio.CancelledError:
                    # It is being started in a thread: whoever ends this ends that too.
                    self.process = await starting
                    raise
            await self._serve(self.process)
        finally:
            if self.stage in ("ready", "draining"):
                self._side.left(self.pool, self.address)
            self.stage = "gone"

    async def _serve(self, process: KeptProcess) -> None:
        if not process.was_ready:
            self.stage = "loading"
            if not await self._answers(process):
                await self.stop()
                return
            process.now_ready()
        loop = asyncio.get_running_loop()
        self.stage, self.ready_s = "ready", loop.time()
        if self.began_s is not None:
            self._loaded(self, self.ready_s - self.began_s)
        self._side.joined(self.pool, self.address)
        while True:
            while self._wanted:
                self._still(process)
                await self._pause(SERVING_LOOK_S)
            self.stage = "draining"
            self._side.drain(self.address, True)
            if await self._emptied(process):
                break
            self.stage = "ready"
            self._side.drain(self.address, False)
        # Out of the list before it goes, so that nobody is sent to what refuses.
        self._side.left(self.pool, self.address)
        self.stage = "gone"
        await self.stop()

    async def _answers(self, process: KeptProcess) -> bool:
        """Until its health page says that it serves; false when it was told to leave before."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.settings.ready_timeout_s
        while self._wanted:
            self._still(process)
            if await self._side.healthy(self.address):
                # Somebody answers at its port: it, if it still runs.
                self._still(process)
                return True
            if loop.time() >= deadline_s:
                await self.stop()
                raise ReplicaFailedError(
                    f"did not answer its health page within {self.settings.ready_timeout_s:g} s "
                    f"(ready_timeout_s) at {self.address} and was ended; does the command listen on "
                    "{port}, and on 127.0.0.1?"
                )
            await self._pause(LOOK_S)
        return False

    async def _emptied(self, process: KeptProcess) -> bool:
        """Until its last request has ended; false when it is wanted again."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.settings.drain_timeout_s
        while not self._wanted:
            self._still(process)
            if not self._side.requests(self.address) or loop.time() >= deadline_s:
                return True
            await self._pause(LOOK_S)
        return False

    async def stop(self) -> None:
        """End the process and all that it has started."""
        process = self.process
        if process is None:
            return
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.settings.stop_timeout_s + BEYOND_STOP_S
        await asyncio.to_thread(process.terminate)
        while process.alive:
            if loop.time() >= deadline_s:
                await asyncio.to_thread(process.kill)
                break
            await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(process.sweep)

    def _still(self, process: KeptProcess) -> None:
        if process.alive:
            return
        if why := process.cannot_run:
            raise ReplicaFailedError(why)
        raise ReplicaFailedError(process.ended)

    async def _pause(self, seconds: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
