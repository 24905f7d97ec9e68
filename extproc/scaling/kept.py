"""What scaling has learnt, on disk: arrivals by time of day and week, load times, corrections.

Owns what is in the file, and its bound. How it is written, and what becomes of a damaged one, is
state/whole_file.py's.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from extproc.state.whole_file import WholeFile

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


def kept_file(folder: Path) -> WholeFile[KeptScaling]:
    """The file in a folder."""
    lost = "it is learnt anew"
    return WholeFile(folder / NAME, KeptScaling, magic=MAGIC, lost=lost, bytes_max=BYTES_MAX)
