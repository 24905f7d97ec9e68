"""Keeps one replica: `python -I -S keeper.py SPEC COMMAND...`, a small process between service and engine.

Owns that nothing is left behind, whoever dies. It is the engine's parent and reaps what the engine leaves
(PR_SET_CHILD_SUBREAPER), so a stop reaches children that have gone their own way too. It outlives the service
that started it, since a model takes minutes to load and streams go on while the service is away; a successor
finds it by its state file. Without an owner for `orphan_s` it ends the engine. If it is killed itself, the
kernel kills the engine (PR_SET_PDEATHSIG), and the launcher sweeps up the rest by their environment's mark.
Runs as a plain script, so it imports nothing of the project. What is Linux's alone is left out elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The environment variable by which a replica's processes are told from others; its value is the state file.
MARK = "STEERSMAN_REPLICA"
#: How often the owner is looked for, and what is to end while it does.
LOOK_S, ENDING_LOOK_S = 1.0, 0.05
READ_BYTES = 64 * 1024
#: The exit code of a command that cannot be run.
CANNOT_RUN = 127
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"


def started(pid: int) -> int:
    """When a process began, in the kernel's ticks; 0 where there is none any more, or it is a zombie.

    A process id comes again, the two together do not. 1 where the system has no /proc.
    """
    if not _LINUX:
        try:
            os.kill(pid, 0)
        except OSError:
            return 0
        return 1
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else 0


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    # The name stands in brackets, and may hold blanks and brackets.
    return text.rpartition(")")[2].split()


def processes() -> Iterator[int]:
    """The ids of all processes."""
    if _LINUX:
        yield from (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())


def descendants(root: int) -> set[int]:
    """The processes below one, zombies left out."""
    parents = {}
    for pid in processes():
        fields = _stat(pid)
        if fields and fields[0] != "Z":
            parents[pid] = int(fields[1])
    found: set[int] = set()
    new = {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


class Keeper:
    """One replica's parent. `spec` names its files and patience; see `main`."""

    def __init__(self, spec: dict[str, Any], command: list[str]) -> None:
        self._spec, self._command = spec, command
        self._state, self._owner = Path(spec["state"]), Path(spec["owner"])
        self._log, self._log_bytes = Path(spec["log"]), int(spec["log_bytes"])
        self._owned_s = time.monotonic()
        #: From when on nothing is asked any more, but killed.
        self._deadline_s: float | None = None
        self._code: int | None = None
        self._pid = 0

    def run(self) -> int:
        """Until nothing of it is left; the exit code."""
        if _LINUX:
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        woken, waking = os.pipe()
        for end in (woken, waking):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        for signum in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
            # Handlers and not SIG_IGN, which the command would inherit.
            signal.signal(signum, lambda *_: None)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                preexec_fn=_leash,  # noqa: PLW1509 (this process has one thread)
                env={**os.environ, MARK: str(self._state)},
            )
        except (OSError, ValueError) as error:
            self._note(ended=f"cannot be run: {getattr(error, 'strerror', None) or error}", code=CANNOT_RUN)
            return CANNOT_RUN
        os.close(writing)
        self._pid = child.pid
        self._note(pid=child.pid)
        while True:
            pause_s = LOOK_S if self._deadline_s is None and self._code is None else ENDING_LOOK_S
            ready, _, _ = select.select([reading, woken], [], [], pause_s)
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, READ_BYTES)
            self._copy(reading)
            self._reap()
            if self._over():
                break
            self._look_for_owner()
        self._copy(reading)
        child.returncode = self._code
        code = self._code or 0
        self._note(ended=_how(code), code=code)
        return code if code >= 0 else 128 - code

    def _over(self) -> bool:
        """Whether nothing of it is left; asks or kills what is."""
        if self._code is None and self._deadline_s is None:
            return False
        now_s = time.monotonic()
        rest = descendants(os.getpid())
        if self._code is not None and not rest:
            return True
        # What a command leaves that ended by itself gets no time: nobody waits for it.
        if self._deadline_s is None or now_s >= self._deadline_s:
            self._send(signal.SIGKILL, rest)
        return False

    def _end(self) -> None:
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + float(self._spec["stop_s"])
            rest = descendants(os.getpid())
            self._send(signal.SIGTERM, rest)
            # One that was halted would never hear of it.
            self._send(signal.SIGCONT, rest)

    def _send(self, signum: signal.Signals, rest: set[int]) -> None:
        if self._code is None and self._pid:
            with contextlib.suppress(OSError):
                os.killpg(self._pid, signum)
            rest = {pid for pid in rest if _group(pid) != self._pid}
        for pid in rest:
            with contextlib.suppress(OSError):
                os.kill(pid, signum)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._pid:
                    self._code = os.waitstatus_to_exitcode(status)

    def _look_for_owner(self) -> None:
        now_s = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            pid, since = (int(part) for part in self._owner.read_text(encoding="ascii").split())
            if started(pid) == since:
                self._owned_s = now_s
        if now_s - self._owned_s > float(self._spec["orphan_s"]):
            self._end()

    def _copy(self, reading: int) -> None:
        """What it wrote, into a log that is bounded. A full disk must not stop it."""
        with contextlib.suppress(OSError):
            while data := os.read(reading, READ_BYTES):
                with contextlib.suppress(OSError):
                    if self._log.exists() and self._log.stat().st_size > self._log_bytes:
                        self._log.replace(self._log.with_name(self._log.name + ".1"))
                    with self._log.open("ab") as log:
                        log.write(data)

    def _note(self, **facts: Any) -> None:
        """Write the state file, whole or not at all."""
        own = os.getpid()
        known = {**self._spec, "keeper": own, "keeper_started": started(own), "pid": self._pid, **facts}
        new = self._state.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(known), encoding="utf-8")
            new.replace(self._state)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _leash() -> None:
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _how(code: int) -> str:
    return f"exited with {code}" if code >= 0 else f"was killed by signal {-code}"


def main(argv: list[str]) -> int:
    """`argv`: a JSON object and the command.

    The object's `state`, `owner` and `log` are files, `log_bytes` bounds the last, `stop_s` and `orphan_s`
    are its patience; what else it holds goes into the state file as it is.
    """
    return Keeper(json.loads(argv[0]), argv[1:]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
