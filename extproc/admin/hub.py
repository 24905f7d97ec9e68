"""Live events: what has changed, told to every page that follows, at most a second old.

Owns the rhythm, the queues and what a page missed that comes back. The work is done once for all pages, in
slices, and none is done while nobody looks. A page that does not keep up is let go; it comes back by itself
and gets the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from extproc.admin.slices import sliced
from extproc.admin.sources import MissingError, Sources
from extproc.admin.views import TenantRows, decisions_after, pools_of, shown_endpoints, shown_tenants, tile

#: How often decisions are told, and every how many of those rounds the figures are too.
ROUND_S, FIGURES_EVERY = 0.25, 2
#: The share of the time that building may take: a huge fleet is told of less often.
DUTY_MAX = 0.1
#: Decisions told in one round; the rest is counted.
DECISIONS_PER_ROUND = 40
#: Events that wait for one page, and events and bytes kept for who comes back.
QUEUE_MAX, KEPT_MAX, KEPT_BYTES_MAX = 64, 64, 4 * 1024 * 1024
#: How long figures are followed on after the last page left, so that one that comes back misses nothing.
LINGER_S = 15.0
#: Rounds between two looks at alerts, experiments, scaling and the cache.
SLOW_EVERY = 4


class PageClient:
    """One page's queue. `gone` is set when it is let go."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self.gone = asyncio.Event()

    def tell(self, frame: bytes) -> bool:
        """Queue an event; false when there is no room, which ends it."""
        try:
            self.queue.put_nowait(frame)
        except asyncio.QueueFull:
            self.gone.set()
            return False
        return True


