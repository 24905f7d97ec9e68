"""Asks one replica its pages at the pace that its book sets: two small loops and a prompt now and then.

The thin shell around replica.py: no judgement here. A slow page holds up its own loop and no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from extproc.upstream import FileSeen, ReplicaAccess, file_seen
from steersman_agent.fetch import Fetcher
from steersman_agent.kv_listen import KvListener
from steersman_agent.replica import ReplicaBook
from steersman_agent.reply import Failure, PageReply, Reply
from steersman_agent.state import Symptom

log = logging.getLogger(__name__)

#: How often the files of keys and certificates are looked at.
FILES_S = 5.0


class ReplicaWatch:
    """Watches one replica from `run`'s task; `changed` is called after each piece of evidence."""

    def __init__(
        self,
        book: ReplicaBook,
        fetcher: Fetcher,
        *,
        changed: Callable[[ReplicaBook], None],
        rng: Random,
    ) -> None:
        self.book = book
        self._fetcher = fetcher
        self._changed = changed
        self._rng = rng
        self._access: ReplicaAccess | None = None
        self._files_seen: list[FileSeen | None] = []
        self._looked_s = float("-inf")
        events = book.settings.kv_events
        self._listeners = [
            KvListener(events, rank, changed=self._heard)
            for rank in range(events.ranks if events else 0)
            if events is not None
        ]
        book.kv_books = tuple(listener.book for listener in self._listeners)
        self._prompt: asyncio.Task[None] | None = None
        self._said_no_metrics = False
        self._said_unwanted = False

    def _heard(self) -> None:
        self._changed(self.book)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask_metrics())
                group.create_task(self._ask_health())
                for listener in self._listeners:
                    group.create_task(listener.run())
        finally:
            if self._prompt is not None:
                self._prompt.cancel()
                await asyncio.gather(self._prompt, return_exceptions=True)

    async def once(self) -> None:
        """Everything one time, for `--once`; a second look where the first left a doubt."""
        for _ in range(2):
            await self.look_at_metrics()
            await self.look_at_health()
            if self.book.prompt_due(time.monotonic()):
                await self.send_prompt()

    async def look_at_metrics(self) -> None:
        """`/metrics`, and before its answer counts, what the engine serves where that is due."""
        book = self.book
        url = book.settings.base_url
        reply = await self._ask(f"{url}/metrics")
        if isinstance(reply, PageReply) and book.about_due(time.monotonic()):
            await self._look_at_about()
        book.on_metrics(reply, time.monotonic())
        if book.no_metrics and not self._said_no_metrics:
            self._said_no_metrics = True
            log.warning("%s has no /metrics; start the engine with its metrics on", book.settings.address)
        self._changed(book)

    async def look_at_health(self) -> None:
        """`/health`."""
        book = self.book
        reply = await self._ask(f"{book.settings.base_url}/health")
        book.on_health(reply, time.monotonic())
        self._changed(book)

    async def send_prompt(self) -> None:
        """The light prompt."""
        book = self.book
        path, body = book.prompt()
        book.prober.begin()
        reply = await self._ask(book.settings.base_url + path, body)
        book.prober.finish(reply, time.monotonic())
        if book.prober.unwanted is not None and not self._said_unwanted:
            self._said_unwanted = True
            log.warning(
                "%s answers prompts to %s with status %d, so they tell nothing; probe_ms: 0 sends none",
                book.settings.address,
                path,
                book.prober.unwanted,
            )
        self._changed(book)

    async def _ask(self, url: str, body: Mapping[str, Any] | None = None) -> Reply:
        access = self._how()
        if isinstance(access, Failure):
            return access
        return await self._fetcher.ask(url, timeout_s=self.book.timeout_s, body=body, access=access)

    def _how(self) -> ReplicaAccess | Failure:
        """How it is asked; its files are looked at now and then."""
        now_s = time.monotonic()
        if self._access is None or now_s - self._looked_s >= FILES_S:
            self._looked_s, upstream = now_s, self.book.settings.upstream
            seen = [file_seen(path) for path in upstream.files()]
            if self._access is None or seen != self._files_seen:
                try:
                    self._access, self._files_seen = upstream.access(), seen
                except OSError as error:
                    if self._access is None:
                        return Failure(Symptom.UNWELL, f"upstream.tls: {error.strerror or error}")
        return self._access

    async def _send_prompts(self) -> None:
        """A prompt, and more at once while its answer leaves a doubt."""
        while self.book.prompt_due(time.monotonic()):
            await self.send_prompt()

    async def _look_at_about(self) -> None:
        book = self.book
        url, paths = book.settings.base_url, book.engine.about_paths
        replies = await asyncio.gather(*(self._ask(url + path) for path in paths))
        book.on_about(dict(zip(paths, replies, strict=True)), time.monotonic())

    async def _ask_metrics(self) -> None:
        # Replicas that start together should not be asked in step for ever.
        await asyncio.sleep(self._rng.random() * 0.05)
        while True:
            began_s = time.monotonic()
            await self.look_at_metrics()
            now_s = time.monotonic()
            if (self._prompt is None or self._prompt.done()) and self.book.prompt_due(now_s):
                # Beside the loop: while a prompt hangs, the metrics go on telling.
                self._prompt = asyncio.create_task(self._send_prompts())
            await asyncio.sleep(max(0.0, began_s + self.book.metrics_pause_s - now_s))

    async def _ask_health(self) -> None:
        await asyncio.sleep(0.05 + self._rng.random() * 0.05)
        while True:
            began_s = time.monotonic()
            await self.look_at_health()
            await asyncio.sleep(max(0.0, began_s + self.book.health_pause_s - time.monotonic()))
