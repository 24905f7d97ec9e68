"""Figures in a file of their own: SQLite, so that a kill leaves what was written whole.

Owns the file, its size and what becomes of one that is no longer readable. Several services on one machine
may share it. A write waits for the system, not for the disk: a power cut may lose the last seconds, a kill
nothing.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from extproc.observe.analytics.spans import HOUR, LENGTHS, Retention, Stretch
from extproc.observe.analytics.store import StoredRow, StoreError

log = logging.getLogger(__name__)

#: The file in the configured folder.
FILE = "analytics.db"
#: How long another service's write is waited for.
BUSY_S = 2.0
PAGE_BYTES = 4_096
#: Rows fetched at once.
FETCHED = 256
#: A full file gives up this share of its minutes, then hours, and is tried again, at most so often.
GIVEN_UP, TRIES = 4, 8

_TABLES = """
CREATE TABLE IF NOT EXISTS rows (
  length_s INTEGER, begin_s INTEGER, writer TEXT, key BLOB, data BLOB,
  PRIMARY KEY (length_s, begin_s, writer, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (name TEXT PRIMARY KEY, at_s INTEGER) WITHOUT ROWID;
"""


class SqliteStore:
    """Rows in `folder`/analytics.db, which grows to `bytes_max` at the most. Opened when first used."""

    def __init__(self, folder: str | Path, *, bytes_max: int) -> None:
        self.name = f"file {Path(folder) / FILE}"
        self.bytes_max = bytes_max
        self.early = 0
        self._path = Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None

    def write(self, entries: Sequence[StoredRow], retention: Retention) -> None:  # noqa: ARG002 (the port's)
        """Keep rows, all or none; a full file gives up its oldest minutes for them."""
        for left in reversed(range(TRIES)):
            try:
                with self._open() as connection:
                    connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", entries)
                return
            except sqlite3.Error as error:
                if not _full(error) or not left or not self._gave_up():
                    raise self._failed(error) from error

    def read(self, stretch: Stretch) -> Iterator[StoredRow]:
        """The rows of whole spans."""
        try:
            found = self._open().execute(
                "SELECT * FROM rows WHERE length_s = ? AND begin_s >= ? AND begin_s < ?", stretch
            )
            while rows := found.fetchmany(FETCHED):
                for row in rows:
                    yield StoredRow(*row)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def prune(self, retention: Retention, *, now_s: int) -> None:
        """Forget what has been kept for long enough."""
        try:
            with self._open() as connection:
                for length_s in LENGTHS:
                    oldest_s = retention.since_s(length_s, now_s=now_s)
                    connection.execute(
                        "DELETE FROM rows WHERE length_s = ? AND begin_s < ?", (length_s, oldest_s)
                    )
                connection.execute("DELETE FROM claims WHERE at_s < ?", (now_s - HOUR,))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def claim(self, names: Sequence[str]) -> list[bool]:
        """For each name whether it was claimed now, for the first time."""
        at_s = int(time.time())
        try:
            with self._open() as connection:
                return [
                    connection.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (name, at_s)).rowcount
                    > 0
                    for name in names
                ]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        connection = sqlite3.connect(self._path, timeout=BUSY_S, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA max_page_count = {max(1, self.bytes_max // PAGE_BYTES)}")
            connection.executescript(_TABLES)
        except sqlite3.Error:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _gave_up(self) -> bool:
        """As `_give_up`; a disk without room for even that (the file's journal) gives up nothing."""
        try:
            return self._give_up()
        except sqlite3.Error:
            return False

    def _give_up(self) -> bool:
        """Delete the oldest of what is kept shortest; false when nothing but the newest spans is left."""
        connection = self._open()
        for length_s in LENGTHS:
            spans = [
                each
                for (each,) in connection.execute(
                    "SELECT DISTINCT begin_s FROM rows WHERE length_s = ? ORDER BY begin_s", (length_s,)
                )
            ]
            if len(spans) < 2:
                continue
            until_s = spans[max(1, len(spans) // GIVEN_UP)]
            with connection:
                gone = connection.execute(
                    "DELETE FROM rows WHERE length_s = ? AND begin_s < ?", (length_s, until_s)
                )
            self.early += gone.rowcount
            return True
        return False

    def _failed(self, error: sqlite3.Error) -> StoreError:
        """Begin anew with the next call; a file that is none, or broken, is set aside first."""
        self.close()
        if _broken(error):
            aside = self._path.with_name(f"{FILE}.broken-{int(time.time())}")
            with contextlib.suppress(OSError):
                self._path.replace(aside)
                for suffix in ("-wal", "-shm"):
                    self._path.with_name(FILE + suffix).unlink(missing_ok=True)
                log.error("analytics: %s is broken (%s): set aside as %s", self._path, error, aside.name)
        return StoreError(f"{self._path}: {error}")


def _full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _broken(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
