"""One supervised process: started, asked whether it is ready, restarted when it dies, stopped.

Owns the process's life as a state machine; each transition is one line to `report`.

    STARTING ── answers ──▶ READY ◀── answers / silent ──▶ SILENT
        └──────── dies, or is silent too long ────────────────┘
                  ├─ never was ready, or a crash loop ──▶ FAILED
                  └─ otherwise ──▶ WAITING ── backoff ──▶ STARTING
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random

from extproc.supervise.output import Output
from extproc.supervise.restarts import RestartPolicy, Restarts

#: How often a death is looked for where the system does not tell of it, and while one is waited for.
TICK_S = 0.05
#: How often readiness is asked while starting, and afterwards.
ASK_STARTING_S, ASK_READY_S = 0.05, 1.0
#: One question may take this long.
ASK_S_MAX = 2.0
#: A process that was ready and answers nothing for this long is killed and started again.
SILENT_S_MAX = 30.0
#: How long a process may take to end after SIGKILL (uninterruptible I/O aside, it is immediate).
KILL_S_MAX = 5.0

LEASH = str(Path(__file__).with_name("leash.py"))


class ChildState(Enum):
    """Where a child is."""

    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    WAITING = "waiting"
    FAILED = "failed"
    STOPPED = "stopped"


class ChildFailedError(Exception):
    """A child cannot be kept running; the message says why and ends with its last lines."""


async def _nothing() -> None:
    """No drain."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to run and how to ask it.

    `ready` answers whether it serves; its exceptions mean no. `drain` runs before SIGTERM and ends by
    itself (it is bounded by `drain_s_max`); `stop_s_max` is how long it may take to end after SIGTERM.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], Awaitable[bool]]
    ready_s_max: float = 30.0
    drain: Callable[[], Awaitable[None]] = _nothing
    drain_s_max: float = 0.0
    stop_s_max: float = 5.0


