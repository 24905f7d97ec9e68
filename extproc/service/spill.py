"""Spill-over's books in the service: who hears of requests, what is shown, and what outlives a restart.

Owns the file. Of a killed service it has all but what ended in its last second or so; what then still runs is
counted when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.scheduler import Scheduler
from extproc.core.spill.books import HOUR_NS
from extproc.service.parts import Part
from extproc.state.whole_file import WholeFile

NAME: Final = "spill.kept"
MAGIC: Final = b"steersman spill 1\n"
#: A thousand tenants' hours are 2 MB.
BYTES_MAX: Final = 64 * 1024 * 1024
#: How often what has changed is written.
WRITE_NS: Final = 1_000_000_000


class KeptSpill(msgspec.Struct):
    """What was spent: (pool, tenant, [(unix nanoseconds, cost)])."""

    spent: list[tuple[str, str, list[tuple[int, float]]]] = []


class SpillPart(Part):
    """The part of spill-over."""

    name = "spill"

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        *,
        clock: Callable[[], int],
        unix: Callable[[], int] = time.time_ns,
    ) -> None:
        self._books, self._settings = scheduler.spills, scheduler.settings
        self._clock, self._unix = clock, unix
        state = config.state
        self._file: WholeFile[KeptSpill] | None = None
        if state.enabled and state.dir is not None:
            path = Path(state.dir) / NAME
            lost = "what was spilled in the last hour is not counted"
            self._file = WholeFile(path, KeptSpill, magic=MAGIC, lost=lost, bytes_max=BYTES_MAX)
        self._to_write: KeptSpill | None = None
        self._changes, self._next_ns = 0, 0

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The books themselves."""
        return (self._books,)

    async def start(self) -> None:
        """Read what another process left, before anybody is let in."""
        kept = None if self._file is None else self._file.load()
        if kept is None:
            return
        now_ns, unix_ns = self._clock(), self._unix()
        for pool, tenant, parts in kept.spent:
            for at_ns, cost in parts:
                # A clock that was set back makes nothing younger than it is.
                age_ns = max(0, unix_ns - at_ns)
                if age_ns < HOUR_NS:
                    self._books.restore(pool, tenant, cost, at_ns=now_ns - age_ns)

    def step(self, *, now_ns: int) -> None:
        """Take what has changed."""
        if self._file is None or now_ns < self._next_ns or self._books.changes == self._changes:
            return
        self._changes, self._next_ns = self._books.changes, now_ns + WRITE_NS
        ahead_ns = self._unix() - now_ns
        self._to_write = KeptSpill(
            [
                (pool, tenant, [(at_ns + ahead_ns, cost) for at_ns, cost in parts])
                for pool, tenant, parts in self._books.kept(now_ns=now_ns)
            ]
        )

    async def stop(self) -> None:
        """Write the last of it."""
        self._next_ns = 0
        self.step(now_ns=self._clock())
        self.write()

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return self._to_write is not None

    def write(self) -> None:
        """Write it."""
        kept, self._to_write = self._to_write, None
        if self._file is not None and kept is not None:
            self._file.write(kept)

    def status(self) -> dict[str, object]:
        """By pool: what was spent in the last hour, what went where and why, and who takes more."""
        books, now_ns = self._books, self._clock()
        return {
            "spent": {pool: books.spent(pool, now_ns=now_ns) for pool in self._settings.spills},
            "under_way": books.under_way,
            "counts": {" ".join(key): count for key, count in sorted(books.counts.items())},
            "returned": {pool: books.returned.get(pool, 0) for pool in self._settings.spills},
            "moved": {pool: books.moved.get(pool, 0) for pool in self._settings.spills},
            "left": {pool: books.provider_left(pool, now_ns=now_ns) for pool in self._settings.rate_limits},
            "open": {pool: not books.closed(pool, now_ns=now_ns) for pool in self._settings.rate_limits},
        }
