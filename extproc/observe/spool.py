"""Lines on their way to a file that is put aside when it has grown: a bounded wait, a thread that writes.

Owns the waiting line, its bound, the lock of who writes, and the file's rotation. Knows nothing of what a
line says. What waits is written by `flush`, which may run in a thread, so that a slow disk delays no
decision; a killed process loses what waits. A file that cannot be written is said once in the ordinary log,
and again when it can.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

#: Files kept beside the current one.
FILES_KEPT = 4

T = TypeVar("T")


class Spool(Generic[T]):
    """What waits for the disk; the newest are dropped above `waiting_max`. `name` is for the log.

    `add` is the event loop's; `writing`, `take` and `write` are the flushing thread's.
    """

    def __init__(self, name: str, *, waiting_max: int) -> None:
        self.name = name
        self.waiting_max = waiting_max
        #: Dropped and not yet taken; ever dropped; ever lost to a disk that refused.
        self.dropped = self.dropped_total = self.lost_total = 0
        self._waiting: list[T] = []
        self._writing = threading.Lock()
        self._silent = True

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, line: T) -> bool:
        """Let a line wait; false when it was dropped."""
        if len(self._waiting) >= self.waiting_max:
            self.dropped += 1
            self.dropped_total += 1
            return False
        self._waiting.append(line)
        return True

    def take(self) -> tuple[list[T], int]:
        """All that waits, and how many were dropped since it was last asked."""
        lines, self._waiting = self._waiting, []
        dropped, self.dropped = self.dropped, 0
        return lines, dropped

    @contextmanager
    def writing(self, *, wait: bool) -> Iterator[bool]:
        """One writer at a time; yields false to a second one that does not wait."""
        taken = self._writing.acquire(blocking=wait)
        try:
            yield taken
        finally:
            if taken:
                self._writing.release()

    def write(
        self, path: Path, data: bytes, *, lines: int, bytes_max: int, head: Callable[[], bytes] | None = None
    ) -> bool:
        """Append `data`, which holds so many lines; false when it was lost. Never raises OSError."""
        try:
            append(path, data, bytes_max=bytes_max, head=head)
        except OSError as error:
            self.lost_total += lines
            if self._silent:
                log.error(
                    "the %s %s cannot be written: %s; going on without", self.name, path, error.strerror
                )
            self._silent = False
            return False
        if not self._silent:
            log.warning("the %s %s can be written again", self.name, path)
        self._silent = True
        return True


def append(path: Path, data: bytes, *, bytes_max: int, head: Callable[[], bytes] | None = None) -> None:
    """Add lines to a file that other processes add to as well; put it aside when it has grown too large.

    `head` is what a file begins with, asked for when one is begun.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
            if not here.st_size and head is not None:
                data = head() + data
            if here.st_size and os.pread(fd, 1, here.st_size - 1) != b"\n":
                log.warning("%s ended within a line, which is lost: the process or its disk gave out", path)
                data = b"\n" + data
            write_whole_lines(fd, data, size=here.st_size)
        finally:
            os.close(fd)
        return


def write_whole_lines(fd: int, data: bytes, *, size: int) -> None:
    """Append to a file of so many bytes that nobody else writes to now, all or nothing.

    A disk that is full takes the beginning of a line and then refuses: what it took is taken back.
    """
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        os.ftruncate(fd, size)
        raise


def aside(path: Path, number: int) -> Path:
    """Where a file that was put aside is; 1 is the newest."""
    return path.with_name(f"{path.name}.{number}")


def _is(path: Path, here: os.stat_result) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