def spawn(argv: Sequence[str], *, output: int) -> subprocess.Popen[bytes]:
    """Start a process on the leash, in a session of its own: Ctrl-C reaches the supervisor alone."""
    leash = [sys.executable, "-I", "-S", LEASH, str(os.getpid())]
    return subprocess.Popen(
        [*leash, *argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"
    return f"exited with {code}"


class Child:
    """A process and its supervision. `begin` inside a running loop, `stop` always."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        output: Output,
        report: Callable[[str], None],
        rng: Random,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.spec = spec
        self.output = output
        self.state = ChildState.STARTING
        self.starts = 0
        self._report = report
        self._restarts = Restarts(policy or RestartPolicy(), rng)
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = asyncio.Event()
        self._signals: set[signal.Signals] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def begin(self) -> None:
        """Start it and keep it running from here on."""
        self._task = asyncio.create_task(self._keep(), name=f"supervise {self.spec.name}")

    async def ready(self) -> None:
        """Wait until it has been ready once. Raises ChildFailedError."""
        assert self._task is not None
        waiting = asyncio.create_task(self._was_ready.wait())
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._task.done():
            self._task.result()

    async def failed(self) -> None:
        """Wait until it cannot be kept running; raises ChildFailedError, never returns before."""
        assert self._task is not None
        await asyncio.shield(self._task)

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal, or keep it until the process is ready and has its handlers."""
        if self.state is ChildState.READY and self.pid is not None:
            os.kill(self.pid, signum)
        else:
            self._signals.add(signum)

    def kill(self) -> None:
        """SIGKILL, now, and no restart; `stop` then finds it gone."""
        if self._task is not None:
            self._task.cancel()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def stop(self) -> None:
        """Drain, SIGTERM, SIGKILL, each when the one before was not enough. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ChildFailedError):
                await self._task
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(Exception):  # a drain that fails only makes the stop less gentle
                async with asyncio.timeout(self.spec.drain_s_max):
                    await self.spec.drain()
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that was halted would never hear of it
            if not await _gone(process, self.spec.stop_s_max):
                self._report(
                    f"{self.spec.name}: still there {self.spec.stop_s_max:g} s after SIGTERM; killed"
                )
                process.kill()
                await _gone(process, KILL_S_MAX)
        self.output.close()
        if self.state is not ChildState.FAILED:
            self.state = ChildState.STOPPED

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.state = ChildState.STARTING
            self.starts += 1
            writing = self.output.open()
            try:
                self._process = spawn(self.spec.argv, output=writing)
            finally:
                os.close(writing)
            ending = await self._watch(self._process)
            self.output.close()
            if not self._was_ready.is_set():
                raise self._failure(f"{ending} before it was ready")
            delay_s = self._restarts.died(now_s=loop.time())
            policy = self._restarts.policy
            if delay_s is None:
                raise self._failure(
                    f"{ending}; that is a crash loop: {self._restarts.count} deaths within "
                    f"{policy.window_s:g} s, at most {policy.restarts_max} are borne"
                )
            self.state = ChildState.WAITING
            of = "" if policy.restarts_max is None else f" of {policy.restarts_max}"
            self._report(f"{self.spec.name}: {ending}; restart {self._restarts.count}{of} in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)

    async def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Until the process has ended; says how."""
        loop = asyncio.get_running_loop()
        began_s = answered_s = ask_s = loop.time()
        with _end_of(process) as ended:
            while (code := process.poll()) is None:
                if (asked_s := loop.time()) >= ask_s:
                    answers = await self._answers()
                    now_s = loop.time()
                    # While we stalled ourselves, or the machine slept, nobody could answer us.
                    answered_s += asked_s - ask_s + max(0.0, now_s - asked_s - ASK_S_MAX)
                    if answers:
                        answered_s = now_s
                        self._now_ready(process, now_s - began_s)
                    elif self.state is ChildState.READY:
                        self.state = ChildState.SILENT
                        self._report(f"{self.spec.name}: does not answer")
                    silent_s_max = (
                        self.spec.ready_s_max if self.state is ChildState.STARTING else SILENT_S_MAX
                    )
                    if now_s - answered_s > silent_s_max:
                        process.kill()
                        await _gone(process, KILL_S_MAX)
                        return f"did not answer for {silent_s_max:g} s and was killed"
                    ask_s = now_s + (ASK_STARTING_S if self.state is ChildState.STARTING else ASK_READY_S)
                await ended(max(0.0, ask_s - loop.time()))
        return how_it_ended(code)

    async def _answers(self) -> bool:
        try:
            # Not `wait_for`: until Python 3.12 it forgets a cancellation that comes with the answer.
            async with asyncio.timeout(ASK_S_MAX):
                return await self.spec.ready()
        except Exception:  # noqa: BLE001 (whatever goes wrong in asking, the answer is no)
            return False

    def _now_ready(self, process: subprocess.Popen[bytes], took_s: float) -> None:
        if self.state is ChildState.READY:
            return
        again = "answers again" if self.state is ChildState.SILENT else f"ready after {took_s:.1f} s"
        self.state = ChildState.READY
        self._was_ready.set()
        self._report(f"{self.spec.name}: {again} (pid {process.pid})")
        for signum in self._signals:
            process.send_signal(signum)
        self._signals.clear()

    def _failure(self, why: str) -> ChildFailedError:
        self.state = ChildState.FAILED
        tail = "".join(f"\n  {self.spec.name} | {line}" for line in self.output.tail)
        return ChildFailedError(f"{self.spec.name} {why}" + (f". Its last lines:{tail}" if tail else ""))


@contextlib.contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[Callable[[float], Awaitable[None]]]:
    """Something to wait with, for so many seconds or until the process has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or one that forbids it: looked for now and then
        descriptor = None

    async def wait(delay_s: float) -> None:
        # Told of and not to be had yet would be asked for without a pause.
        if descriptor is None or ended.is_set():
            await asyncio.sleep(min(delay_s, TICK_S) or TICK_S)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await ended.wait()

    if descriptor is not None:

        def told() -> None:
            loop.remove_reader(descriptor)
            ended.set()

        loop.add_reader(descriptor, told)
    try:
        yield wait
    finally:
        if descriptor is not None:
            loop.remove_reader(descriptor)
            os.close(descriptor)


async def _gone(process: subprocess.Popen[bytes], s_max: float) -> bool:
    """Wait for a process to end, at most so long."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + s_max
    while process.poll() is None:
        if loop.time() >= deadline_s:
            return False
        await asyncio.sleep(TICK_S / 2)
    return True


async def run_once(argv: Sequence[str], *, s_max: float) -> tuple[int, str]:
    """Run a command to its end; its status and what it wrote. TimeoutError leaves no process."""
    output = Output("run once")
    writing = output.open()
    try:
        process = spawn(argv, output=writing)
    finally:
        os.close(writing)
    try:
        if not await _gone(process, s_max):
            raise TimeoutError(f"{argv[0]} took longer than {s_max:g} s")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        output.close()
    return process.returncode, "\n".join(output.tail)
