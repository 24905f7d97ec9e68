"""What a child writes: its last lines for people, a bounded log file, and lines passed on.

Owns the pipe's reading end. A child that writes much is read and cut, never blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

#: Lines kept to show when a child fails.
TAIL_LINES = 30
#: A longer line is passed on in pieces.
LINE_BYTES_MAX = 16 * 1024
#: A log file above this is moved to `.1` and begun anew.
LOG_BYTES_MAX = 8 * 1024 * 1024
READ_BYTES = 64 * 1024

Echo = Callable[[str, str], None]


class Output:
    """One child's standard output and error, over all its restarts."""

    def __init__(self, name: str, *, file: Path | None = None, echo: Echo | None = None) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._file = file
        self._echo = echo
        self._partial = b""
        self._reading: int | None = None

    def open(self) -> int:
        """A pipe's writing end for a new process; the caller closes it once the process has it."""
        self.close()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._reading = reading
        asyncio.get_running_loop().add_reader(reading, self._readable)
        return writing

    def close(self) -> None:
        """Take what is there, then stop reading."""
        if self._reading is None:
            return
        while self._reading is not None and self._readable():
            pass
        self._end()

    def _readable(self) -> bool:
        assert self._reading is not None
        try:
            data = os.read(self._reading, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        self.feed(data)
        return True

    def _end(self) -> None:
        if self._reading is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._reading = None
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        self._write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        while len(self._partial) > LINE_BYTES_MAX:
            self._line(self._partial[:LINE_BYTES_MAX])
            self._partial = self._partial[LINE_BYTES_MAX:]

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if not text:
            return
        self.tail.append(text)
        if self._echo is not None:
            self._echo(self.name, text)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        # A full disk must not end the supervision of what serves.
        with contextlib.suppress(OSError):
            if self._file.exists() and self._file.stat().st_size > LOG_BYTES_MAX:
                self._file.replace(self._file.with_name(self._file.name + ".1"))
            with self._file.open("ab") as log:
                log.write(data)
