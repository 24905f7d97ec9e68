"""Child processes of tests: started by the fork server, their output in a file, ended in any case."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from extproc.supervise import leash

#: How long a process may take to end after it was asked to; then it is killed.
STOP_S = 45.0
#: How long a command may take that comes to an end by itself.
RUN_S = 90.0
#: The command as a fork of what has its imports; and as it is installed, for the tests of just that.
STEERSMAN = (sys.executable, "-m", "extproc.cli")
INSTALLED = str(Path(sys.executable).with_name("steersman"))
LEASH = str(Path(leash.__file__))
SERVER = Path(__file__).with_name("fork_server.py")


#: What children import, with what they import where they use it.
PRELOADED = (
    *("extproc.service", "extproc.cli.serve", "extproc.cli.sim_replica", "extproc.cli.options"),
    *("extproc.control.bootstrap", "extproc.control.resources", "extproc.control.snapshot"),
    *(
        "extproc.sim.listening",
        "extproc.sim.server",
        "extproc.state.redis_share",
        "extproc.state.quota.books",
    ),
    *("steersman_agent.command", "uvloop", "aiohttp.web", "yaml"),
)


class ForkServer:
    """The client of fork_server.py, which imports the given modules first."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno()), *preloaded],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A Ctrl-C is for pytest, which ends the children in their order. No session of its own:
                # Linux shares the cores by session (autogroup), and ten children would have what one has.
                process_group=0,
            )
        self._link = ours
        self._lines = ours.makefile("rwb")
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, **order: Any) -> Any:
        """One order, one answer."""
        with self._lock:
            self._lines.write(json.dumps(order).encode() + b"\n")
            self._lines.flush()
            line = self._lines.readline()
        assert line, "the fork server has ended"
        return json.loads(line)

    def close(self) -> None:
        """End it, and whatever it has started."""
        self._lines.close()
        self._link.close()
        self._process.wait(STOP_S)


#: Fixtures start children from threads of their own: two that come first would have a server each, and ask
#: the wrong one for a child's end.
_first = threading.Lock()


def fork_server() -> ForkServer:
    """This process's server, started with its first child."""
    with _first:
        return _fork_server()


@functools.cache
def _fork_server() -> ForkServer:
    return ForkServer()


class Process:
    """A running child; what of subprocess.Popen the tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        out: Path,
        *,
        errors: Path | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Its output is added to `out`, standard error too unless that has a file of its own."""
        self.args = list(arguments)
        self.returncode: int | None = None
        self.pid: int = fork_server().ask(
            arguments=self.args,
            out=str(out),
            errors=str(errors or out),
            cwd=str(cwd or Path.cwd()),
            environment=dict(os.environ if environment is None else environment),
        )["pid"]
        #: Becomes readable when the process ends; the number stays this process's until we ask for its code.
        self._descriptor = os.pidfd_open(self.pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _ended(self, timeout_s: float | None) -> int | None:
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        if self.returncode is None and ready.poll(None if timeout_s is None else 1000 * timeout_s):
            with self._lock:
                if self.returncode is None:
                    self.returncode = fork_server().ask(wait=self.pid)["code"]
        return self.returncode

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def leashed(command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    """subprocess.Popen, for who reads along; the process ends with this one even if that is killed."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", LEASH, str(os.getpid()), *command], text=True, **more
    )


def run(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = RUN_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run does."""
    with tempfile.TemporaryDirectory(prefix="steersman-run-") as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        process = Process(arguments, out, errors=errors, cwd=cwd, environment=environment)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, code, out.read_text(), errors.read_text())


def steersman(*arguments: str, code: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """The command's standard output; it must end with this code."""
    done = run(*STEERSMAN, *arguments, environment=environment)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


#: Children that were started and not stopped.
_started: dict[Child, None] = {}


class Child:
    """A command that can be started again, with its output in a file."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log = folder / f"{name}.log"
        self.process: Process | None = None

    def start(self) -> None:
        """Start it (again)."""
        self.process = Process(self.arguments, self.log)
        _started[self] = None

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait for it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM, then -9 when that is not enough; returns the exit code."""
        assert self.process is not None
        _started.pop(self, None)
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)  # a stopped one would not hear it
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()


def stop_all(children: Sequence[Child]) -> None:
    """End all that were started; each takes its time while the others do."""
    started = [child for child in children if child.process is not None]
    for child in started:
        child.signal(signal.SIGTERM)
    for child in started:
        child.stop()


def show_logs(children: Sequence[Child]) -> None:
    """Print the ends of their logs."""
    for child in children:
        if end := log_end(child):
            print(f"--- {child.name}\n{end}")


def logs_of_running() -> list[tuple[str, str]]:
    """The ends of the logs of what runs now, by its name: what a failed test's report has beside it."""
    return [(f"log of {child.name}", end) for child in _started if (end := log_end(child))]


def log_end(child: Child, *, characters: int = 8000) -> str:
    """The end of its log, less what Envoy says of work in progress at each start."""
    if not child.log.exists():
        return ""
    lines = child.log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if "work-in-progress" not in line)[-characters:]
