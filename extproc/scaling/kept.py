"""What scaling has learnt, on disk: arrivals by time of day and week, load times, corrections.

Owns the file, its bounds and what becomes of a damaged one: it is said, put aside, and all is learnt anew.
Written whole, to a file beside it that then takes its place. It waits for the disk: in a thread.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from xxhash import xxh3_64_digest

log = logging.getLogger(__name__)

NAME: Final = "scaling.kept"
MAGIC: Final = b"steersman scaling 1\n"
#: No file is read that is larger: sixty days of a thousand pools are 350 MB, of the usual twenty 7.
BYTES_MAX: Final = 512 * 1024 * 1024


class KeptPool(msgspec.Struct, array_like=True):
    """A pool: means by grain (32-bit floats, NaN for gaps) from the place `first` on."""

    grain_s: float
    first: int
    means: bytes
    correction: float = 1.0
    #: (class, prompt, cached, output) of recent requests.
    samples: Sequence[tuple[str, int, int, int]] = ()
    damped: tuple[float, float, float] | None = None
    #: Requests by load, and those that attained (core/scaling/record.py).
    record: tuple[list[float], list[float]] = ([], [])
    #: What is left free of what replicas were seen to bear (core/scaling/margin.py).
    margin: float = 0.0

    def rates(self) -> array[float]:
        """The means."""
        values = array("f")
        values.frombytes(self.means[: len(self.means) // 4 * 4])
        return values


class KeptScaling(msgspec.Struct):
    """All that is kept."""

    pools: dict[str, KeptPool] = {}
    #: (pool, hardware, cold, seconds).
    loads: list[tuple[str, str, bool | None, list[float]]] = []
    #: The same of switches to the pool's model, by kind.
    switches: list[tuple[str, str, bool | None, list[float]]] = []


class KeptScalingFile:
    """The file in a folder. `counts` are of what was written, what failed, and what was damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.counts: dict[str, int] = {"written": 0, "failed": 0, "damaged": 0}
        self._said = False

    def load(self) -> KeptScaling:
        """What is there; nothing where there is no file, or none that can be used."""
        try:
            if self.path.stat().st_size > BYTES_MAX:
                raise msgspec.DecodeError(f"it has more than {BYTES_MAX} bytes")
            return _decoded(self.path.read_bytes())
        except FileNotFoundError:
            return KeptScaling()
        except (msgspec.DecodeError, OSError) as error:
            self.counts["damaged"] += 1
            aside = self.path.with_name(f"{NAME}.damaged")
            log.warning(
                "scaling: %s cannot be used (%s): put aside as %s, learnt anew", self.path, error, aside
            )
            try:
                self.path.replace(aside)
            except OSError as moving:
                log.warning("scaling: it cannot be put aside either: %s", moving)
            return KeptScaling()

    def write(self, kept: KeptScaling) -> bool:
        """Write it; False where the disk would not, which is said once until it does again."""
        body = msgspec.msgpack.encode(kept)
        beside = self.path.with_name(f"{NAME}.new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(MAGIC + xxh3_64_digest(body) + body)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as error:
            self.counts["failed"] += 1
            if not self._said:
                log.warning("scaling: %s cannot be written (%s): a restart learns anew", self.path, error)
            self._said = True
            return False
        self.counts["written"] += 1
        self._said = False
        return True


def _decoded(raw: bytes) -> KeptScaling:
    """Raises msgspec.DecodeError (ValidationError is one)."""
    head, digest, body = raw[: len(MAGIC)], raw[len(MAGIC) : len(MAGIC) + 8], raw[len(MAGIC) + 8 :]
    if head != MAGIC:
        raise msgspec.DecodeError("it is of another version, or no such file")
    if xxh3_64_digest(body) != digest:
        raise msgspec.DecodeError("its checksum is wrong")
    return msgspec.msgpack.decode(body, type=KeptScaling)
