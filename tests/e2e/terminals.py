"""A page's shell commands in terminals of their own: one bash for each, fed the lines as they stand there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

#: A line that only this prints: what was typed before it is done.
DONE = "--- done"


class Terminal:
    """A bash that stays open; what it prints goes to a file."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / f"{name}.out"
        with self.log.open("wb") as out:
            self._shell = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                text=True,
                start_new_session=True,
            )
        self._typed = 0

    def type(self, text: str) -> None:
        """Type lines; whatever runs last may go on running."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.rstrip("\n") + "\n")
        self._shell.stdin.flush()

    def run(self, text: str, *, timeout_s: float = 120.0) -> str:
        """Type lines and wait until they are done; what they printed. The last one must succeed."""
        before = len(self.output())
        self._typed += 1
        mark = f"{DONE} {self._typed}"
        # What is printed last need not end its line.
        self.type(f"{text.rstrip()}\ncode=$?; echo; echo '{mark}' $code")
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(rf"^{mark} (\d+)$", self.output(), re.MULTILINE)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text}\nis not done after {timeout_s} s:\n{self.output()[before:]}")
            time.sleep(0.05)
        said = self.output()[before : found.start()]
        assert found[1] == "0", f"{text}\nexit code {found[1]}\n{said}"
        return said

    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End what runs in it as Ctrl-C would, then the shell."""
        assert self._shell.stdin is not None
        for number, wait_s in ((signal.SIGINT, 1), (signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._shell.pid, number)
            with contextlib.suppress(BrokenPipeError):
                self._shell.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(wait_s)
                return
