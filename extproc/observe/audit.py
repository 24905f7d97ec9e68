"""The audit log: who could not prove who they are, and every change of quotas and keys, as JSON lines.

Owns the events, their bounds and the file. An event holds names, ids, hashes' beginnings, numbers and
addresses, never a key, a token, or anything of a request's content. Events wait in memory (a quarter of a
second in the service) until `flush`, which may run in a thread, so that a slow disk delays no decision; a
killed process loses those. A file that cannot be written is said once in the ordinary log, and again when
it can.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.model import Audit

log = logging.getLogger(__name__)

#: Failures to prove an identity that are written one by one in a second; the rest is counted.
IDENTITY_LINES_PER_S = 20
#: Events that wait for the disk; the newest are dropped above it, and counted.
PENDING_MAX = 2_000
#: Files kept beside the current one.
FILES_KEPT = 4
#: What is repeated of a text that others chose.
TEXT_CHARS_MAX = 200


class AuditLog:
    """One process's way into the log. Nothing is kept or written where no file is configured."""

    def __init__(self, settings: Audit, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._clock = wall_clock
        self._pending: list[dict[str, Any]] = []
        self._dropped = 0
        self._second = 0
        self._lines = 0
        self._more: Counter[str] = Counter()
        self._writing = threading.Lock()
        self._silent = True

    @property
    def waiting(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._pending or self._more or self._dropped)

    def identity_failed(
        self, *, source: str, code: str, reason: str, methods: Iterable[str], blocked: bool = False
    ) -> None:
        """A request did not prove who sent it; `blocked`: its source is not listened to for a while now."""
        if self.settings.file is None:
            return
        now_s = self._clock()
        if int(now_s) != self._second:
            self._sum_up()
            self._second, self._lines = int(now_s), 0
        if blocked:
            self.event("identity_blocked", source=source[:TEXT_CHARS_MAX])
        self._lines += 1
        if self._lines > IDENTITY_LINES_PER_S:
            self._more[code] += 1
            return
        self.event(
            "identity_failed",
            source=source[:TEXT_CHARS_MAX],
            code=code,
            reason=reason[:TEXT_CHARS_MAX],
            methods=list(methods),
        )

    def event(self, name: str, **facts: object) -> None:
        """Note an event; `flush` writes it."""
        if self.settings.file is None:
            return
        if len(self._pending) >= PENDING_MAX:
            self._dropped += 1
            self.counts["audit.dropped"] += 1
            return
        self._pending.append({"time": _time(self._clock()), "event": name, **facts})

    def flush(self, *, last: bool = False) -> None:
        """Write what waits; never raises. One at a time: a second caller waits only at the `last`."""
        if not self._writing.acquire(blocking=last):
            return
        try:
            if last or int(self._clock()) != self._second:
                self._sum_up()
            events, self._pending = self._pending, []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                events.append({"time": _time(self._clock()), "event": "dropped", "count": dropped})
            if events and self.settings.file is not None:
                self._write(Path(self.settings.file), events)
        finally:
            self._writing.release()

    def _sum_up(self) -> None:
        more, self._more = self._more, Counter()
        if more:
            self.event("identity_failed_more", count=more.total(), by_code=dict(more))

    def _write(self, path: Path, events: list[dict[str, Any]]) -> None:
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        try:
            append(path, data, bytes_max=self.settings.bytes_max)
        except OSError as error:
            self.counts["audit.lost"] += len(events)
            if self._silent:
                log.error("the audit log %s cannot be written: %s; going on without", path, error.strerror)
            self._silent = False
        else:
            if not self._silent:
                log.warning("the audit log %s can be written again", path)
            self._silent = True


def append(path: Path, data: bytes, *, bytes_max: int) -> None:
    """Add lines to a file that other processes add to as well; put it aside when it has grown too large."""
    while True:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            here = os.fstat(fd)
            if not _is(path, here):
                continue  # somebody has just put it aside
            if here.st_size and here.st_size + len(data) > bytes_max:
                for number in range(FILES_KEPT, 0, -1):
                    older = aside(path, number - 1) if number > 1 else path
                    if older.exists():
                        older.replace(aside(path, number))
                continue
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        return


def aside(path: Path, number: int) -> Path:
    """Where a file that was put aside is; 1 is the newest."""
    return path.with_name(f"{path.name}.{number}")


def offered(evidence: Any) -> list[str]:
    """By what means a request tried to prove who sent it."""
    tried: Mapping[str, object] = {
        "key": (evidence.authorization and evidence.jwt is None) or evidence.api_key,
        "jwt": evidence.jwt is not None or evidence.jwt_failure,
        "certificate": evidence.sans,
        "proxy": evidence.proxy_tenant,
    }
    return [method for method, sent in tried.items() if sent]


def _is(path: Path, here: os.stat_result) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _time(unix_s: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))
    return f"{whole}.{int(unix_s % 1 * 1000):03d}Z"
