"""Quotas outlive the service: read before it listens, written while it runs, off the loop.

Owns when: what has changed is taken from the books every `flush_ms`, on the loop, and written by a thread.
What cannot be written is taken again, so that a full disk costs nothing once there is room. With `sharing`
Redis has the quotas, and what `adjust` has learnt is kept there too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from extproc.config.model import Config
from extproc.core.quota import ExactBooks
from extproc.core.quota.kept import JournalBatch, Touched
from extproc.core.scheduler import Scheduler
from extproc.service.adjustment import Adjustment
from extproc.service.parts import Part

if TYPE_CHECKING:
    from extproc.state.kept_file import KeptFile
    from extproc.state.kept_lines import FileLines
    from extproc.state.kept_redis import KeptHistories

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Redis, when it did not answer, is asked again after this.
AGAIN_NS = 5_000_000_000


class QuotaJournal(Part):
    """The journal of one service's quotas; nothing where none is configured, or another process has it."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        adjusting: Adjustment,
        *,
        failed: Callable[[Exception, str], None],
        clock: Callable[[], int],
    ) -> None:
        """`failed` hears of exceptions, with what was being done."""
        self._failed = failed
        self._settings, self._sharing = config.state, config.sharing
        self._ended_max = config.limits.settled_remembered_max
        self._scheduler, self._adjusting, self._clock = scheduler, adjusting, clock
        self._books = scheduler.quotas if isinstance(scheduler.quotas, ExactBooks) else None
        self._file: KeptFile | None = None
        self._remote: KeptHistories | None = None
        self._loaded, self._again_ns = False, 0
        self._told: Mapping[str, list[float]] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._compacting: asyncio.Future[None] | None = None
        self._syncing: asyncio.Future[None] | None = None
        #: Why there is none, where one is configured.
        self.why = ""

    @property
    def on(self) -> bool:
        """Whether changes are written."""
        return self._file is not None

    async def start(self) -> None:
        """Read what another process left, before anybody is let in."""
        settings = self._settings
        if self._sharing is not None:
            from extproc.state.kept_redis import KeptHistories

            self._remote = KeptHistories(self._sharing.redis, prefix=self._sharing.prefix)
            await self._share()
            return
        if not settings.enabled or settings.dir is None:
            return
        from extproc.state.kept_file import KeptFile

        file = KeptFile(
            Path(settings.dir),
            bytes_max=settings.bytes_max,
            ended_max=self._ended_max,
            fsync=settings.fsync,
            clock=self._clock,
        )
        # Of its own, so that nothing else that is slow stands before a write.
        self._executor = ThreadPoolExecutor(3, thread_name_prefix="quotas")
        try:
            found = await self._in_thread(file.open)
        except OSError as error:
            self.why = f"{error.filename or settings.dir}: {error.strerror or error}"
            log.error("quotas are not kept, a restart will forget them: %s", self.why)
            self._executor.shutdown(wait=False)
            return
        self._restore(found)
        self._file = file

    def _restore(self, found: FileLines) -> None:
        state, books = found.state, self._books
        if books is not None:
            now_ns = self._clock()
            books.restore(state, now_ns=now_ns)
            books.keep()
            if state.scopes or state.held:
                log.info(
                    "quotas go on where they were: %d scopes, %d reservations", len(state.scopes), len(books)
                )
        self._adjusting.restore(state.histories)
        self._told = self._adjusting.histories

    async def run(self) -> None:
        """Write what changes, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.flush_ms / 1000)
            try:
                await self.flush()
            except Exception as error:  # noqa: BLE001 (without this task nothing would be kept again)
                self._failed(error, "keeping quotas")

    async def _share(self) -> bool:
        """What `adjust` has learnt: read from Redis once, then written there when it has changed."""
        remote, histories, now_ns = self._remote, self._adjusting.histories, self._clock()
        if remote is None or not self._adjusting.on or now_ns < self._again_ns:
            return False
        try:
            if not self._loaded:
                self._adjusting.restore(await remote.load())
                self._loaded, histories = True, self._adjusting.histories
                self._told = histories
            if histories != self._told:
                await remote.save(histories)
                self._told = histories
        except Exception as error:  # noqa: BLE001 - whatever Redis says must end nothing
            self._again_ns = now_ns + AGAIN_NS
            if not self.why:
                self.why = f"redis {remote.place}: {' '.join(str(error).split()) or type(error).__name__}"
                log.warning("what adjust has learnt is not kept: %s", self.why)
            return False
        self.why = ""
        return True

    async def flush(self) -> bool:
        """Write what has changed until now; false where that was not possible, or nothing is kept."""
        if self._remote is not None:
            return await self._share()
        file = self._file
        if file is None:
            return False
        batch, touched = self._changes()
        written = not batch or await self._in_thread(file.append, batch)
        if not written:
            self._told = {}
            if touched is not None and self._books is not None:
                self._books.put_back(touched)
        loop = asyncio.get_running_loop()
        if file.grown and (self._compacting is None or self._compacting.done()):
            self._compacting = loop.run_in_executor(self._executor, file.compact)
        if file.sync_due and (self._syncing is None or self._syncing.done()):
            self._syncing = loop.run_in_executor(self._executor, file.sync)
        return written

    async def stop(self) -> None:
        """Write what is left, and let another have the file."""
        await self.flush()
        if self._remote is not None:
            remote, self._remote = self._remote, None
            await remote.close()
        file, self._file = self._file, None
        if file is None or self._executor is None:
            return
        for under_way in (self._compacting, self._syncing):
            if under_way is not None:
                await asyncio.wait({under_way})
        await self._in_thread(file.close)
        self._executor.shutdown(wait=False)

    def status(self) -> dict[str, object]:
        """Whether quotas outlive the service, and how the file fares."""
        file = self._file
        if file is None:
            return {"on": False, "why": self.why}
        return {
            "on": True,
            "file": str(file.path),
            "bytes": file.size,
            "failing": file.said,
            "given_up": self._books.given_up if self._books is not None else 0,
            "counts": dict(sorted(file.counts.items())),
        }

    def _changes(self) -> tuple[JournalBatch, Touched | None]:
        batch, touched = JournalBatch([], [], [], [], [], {}), None
        if self._books is not None:
            batch, touched = self._books.changes(waiting=self._scheduler.dispatcher.queue)
        histories = self._adjusting.histories
        if histories != self._told:
            batch, self._told = batch._replace(histories=histories), histories
        return batch, touched

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