class Hub:
    """All pages that follow. `failed` hears of exceptions."""

    def __init__(self, sources: Sources, *, failed: Callable[[Exception, str], None]) -> None:
        self._sources, self._failed = sources, failed
        self._rows = TenantRows(sources.scheduler, sources.stats)
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self.clients: set[PageClient] = set()
        self.dropped = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        #: What the pages know.
        self._tiles: dict[str, dict[str, Any]] = {}
        self._tenants: dict[str, dict[str, Any]] = {}
        self._slow: dict[str, Any] = {}
        self._seen = 0
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()

    def start(self) -> None:
        """Begin; nothing is built before the first page comes."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Let all go."""
        for client in self.clients:
            client.gone.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def join(self, last_id: str) -> PageClient:
        """A page that follows from now on; `last_id` is the last event it had, "" for none."""
        self._wake.set()
        await self._ready.wait()
        client = PageClient()
        for frame in self._missed(last_id) or [self._snapshot()]:
            client.tell(frame)
        self.clients.add(client)
        return client

    def leave(self, client: PageClient) -> None:
        """It has gone."""
        self.clients.discard(client)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 (what shows the service must not end for one mistake)
                self._failed(error, "live events")
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        """Rounds until nobody has looked for a while."""
        self._forget()
        await self._figures()
        await self._look()
        self._ready.set()
        # Whoever followed while a mistake ended the last turn.
        for client in list(self.clients):
            client.tell(self._snapshot())
        alone_s = 0.0
        rounds = 0
        try:
            while alone_s < LINGER_S:
                await asyncio.sleep(ROUND_S)
                rounds += 1
                alone_s = 0.0 if self.clients else alone_s + ROUND_S
                self._decisions()
                if rounds % FIGURES_EVERY == 0:
                    began_s = time.perf_counter()
                    self._publish("figures", await self._figures())
                    await asyncio.sleep((time.perf_counter() - began_s) * (1 / DUTY_MAX - 1) - ROUND_S)
                if rounds % SLOW_EVERY == 0:
                    for name in await self._look():
                        self._publish(name, self._slow[name])
        finally:
            self._ready.clear()
            if not self.clients:
                self._wake.clear()

    def _forget(self) -> None:
        """Nobody followed for a while: who comes gets the whole."""
        self._epoch = secrets.token_hex(4)
        self._kept.clear()
        self._kept_bytes = 0
        self._tiles, self._tenants = {}, {}
        self._seen = self._sources.scheduler.dispatcher.decisions.count

    async def _figures(self) -> dict[str, Any]:
        """Look at everything again; what has changed since the last time."""
        sources = self._sources
        now_ns = sources.clock()
        tiles = {}
        async for endpoint in sliced(await shown_endpoints(sources.scheduler.fleet, now_ns=now_ns)):
            line = sources.stats.endpoints.get(endpoint.address)
            tiles[endpoint.address] = tile(endpoint, line, now_ns=now_ns)
        known = sources.tenants()
        tenants = {}
        async for name in sliced(shown_tenants(sources.scheduler, sources.stats, known)):
            tenants[name] = self._rows.row(known[name], now_ns=now_ns)
        changed = {
            **self._totals(),
            "endpoints": _changed(self._tiles, tiles),
            "endpoints_gone": [address for address in self._tiles if address not in tiles],
            "endpoints_left_out": len(sources.scheduler.fleet.endpoints) - len(tiles),
            "tenants": _changed(self._tenants, tenants),
            "tenants_gone": [name for name in self._tenants if name not in tenants],
            "tenants_left_out": len(known) - len(tenants),
        }
        self._tiles, self._tenants = tiles, tenants
        return changed

    def _totals(self) -> dict[str, Any]:
        sources = self._sources
        points = sources.live_series.points
        return {
            "at": round(sources.wall_clock(), 3),
            "in_flight": len(sources.scheduler.ledger),
            "held": len(sources.scheduler.dispatcher.queue),
            "point": points[-1] if points else None,
            "pools": pools_of(sources.scheduler.fleet),
        }

    async def _look(self) -> list[str]:
        """Alerts, experiments, scaling and the cache; the names of those that have changed."""
        now = {
            "alerts": await self._alerts(),
            "experiments": self._experiments(),
            "scaling": self._sources.scaling_now(),
            "cache": self._sources.cache_now(),
        }
        changed = [name for name, value in now.items() if self._slow.get(name) != value]
        self._slow = now
        return changed

    async def _alerts(self) -> dict[str, Any] | None:
        try:
            return await self._sources.alerts()
        except MissingError:
            return None

    def _experiments(self) -> list[dict[str, Any]]:
        sources = self._sources
        view = sources.scheduler.experiments.view(now_ns=sources.clock())
        # Its age alone is no news.
        return [{name: value for name, value in each.items() if name != "counted_s"} for each in view]

    def _decisions(self) -> None:
        count = self._sources.scheduler.dispatcher.decisions.count
        if count == self._seen:
            return
        found, left_out = decisions_after(self._sources, self._seen, limit=DECISIONS_PER_ROUND)
        self._seen = count
        self._publish("decisions", {"decisions": found, "left_out": left_out})

    def _publish(self, event: str, data: Any) -> None:
        self._number += 1
        frame = self._frame(event, data)
        self._kept.append((self._number, frame))
        self._kept_bytes += len(frame)
        while len(self._kept) > KEPT_MAX or self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= len(self._kept.popleft()[1])
        for client in list(self.clients):
            if not client.tell(frame):
                self.clients.discard(client)
                self.dropped += 1

    def _snapshot(self) -> bytes:
        begin = max(0, self._seen - DECISIONS_PER_ROUND)
        decisions, _ = decisions_after(self._sources, begin, limit=DECISIONS_PER_ROUND)
        return self._frame(
            "snapshot",
            {
                **self._totals(),
                "instance": self._sources.scheduler.instance,
                "version": self._sources.version,
                "endpoints": list(self._tiles.values()),
                "endpoints_left_out": len(self._sources.scheduler.fleet.endpoints) - len(self._tiles),
                "tenants": list(self._tenants.values()),
                "tenants_left_out": len(self._sources.tenants()) - len(self._tenants),
                "decisions": decisions,
                "points": list(self._sources.live_series.points),
                **self._slow,
            },
        )

    def _missed(self, last_id: str) -> list[bytes]:
        """What came after an event; nothing when that is not known any more."""
        epoch, _, number = last_id.partition("-")
        if epoch != self._epoch or not number.isdigit() or not self._kept:
            return []
        last = int(number)
        if not self._kept[0][0] - 1 <= last <= self._number:
            return []
        missed = [frame for at, frame in self._kept if at > last]
        return missed if len(missed) < QUEUE_MAX else []

    def _frame(self, event: str, data: Any) -> bytes:
        head = f"id: {self._epoch}-{self._number}\nevent: {event}\ndata: ".encode()
        return head + msgspec.json.encode(data) + b"\n\n"


def _changed(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for name, each in now.items() if before.get(name) != each]
