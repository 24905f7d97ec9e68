"""The history of a configuration: JSON lines beside the file, only ever added to, each with the whole text.

Each entry holds the hash of the one before, so that one that was altered or taken out shows (whoever
rewrites all of them to the end is not caught; the audit log, kept elsewhere, has the texts' hashes too). A
text may hold secrets (Redis's password): the files are their owner's alone. Keys are in it as hashes; a text
with a key in clear is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

#: The history's file is put aside above this, and so many are kept beside the current one.
HISTORY_BYTES_MAX = 64 * 1024 * 1024
FILES_KEPT = 4
#: What a person may write of a change.
WHY_CHARS_MAX, WHO_CHARS_MAX = 1_000, 200

#: What becomes of a line that is no entry, whatever stands in it.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

OUTSIDE, FOUND = "changed outside", "found"
_KEY = re.compile(r"sk-steer-[A-Za-z0-9_-]{40,}")


class HistoryError(Exception):
    """The history cannot be kept or does not hold what is asked for; the message says why."""


class Version(msgspec.Struct, frozen=True):
    """One version. `previous` and `hash` are the chain's."""

    version: int
    at: str
    who: str
    why: str
    command: str
    sha256: str
    text: str
    previous: str
    hash: str = ""

    def sealed(self) -> str:
        """The hash that this entry should have."""
        bare = msgspec.structs.replace(self, hash="")
        return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


@dataclass(frozen=True, slots=True)
class VersionLog:
    """Every version that is kept, oldest first, and what is wrong with the files."""

    entries: list[Version]
    problems: list[str]

    def version(self, number: int) -> Version:
        """One version; the last of that number, should there be two. Raises HistoryError."""
        for entry in reversed(self.entries):
            if entry.version == number:
                return entry
        have = f"{self.entries[0].version} to {self.entries[-1].version}" if self.entries else "none"
        raise HistoryError(f"no version {number} is kept; there are {have}")


class ConfigHistory:
    """The versions of one configuration file. Writers hold `locked(file)`."""

    def __init__(self, file: Path, *, bytes_max: int = HISTORY_BYTES_MAX) -> None:
        self.path = file.with_name(f"{file.name}.history.jsonl")
        self._bytes_max = bytes_max

    @property
    def exists(self) -> bool:
        """Whether any version was ever recorded."""
        return self.path.exists() or self._aside(1).exists()

    def latest(self) -> Version | None:
        """The last entry that can be read."""
        for path in (self.path, *(self._aside(n) for n in range(1, FILES_KEPT + 1))):
            for line in _lines_from_the_end(path):
                with contextlib.suppress(*UNREADABLE):
                    return msgspec.json.decode(line, type=Version)
        return None

    def read(self) -> VersionLog:
        """Every version, and where the chain is broken."""
        entries: list[Version] = []
        problems = []
        before: str | None = None
        for path in (*(self._aside(n) for n in range(FILES_KEPT, 0, -1)), self.path):
            for number, line in enumerate(_lines(path), start=1):
                try:
                    entry = msgspec.json.decode(line, type=Version)
                except UNREADABLE:
                    problems.append(f"{path}:{number}: is no entry; it was cut off or altered")
                    continue
                intact = entry.hash == entry.sealed() and entry.sha256 == digest(entry.text)
                if not intact:
                    problems.append(f"{path}:{number}: version {entry.version} was altered")
                if before is not None and entry.previous != before:
                    problems.append(f"{path}:{number}: what was before version {entry.version} is missing")
                before = entry.hash
                entries.append(entry)
        return VersionLog(entries, problems)

    def note(self, text: str, *, now: datetime | None = None) -> Version | None:
        """Record what somebody wrote without us; None when it is the last version as it stands."""
        latest = self.latest()
        if latest is not None and latest.sha256 == digest(text):
            return None
        return self._append(latest, text, who="", why="", command=OUTSIDE if latest else FOUND, now=now)

    def append(self, text: str, *, who: str, why: str, command: str, now: datetime | None = None) -> Version:
        """Record a version. Raises HistoryError, with nothing written."""
        return self._append(self.latest(), text, who=who, why=why, command=command, now=now)

    def _append(
        self, latest: Version | None, text: str, *, who: str, why: str, command: str, now: datetime | None
    ) -> Version:
        if found := _KEY.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise HistoryError(f"line {line} holds an API key itself, which is kept nowhere; remove it first")
        at = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
        entry = Version(
            version=latest.version + 1 if latest else 1,
            at=at.replace("+00:00", "Z"),
            who=who[:WHO_CHARS_MAX],
            why=why[:WHY_CHARS_MAX],
            command=command,
            sha256=digest(text),
            text=text,
            previous=latest.hash if latest else "",
        )
        entry = msgspec.structs.replace(entry, hash=entry.sealed())
        try:
            self._write(msgspec.json.encode(entry) + b"\n")
        except OSError as error:
            raise HistoryError(f"{self.path}: cannot be written: {error.strerror}") from error
        return entry

    def _write(self, line: bytes) -> None:
        if self.path.exists() and self.path.stat().st_size + len(line) > self._bytes_max:
            for number in range(FILES_KEPT, 0, -1):
                older = self._aside(number - 1) if number > 1 else self.path
                if older.exists():
                    older.replace(self._aside(number))
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line  # a line that was cut off stays alone
            try:
                _write_all(fd, line)
                os.fsync(fd)
            except OSError:
                # A full disk takes the beginning of a line: what it took is taken back.
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def digest(text: str) -> str:
    """A text's SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def user() -> str:
    """Who runs this, as far as the system says: $USER, else the account's name."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """One writer at a time, by a lock on the file's folder. Raises BlockingIOError where it may not wait."""
    fd = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def read_text(file: Path) -> str:
    """A file's text as it stands, line ends included."""
    return file.read_bytes().decode()


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all; its mode and owner stay, a link stays one."""
    with written_aside(file, text) as put:
        put()


@contextlib.contextmanager
def written_aside(file: Path, text: str) -> Iterator[Callable[[], None]]:
    """The text on the disk beside a file, and what puts it into the file's place; gone if that is not called.

    The file's mode and owner stay, a link stays one. Raises OSError.
    """
    target = file.resolve()
    before = target.stat()
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    new = Path(name)

    def put() -> None:
        new.replace(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    try:
        try:
            _write_all(fd, text.encode())
            os.fchmod(fd, before.st_mode & 0o7777)
            if (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, before.st_uid, before.st_gid)
            os.fsync(fd)
        finally:
            os.close(fd)
        yield put
    finally:
        new.unlink(missing_ok=True)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        return


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """The last lines first; most callers want one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            tail, block = b"", 1024 * 1024
            while size > 0:
                step = min(block, size)
                size -= step
                file.seek(size)
                tail = file.read(step) + tail
                first, *whole = tail.split(b"\n")
                yield from (line for line in reversed(whole) if line.strip())
                tail = first
            if tail.strip():
                yield tail
    except FileNotFoundError:
        return
