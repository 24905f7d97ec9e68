"""The figures of the running service's past: collected, written now and then, and reported.

Owns the thread: one, in which everything that may take time is done in order, so that neither a slow disk nor
a large report delays a decision. What waits for it is bounded; what does not fit is dropped and counted.
Where the store cannot be written, rows wait (bounded too), and a report is of what this service still holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from extproc.config.analytics import Analytics
from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.fleet import Fleet
from extproc.core.peers import Peers
from extproc.service.parts import Part

if TYPE_CHECKING:
    from extproc.observe.analytics import AnalyticsStore, OpenSpans, Query, QueryResult, Retention

log = logging.getLogger(__name__)

#: How often what is kept for long enough is forgotten.
PRUNE_EVERY_S = 60.0
#: How long the end waits for the last write.
STOP_S = 5.0
#: Reports that wait for the thread; a further one is refused.
REPORTS_MAX = 8


class AnalyticsPart(Part):
    """One service's analytics. `connected`: whether this service's peers are known to it at the moment."""

    name = "analytics"

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        peers: Peers,
        *,
        clock: Callable[[], int],
        connected: Callable[[], bool] = lambda: False,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        from extproc.observe.analytics import Listener

        self._clock, self._wall_s = clock, wall_s
        self._settings = config.analytics
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="analytics")
        self._working: Future[None] | None = None
        self._reports = 0
        self._flushed_ns = clock()
        self._running = False
        self.listener = Listener(
            fleet,
            peers,
            alone=config.sharing is None and len(config.service_addresses) == 1,
            clock=clock,
            connected=connected,
            wall_ns=lambda: int(wall_s() * 1e9),
        )
        self._worker = _Worker(_store(config), peers.own, config.analytics, wall_s=wall_s)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The ears, where it is on."""
        return (self.listener,) if self._settings.enabled else ()

    async def start(self) -> None:
        """Begin to take in what is heard."""
        self._running = True

    async def stop(self) -> None:
        """Write what is left; waits for it for STOP_S at the most."""
        self._running = False
        if self._settings.enabled:
            loop = asyncio.get_running_loop()
            last = loop.run_in_executor(self._executor, self._worker.work, self.listener.take(), {}, True)
            done, _ = await asyncio.wait([last], timeout=STOP_S)
            if done and (error := last.exception()) is not None:
                log.error("analytics: the last figures could not be written: %s", error)
            if not done:
                log.warning("analytics: the last figures could not be written within %.0f s", STOP_S)
            self._executor.submit(self._worker.close)
        self._executor.shutdown(wait=False)

    def step(self, *, now_ns: int) -> None:
        """Hand what was heard to the thread, unless it is still busy; every flush_s it also writes."""
        listener, worker = self.listener, self._worker
        if not self._running or not self._settings.enabled:
            return
        if self._working is not None:
            if not self._working.done():
                return
            done, self._working = self._working, None
            if (error := done.exception()) is not None:
                raise error
        flush = now_ns - self._flushed_ns >= self._settings.flush_s * 1e9
        orphans = listener.take_orphans(now_ns=now_ns)
        if flush:
            self._flushed_ns = now_ns
        if flush or orphans or len(listener):
            self._working = self._executor.submit(worker.work, listener.take(), orphans, flush)

    def apply(self, config: Config) -> None:
        """Other bounds, retention and times hold from now on."""
        self._settings = config.analytics
        self._worker.settings = config.analytics

    def status(self) -> dict[str, object]:
        """Whether it is on, where figures are kept, whether that works, and what was lost."""
        worker = self._worker
        return {
            "on": self._settings.enabled,
            "store": worker.store.name,
            "written": worker.said is None,
            "trouble": worker.said or "",
            "waiting": len(self.listener),
            "unwritten": worker.unwritten,
            "counts": dict(sorted((self.listener.counts + worker.books.counts + worker.counts).items())),
        }

    async def report(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a query: `observe.analytics.query.Query`'s fields, as `QueryResult`'s.

        Everything that has ended before the call is in it. Raises ValueError for a query that makes no sense,
        and where nothing is kept. Takes the thread's time, not the loop's.
        """
        if not self._settings.enabled:
            raise ValueError("analytics is off here; switch it on: analytics: {enabled: true}")
        from extproc.observe.analytics.query import query_of

        asked = query_of(query)
        if self._reports >= REPORTS_MAX:
            raise ValueError(f"analytics is busy: {REPORTS_MAX} reports are under way; ask again in a moment")
        self._reports += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(
                self._executor, partial(self._worker.report, self.listener.take(), asked)
            )
        finally:
            self._reports -= 1
        plain: dict[str, Any] = msgspec.to_builtins(answer)
        return plain

    async def order(self, body: bytes) -> bytes:
        """The command Report: a query as JSON, the answer as JSON. ValueError as above."""
        return msgspec.json.encode(await self.report(msgspec.json.decode(body, type=dict[str, Any])))


def _store(config: Config) -> AnalyticsStore:
    """Redis where services share it, else a file, else memory."""
    from extproc.observe.analytics import MemoryStore

    if config.sharing is not None:
        from extproc.observe.analytics.redis_store import RedisStore
        from extproc.state.redis_client import place

        url = config.sharing.redis
        return RedisStore(url, prefix=config.sharing.prefix, where=place(url))
    if config.analytics.dir is not None:
        from extproc.observe.analytics.sqlite_store import SqliteStore

        return SqliteStore(config.analytics.dir, bytes_max=config.analytics.bytes_max)
    return MemoryStore()


class _Worker:
    """What the thread does; nothing else touches books and store."""

    def __init__(
        self, store: AnalyticsStore, writer: str, settings: Analytics, *, wall_s: Callable[[], float]
    ) -> None:
        from extproc.observe.analytics import books

        self.store, self.settings = store, settings
        self.counts: Counter[str] = Counter()
        self.books: OpenSpans = books.OpenSpans(
            writer,
            rows_max=settings.rows_max,
            day_rows_max=settings.day_rows_max,
            pause_s=books.PAUSE_S,
        )
        #: Why the store could not be written the last time; None when it could.
        self.said: str | None = None
        self.unwritten = 0
        self._wall_s = wall_s
        self._pruned_s = 0.0

    @property
    def retention(self) -> Retention:
        """As configured."""
        from extproc.observe.analytics.spans import DAY, HOUR, Retention

        settings = self.settings
        return Retention(
            minutes_s=settings.minute_hours * HOUR,
            hours_s=min(settings.hour_days, settings.retention_days) * DAY,
            days_s=settings.retention_days * DAY,
        )

    def work(self, events: list[Any], orphans: dict[str, Any], flush: bool) -> None:
        """Take in events, claim those of nobody, and write."""
        self.books.rows_max, self.books.day_rows_max = self.settings.rows_max, self.settings.day_rows_max
        self.books.fold(events)
        if orphans:
            self.books.fold(self._claimed(orphans))
        if flush:
            self.flush()

    def flush(self) -> bool:
        """Write what is new; whether the store has everything now. What it could not take waits."""
        from extproc.observe.analytics import StoreError

        now_s = self._wall_s()
        changes = self.books.changes()
        self.unwritten = len(changes)
        try:
            if changes:
                self.store.write(changes, self.retention)
                self.books.written(now_s=int(now_s))
                self.unwritten = 0
            if now_s - self._pruned_s >= PRUNE_EVERY_S or now_s < self._pruned_s:
                self.store.prune(self.retention, now_s=int(now_s))
                self._pruned_s = now_s
        except StoreError as error:
            self.counts["failed_writes"] += 1
            if self.said is None:
                log.error("analytics cannot be written and wait: %s", error)
            self.said = str(error)
            return False
        if early := self.store.early:
            self.counts["given_up_early"] = early
        if self.said is not None:
            log.warning("analytics can be written again")
        self.said = None
        return True

    def report(self, events: list[Any], query: Query) -> QueryResult:
        """Take in events, write, and answer."""
        from extproc.observe.analytics import StoreError
        from extproc.observe.analytics.reporting import PAUSE_S, report

        self.work(events, {}, False)
        written = self.flush()
        ask = partial(
            report,
            query,
            retention=self.retention,
            now_s=int(self._wall_s()),
            store=self.store.name,
            pause_s=PAUSE_S,
        )
        try:
            if written:
                return ask(self.store.read)
            return ask(self._read_with_held, notes=[f"the store cannot be written: {self.said}"])
        except StoreError as error:
            self.counts["failed_reads"] += 1
            note = f"the store cannot be read, these are the figures that this service still holds: {error}"
            return ask(self._read_held, notes=[note])

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    def _read_held(self, stretch: Any) -> Any:
        for entry in self.books.held():
            if entry.length_s == stretch.length_s and stretch.begin_s <= entry.begin_s < stretch.end_s:
                yield entry

    def _read_with_held(self, stretch: Any) -> Any:
        """What is kept, with what is held in the place of its older self."""
        newer = {entry[:4]: entry for entry in self._read_held(stretch)}
        for entry in self.store.read(stretch):
            yield newer.pop(entry[:4], entry)
        yield from newer.values()

    def _claimed(self, orphans: dict[str, Any]) -> list[Any]:
        """Those of nobody's requests that this service is to count."""
        from extproc.observe.analytics import StoreError

        try:
            mine = self.store.claim(list(orphans))
        except StoreError:
            self.counts["orphans_dropped"] += len(orphans)
            return []
        return [event for event, claimed in zip(orphans.values(), mine, strict=True) if claimed]
