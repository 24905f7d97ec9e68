"""A file that is written whole, to one beside it that then takes its place, and read once at the start.

Owns the checksum and what becomes of a damaged file: it is said, put aside, and the start is made without. It
waits for the disk: in a thread.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from xxhash import xxh3_64_digest

log = logging.getLogger(__name__)

T = TypeVar("T")


class WholeFile(Generic[T]):
    """A value on disk.

    `magic` ends with a line's end and says the format's version; `lost` says in a log line what is forgotten
    without the file. `counts` are of what was written, what failed, and what was damaged.
    """

    def __init__(self, path: Path, kind: type[T], *, magic: bytes, lost: str, bytes_max: int) -> None:
        self.path, self._kind, self._magic = path, kind, magic
        self._lost, self._bytes_max = lost, bytes_max
        self.counts: dict[str, int] = {"written": 0, "failed": 0, "damaged": 0}
        self._said = False

    def load(self) -> T | None:
        """What is there; None where there is no file, or none that can be used."""
        try:
            if self.path.stat().st_size > self._bytes_max:
                raise msgspec.DecodeError(f"it has more than {self._bytes_max} bytes")
            return self._decoded(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, OSError) as error:
            self.counts["damaged"] += 1
            aside = self.path.with_name(f"{self.path.name}.damaged")
            log.warning("%s cannot be used (%s): put aside as %s, %s", self.path, error, aside, self._lost)
            try:
                self.path.replace(aside)
            except OSError as moving:
                log.warning("%s cannot be put aside either: %s", self.path, moving)
            return None

    def write(self, value: T) -> bool:
        """Write it; False where the disk would not, which is said once until it does again."""
        body = msgspec.msgpack.encode(value)
        beside = self.path.with_name(f"{self.path.name}.new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(self._magic + xxh3_64_digest(body) + body)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as error:
            self.counts["failed"] += 1
            if not self._said:
                log.warning("%s cannot be written (%s): after a restart %s", self.path, error, self._lost)
            self._said = True
            return False
        self.counts["written"] += 1
        self._said = False
        return True

    def _decoded(self, raw: bytes) -> T:
        """Raises msgspec.DecodeError (ValidationError is one)."""
        magic = self._magic
        head, digest, body = raw[: len(magic)], raw[len(magic) : len(magic) + 8], raw[len(magic) + 8 :]
        if head != magic:
            raise msgspec.DecodeError("it is of another version, or no such file")
        if xxh3_64_digest(body) != digest:
            raise msgspec.DecodeError("its checksum is wrong")
        return msgspec.msgpack.decode(body, type=self._kind)
