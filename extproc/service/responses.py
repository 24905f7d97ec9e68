"""Which replica holds which response, kept over a restart where `state.dir` is set.

Owns the files: each holds so many responses in the order in which they were made. The newest is written whole
while it grows, the others stay as they are, and the oldest go. Of a killed service they have all but the last
second's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from extproc.config.model import Config
from extproc.core.responses import RESPONSES_MAX, HeldResponse, HeldResponses
from extproc.service.parts import Part
from extproc.state.whole_file import WholeFile

MAGIC: Final = b"steersman responses 1\n"
#: Responses of one file, which is written within a millisecond, and files.
EACH_MAX: Final = 2_000
FILES_MAX: Final = RESPONSES_MAX // EACH_MAX
#: An id, a tenant, a model and an address have 1,100 bytes at the most.
BYTES_MAX: Final = 4 * 1024 * 1024
#: How often the newest is written while something comes.
WRITE_NS: Final = 1_000_000_000
_NAME: Final = re.compile(r"responses\.(\d{10})\.kept")


class KeptResponses(msgspec.Struct):
    """Ids and who holds them, the oldest first."""

    held: list[tuple[str, HeldResponse]] = []


class ResponsesPart(Part):
    """The part of held responses."""

    name = "responses"

    def __init__(self, config: Config, responses: HeldResponses, *, clock: Callable[[], int]) -> None:
        self._responses, self._clock = responses, clock
        state = config.state
        self._folder = Path(state.dir) if state.enabled and state.dir is not None else None
        #: The newest file, what is in it, and the number that its name has.
        self._file: WholeFile[KeptResponses] | None = None
        self._newest: list[tuple[str, HeldResponse]] = []
        self._number = 0
        self._to_write: list[list[tuple[str, HeldResponse]]] = []
        #: The last that was full, on disk whole.
        self._full: list[tuple[str, HeldResponse]] | None = None
        self._next_ns = 0
        self._counts = {"written": 0, "failed": 0, "damaged": 0}

    async def start(self) -> None:
        """Read what another process left, before anybody is let in."""
        if self._folder is None:
            return
        for number, kept in await asyncio.to_thread(self._read):
            self._number = number
            for identity, held in kept:
                self._responses.put(identity, held)
        self._responses.fresh = []

    def step(self, *, now_ns: int) -> None:
        """Take what has come."""
        if not self._responses.fresh or now_ns < self._next_ns:
            return
        self._next_ns = now_ns + WRITE_NS
        fresh, self._responses.fresh = self._responses.fresh, []
        while fresh:
            room = EACH_MAX - len(self._newest)
            self._newest += fresh[:room]
            del fresh[:room]
            if not self._to_write or self._to_write[-1] is not self._newest:
                self._to_write.append(self._newest)
            if len(self._newest) == EACH_MAX:
                self._newest = []

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return bool(self._to_write)

    def write(self) -> None:
        """Write it, file by file."""
        to_write, self._to_write = self._to_write, []
        while to_write:
            held = to_write[0]
            if held is self._full:
                del to_write[0]  # whole on disk, as it came meanwhile
                continue
            if self._file is None:
                self._number += 1
                self._file = self._file_of(self._number)
            before = dict(self._file.counts)
            whole = self._file.write(KeptResponses(list(held)))
            self._count(before, self._file.counts)
            if not whole:
                # Tried again at the next step, before what comes then; the oldest give way.
                self._to_write = [*to_write, *self._to_write][-FILES_MAX:]
                return
            del to_write[0]
            if len(held) >= EACH_MAX:
                self._file, self._full = None, held
                self._forget()

    async def stop(self) -> None:
        """Write the last of it."""
        self._next_ns = 0
        self.step(now_ns=self._clock())
        await asyncio.to_thread(self.write)

    def status(self) -> dict[str, int]:
        """How many are known, and how the files fare."""
        return {"known": len(self._responses), **self._counts}

    def _read(self) -> list[tuple[int, list[tuple[str, HeldResponse]]]]:
        found = []
        for number in self._numbers():
            file = self._file_of(number)
            kept = file.load()
            self._count({}, file.counts)
            found.append((number, [] if kept is None else kept.held))
        return found

    def _forget(self) -> None:
        for number in self._numbers()[:-FILES_MAX]:
            self._path(number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        assert self._folder is not None
        if not self._folder.is_dir():
            return []
        named = (_NAME.fullmatch(each.name) for each in self._folder.iterdir())
        return sorted(int(each[1]) for each in named if each is not None)

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"responses.{number:010d}.kept"

    def _file_of(self, number: int) -> WholeFile[KeptResponses]:
        lost = "those responses are not known"
        return WholeFile(self._path(number), KeptResponses, magic=MAGIC, lost=lost, bytes_max=BYTES_MAX)

    def _count(self, before: dict[str, int], now: dict[str, int]) -> None:
        for name, count in now.items():
            self._counts[name] += count - before.get(name, 0)
