"""One replica's process as the service holds it: started under a keeper, or found again after a restart.

Owns the state files' folder. Blocking calls that take milliseconds; who calls starts in a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from extproc.scaling.keeper import CANNOT_RUN, MARK, processes, started

KEEPER: Final = str(Path(__file__).with_name("keeper.py"))
#: A replica whose service is away, and has no successor, ends after so long.
ORPHAN_S: Final = 60.0
#: A log above this is moved to `.1` and begun anew: where the file names a folder, and the launcher's own.
LOG_BYTES_MAX, OWN_LOG_BYTES_MAX = 8 * 1024 * 1024, 256 * 1024
#: Of a log's end so much is read for its last lines, and so many are told.
TAIL_BYTES, TAIL_LINES = 8 * 1024, 12
#: Looks for what is left of a replica until it is given up: what starts children goes on while it is killed.
SWEEPS_MAX, SWEEP_PAUSE_S = 100, 0.02
#: Looks where a keeper is gone: a process in the middle of an exec shows no mark for that moment.
LOOKS_LOST: Final = 3
STATE_SUFFIX: Final = ".replica.json"


class KeptProcess:
    """A keeper and what it keeps. `facts` are those of its state file."""

    def __init__(self, facts: Mapping[str, Any], keeper: subprocess.Popen[bytes] | None = None) -> None:
        self.facts = dict(facts)
        self._state, self.log = Path(facts["state"]), Path(facts["log"])
        self._keeper = keeper

    @property
    def alive(self) -> bool:
        """Whether anything of it runs."""
        if self._keeper is not None:
            return self._keeper.poll() is None
        return bool(self._keeper_pid()) and started(self._keeper_pid()) == self.facts["keeper_started"]

    @property
    def cannot_run(self) -> str:
        """Why the command could not be started; "" where it was."""
        said = self._read()
        return str(said.get("ended", "")) if said.get("code") == CANNOT_RUN and not said.get("pid") else ""

    @property
    def ended(self) -> str:
        """How it ended, in words."""
        return str(self._read().get("ended", "")) or "its keeper was killed"

    @property
    def was_ready(self) -> bool:
        """Whether it was once, by the word of whoever started it."""
        return self._ready.exists()

    def now_ready(self) -> None:
        """Keep that it was."""
        with contextlib.suppress(OSError):
            self._ready.touch()

    @property
    def tail(self) -> list[str]:
        """The last lines that it wrote."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read().decode(errors="replace")
            return [line.rstrip() for line in text.splitlines() if line.strip()][-TAIL_LINES:]
        return []

    def terminate(self) -> None:
        """Ask its keeper to end it; that takes its `stop_s` at the most."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, keeper and all."""
        self._send(signal.SIGKILL)

    def sweep(self) -> int:
        """After its end: kill whatever it has left, and forget it; how many there were."""
        left = kill_marked({str(self._state)})
        for file in (self._state, self._ready):
            with contextlib.suppress(OSError):
                file.unlink()
        return left

    @property
    def _ready(self) -> Path:
        return self._state.with_name(self._state.name.removesuffix(STATE_SUFFIX) + ".ready")

    def _keeper_pid(self) -> int:
        return int(self.facts.get("keeper", 0))

    def _send(self, signum: signal.Signals) -> None:
        if not self.alive:
            return
        with contextlib.suppress(OSError):
            os.kill(self._keeper.pid if self._keeper is not None else self._keeper_pid(), signum)

    def _read(self) -> dict[str, Any]:
        return read_state(self._state)


class KeptFolder:
    """The folder in which the replicas of one service are known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def own(self) -> None:
        """Say that this process is the owner. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.path / "owner.new"
        new.write_text(f"{os.getpid()} {started(os.getpid())}", encoding="ascii")
        new.replace(self.path / "owner")

    def cards_elsewhere(self) -> set[int]:
        """Cards that replicas of this user's other services run on, by the folders beside this one."""
        held: set[int] = set()
        for file in self.path.parent.glob(f"*/*{STATE_SUFFIX}"):
            facts = read_state(file) if file.parent != self.path else {}
            if facts.get("cards") and KeptProcess(facts).alive:
                held.update(facts["cards"])
        return held

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        port: int,
        stop_s: float,
        log_dir: Path | None,
        facts: Mapping[str, Any],
    ) -> KeptProcess:
        """Start a command under a keeper. Raises OSError."""
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
        state = self.path / f"{port}{STATE_SUFFIX}"
        log = (log_dir or self.path) / f"{facts['pool']}-{port}.log"
        for old in (state, self.path / f"{port}.ready"):
            old.unlink(missing_ok=True)
        spec = {
            "state": str(state),
            "owner": str(self.path / "owner"),
            "log": str(log),
            "log_bytes": LOG_BYTES_MAX if log_dir is not None else OWN_LOG_BYTES_MAX,
            "stop_s": stop_s,
            "orphan_s": ORPHAN_S,
            "port": port,
            **facts,
        }
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", KEEPER, json.dumps(spec), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        return KeptProcess({**spec, "keeper": keeper.pid, "keeper_started": started(keeper.pid)}, keeper)

    def found(self) -> Iterator[KeptProcess]:
        """What a predecessor has left running. What is left of replicas whose keeper is gone is killed."""
        alive: list[KeptProcess] = []
        lost = False
        for file in sorted(self.path.glob(f"*{STATE_SUFFIX}")):
            facts = read_state(file)
            if facts.get("state") == str(file) and (process := KeptProcess(facts)).alive:
                alive.append(process)
            else:
                lost = True
                with contextlib.suppress(OSError):
                    file.unlink()
        ours = {str(process.facts["state"]) for process in alive}
        for look in range(LOOKS_LOST if lost else 1):
            if look:
                time.sleep(SWEEP_PAUSE_S)
            kill_marked({mark for mark in marks() if mark.startswith(f"{self.path}/")} - ours)
        yield from alive


def read_state(file: Path) -> dict[str, Any]:
    """A state file's facts; none where it is missing or broken."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and {"state", "log", "pool", "port"} <= facts.keys() else {}


def marks() -> Iterable[str]:
    """The marks of all of this user's processes."""
    return {mark for _, mark in marked()}


def kill_marked(those: set[str]) -> int:
    """Kill every process with one of these marks, however far it has gone; how many there were."""
    killed: set[int] = set()
    for _ in range(SWEEPS_MAX if those else 0):
        found = [pid for pid, mark in marked() if mark in those and started(pid)]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(SWEEP_PAUSE_S)
    return len(killed)


def marked() -> Iterator[tuple[int, str]]:
    """This user's processes that are of some replica, with its mark."""
    wanted = f"{MARK}=".encode()
    for pid in processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or not this user's
            continue
        for each in environment.split(b"\0"):
            if each.startswith(wanted):
                yield pid, os.fsdecode(each[len(wanted) :])
