"""What is written beside the requests: the audit log, the record of decisions, and who never ended.

Owns when: what waits for the disk is written by a thread, the last of it when the service ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from extproc.config.model import Config
from extproc.core.events import Observer
from extproc.core.outcome import Reservation
from extproc.core.scheduler import Scheduler
from extproc.observe.audit import AuditLog
from extproc.observe.record import Recorder
from extproc.service.parts import Part

log = logging.getLogger(__name__)


class ExpiryLog(Observer):
    """Says whose end never came."""

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """Warn of it."""
        log.warning("reservation %s on %s expired: its end never came", reservation.id, reservation.address)


class AuditPart(Part):
    """The audit log."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def apply(self, config: Config) -> None:
        """Another file from now on."""
        self._audit.settings = config.audit

    @property
    def waiting(self) -> bool:
        """Whether there are lines to write."""
        return self._audit.waiting

    def write(self) -> None:
        """Write them."""
        self._audit.flush()

    async def stop(self) -> None:
        """Write the last of them."""
        await asyncio.to_thread(self._audit.flush, last=True)


class RecordPart(Part):
    """The record of decisions."""

    name = "record"

    def __init__(self, record: Recorder, scheduler: Scheduler, *, clock: Callable[[], int]) -> None:
        self._record, self._scheduler, self._clock = record, scheduler, clock

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The recorder, where anything is recorded."""
        return (self._record,) if self._record.on else ()

    def apply(self, config: Config) -> None:
        """Another file, other bounds."""
        self._record.apply(config.record)

    def step(self, *, now_ns: int) -> None:
        """Tell of the fleet when it has changed."""
        self._record.watch(self._scheduler, now_ns=now_ns)

    @property
    def waiting(self) -> bool:
        """Whether there are lines to write."""
        return self._record.waiting

    def write(self) -> None:
        """Write them."""
        self._record.flush()

    async def stop(self) -> None:
        """Write the last of them."""
        self._record.watch(self._scheduler, now_ns=self._clock(), last=True)
        await asyncio.to_thread(self._record.flush, last=True)

    def status(self) -> dict[str, object]:
        """Whether it is on, and what was lost."""
        return {"on": self._record.on, **self._record.counts}
