"""The journal of quotas on disk: batches as checksummed lines, mended at the start, made small when grown.

Owns the file: its lock, when it is synced and compacted, and that it ends with a whole line. What a line is
stands in kept_lines.py, what a batch says in core.quota.kept.

One thread at a time may `append`, and another `compact` meanwhile; neither runs on the event loop.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from extproc.core.quota.kept import JournalBatch, JournalState
from extproc.core.quota.values import KINDS
from extproc.state.kept_lines import (
    LINES_AT_ONCE,
    RECORDS_MAX,
    VERSION,
    FileLines,
    Head,
    Stamped,
    line,
    parts,
    read,
)

log = logging.getLogger(__name__)

NAME = "quotas.journal"
#: A compaction that came to nothing (the disk is full) is tried again after this.
COMPACT_AGAIN_NS = 60_000_000_000
#: While it compacts it lets others have the interpreter now and then, for so long.
PAUSE_S = 0.001
SECOND_NS = 1_000_000_000

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LockedError(OSError):
    """Another process has the journal."""


def boot_id() -> str:
    """The machine's run; "" where it does not say."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class KeptFile:
    """One service's journal in a folder. `clock` is the clock of the books, `wall` the time of day, in ns."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        ended_max: int,
        fsync: Literal["always", "second", "never"] = "second",
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self.path = folder / NAME
        self.counts: Counter[str] = Counter()
        self.size = 0
        #: Why it could not be written the last time; "" when it could.
        self.said = ""
        self._bytes_max, self._ended_max, self._fsync = bytes_max, ended_max, fsync
        self._clock, self._wall, self._boot = clock, wall, boot()
        self._fd = self._lock_fd = -1
        self._synced_ns = self._failed_ns = 0
        self._compact_above = bytes_max
        self._writing = threading.Lock()

    def open(self) -> FileLines:
        """Lock it, read what is there and write that anew; the times in what is returned are this clock's.

        Raises LockedError where another process has it, OSError where it cannot be read or written.
        """
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = os.open(folder / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise LockedError(error.errno, "another service keeps its quotas here", str(folder)) from error
        try:
            found = self._begin()
        except BaseException:
            self.close()
            raise
        return found

    def _begin(self) -> FileLines:
        found = read(self.path)
        if found.torn or found.damaged:
            self.counts["torn"] += found.torn
            self.counts["damaged"] += found.damaged
            end = "; its last line was not whole" if found.torn else ""
            wrong = f"; {found.damaged} lines of it were damaged" if found.damaged else ""
            log.warning("quotas: mended %s%s%s: what these said is forgotten", self.path, end, wrong)
        now_ns = self._clock()
        _moved(found, found.move(boot=self._boot, now_ns=now_ns, wall_ns=self._wall()))
        found.state.trim(now_ns=now_ns, ended_max=self._ended_max)
        with self._made_anew(found.state) as new:
            self._take_place(new)
        return found

    def append(self, batch: JournalBatch) -> bool:
        """Add what has changed; false when it was not written (and the file is as before). Never raises."""
        if not batch:
            return True
        with self._writing:
            try:
                self._add(self._lines(batch))
            except OSError as error:
                self._not_written(error)
                return False
        if self.said:
            log.warning("quotas: %s can be written again", self.path)
        self.said = ""
        self.counts["written"] += 1
        return True

    @property
    def sync_due(self) -> bool:
        """Whether `sync` has something to do now."""
        if self._fsync == "never" or not self.counts["unsynced"]:
            return False
        return self._fsync == "always" or self._clock() - self._synced_ns >= SECOND_NS

    def sync(self) -> None:
        """Have the disk keep what was written; others may append meanwhile. Never raises."""
        with self._writing:
            if self._fd < 0:
                return
            fd = os.dup(self._fd)
            self._synced_ns, self.counts["unsynced"] = self._clock(), 0
        try:
            os.fdatasync(fd)
        except OSError as error:
            self.counts["sync_failed"] += 1
            if self.counts["sync_failed"] == 1:
                log.error("quotas: %s cannot be synced: %s", self.path, error.strerror or error)
        finally:
            os.close(fd)

    @property
    def grown(self) -> bool:
        """Whether `compact` is due."""
        if self.size <= self._compact_above:
            return False
        return not self._failed_ns or self._clock() - self._failed_ns >= COMPACT_AGAIN_NS

    def compact(self) -> None:
        """Write the file anew with what still matters; others may append meanwhile. Never raises."""
        try:
            with self._writing:
                size = self.size
            found = read(self.path, most=size, pause_s=PAUSE_S)
            found.state.trim(now_ns=self._clock(), ended_max=self._ended_max)
            with self._made_anew(found.state) as new, self._writing:
                # What came meanwhile.
                with self.path.open("rb") as old:
                    old.seek(size)
                    _write(new.fd, old.read(self.size - size))
                self._take_place(new)
            self._failed_ns = 0
            self.counts["compacted"] += 1
        except OSError as error:
            self._failed_ns = self._clock()
            log.error("quotas: %s cannot be made smaller: %s", self.path, error.strerror or error)

    def close(self) -> None:
        """Sync, and let another have it."""
        with self._writing:
            for fd in (self._fd, self._lock_fd):
                if fd >= 0:
                    with suppress(OSError):
                        if self._fsync != "never":
                            os.fsync(fd)
                    os.close(fd)
            self._fd = self._lock_fd = -1

    def _lines(self, batch: JournalBatch) -> bytes:
        at_ns, wall_ns = self._clock(), self._wall()
        return b"".join(line(Stamped(at_ns, wall_ns, each)) for each in parts(batch))

    def _add(self, data: bytes) -> None:
        if self._fd < 0:
            raise OSError(0, "it is closed", str(self.path))
        try:
            _write(self._fd, data)
        except OSError:
            # So that what comes next begins a line of its own; it needs no room.
            with suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)
        self.counts["unsynced"] = 1

    def _not_written(self, error: OSError) -> None:
        self.counts["failed"] += 1
        if not self.said:
            log.error(
                "quotas: %s cannot be written: %s; a restart now would forget what comes",
                self.path,
                error.strerror or error,
            )
        self.said = error.strerror or str(error)

    def _made_anew(self, state: JournalState) -> _New:
        new = _New(self.path.with_name(f"{NAME}.new"))
        try:
            head = Head(VERSION, self._boot, [kind.name for kind in KINDS])
            _write(new.fd, line(head))
            for number, batch in enumerate(state.batches(RECORDS_MAX // 10)):
                _write(new.fd, line(Stamped(self._clock(), self._wall(), batch)))
                if number % LINES_AT_ONCE == LINES_AT_ONCE - 1:
                    time.sleep(PAUSE_S)
        except BaseException:
            new.__exit__()
            raise
        return new

    def _take_place(self, new: _New) -> None:
        if self._fsync != "never":
            os.fsync(new.fd)
        new.path.replace(self.path)
        if self._fsync != "never":
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        before, self._fd, new.fd = self._fd, new.fd, -1
        if before >= 0:
            os.close(before)
        self.size = os.fstat(self._fd).st_size
        self._compact_above = max(self._bytes_max, 2 * self.size)


class _New:
    """A file that is to take another's place; gone again where it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(path, flags, 0o600)

    def __enter__(self) -> _New:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            with suppress(OSError):
                self.path.unlink()


def _moved(found: FileLines, move: Callable[[int], int]) -> None:
    """Scopes with their times moved."""

    def tats(words: dict[int, int]) -> dict[int, int]:
        return {kind: move(tat) for kind, tat in words.items()}

    found.state.scopes = {
        name: scope._replace(tats=tats(scope.tats), extra=tats(scope.extra))
        for name, scope in found.state.scopes.items()
    }


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
