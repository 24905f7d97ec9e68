"""child.py with tiny real processes: readiness, restarts, the crash loop, the stop, the leash."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from extproc.supervise.child import Child, ChildFailedError, ChildSpec, ChildState, run_once
from extproc.supervise.output import Output
from extproc.supervise.restarts import RestartPolicy
from tests.stand.waits import PATIENCE_S, until, wait_until

QUICK = RestartPolicy(first_s=0.02, factor=1.5, jitter=0.1, restarts_max=3, window_s=30.0)
#: Writes its pid into a file once it runs, then sleeps.
PYTHON = (sys.executable, "-I", "-S", "-c")
SLEEPER = "import os,sys,time; open(sys.argv[1],'w').write(str(os.getpid())); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


def child(
    script: str, mark: Path, *, ready: Callable[[], Awaitable[bool]] | None = None, **spec: Any
) -> tuple[Child, list[str]]:
    """A child that is ready once it wrote its mark, and the lines that it reports."""

    async def marked() -> bool:
        return mark.exists() and mark.read_text() != ""  # noqa: ASYNC240 (a test's own tiny file)

    lines: list[str] = []
    made = Child(
        ChildSpec(name="it", argv=(*PYTHON, script, str(mark)), ready=ready or marked, **spec),
        output=Output("it"),
        report=lines.append,
        rng=Random(1),
        policy=QUICK,
    )
    return made, lines


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ready_then_killed_then_back(tmp_path: Path) -> None:
    """A death is reported with its cause and answered with a restart; a stop ends it for good."""

    async def main() -> None:
        it, lines = child(SLEEPER, tmp_path / "mark")
        it.begin()
        await it.ready()
        assert it.state is ChildState.READY
        first = it.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: it.pid not in (None, first) and it.state is ChildState.READY, "a restart")
        assert any("it: was killed by SIGKILL; restart 1 of 3 in 0.0 s" in line for line in lines)
        second = it.pid
        assert second
        await it.stop()
        assert it.state is ChildState.STOPPED
        assert not alive(second)
        assert it.starts == 2

    asyncio.run(main())


def test_a_crash_loop_ends_with_its_last_lines(tmp_path: Path) -> None:
    """After restarts_max deaths the next is the end, and the message holds what the child said."""
    script = (
        "import sys,time; open(sys.argv[1],'w').write('1'); time.sleep(.2); print('no disk'); sys.exit(3)"
    )

    async def main() -> None:
        it, lines = child(script, tmp_path / "mark")
        it.begin()
        await it.ready()
        with pytest.raises(ChildFailedError) as failed:
            await it.failed()
        assert "it exited with 3; that is a crash loop: 4 deaths within 30 s, at most 3" in str(failed.value)
        assert "it | no disk" in str(failed.value)
        assert it.starts == 4
        assert sum("restart" in line for line in lines) == 3
        assert it.state is ChildState.FAILED
        await it.stop()

    asyncio.run(main())


def test_a_death_before_it_was_ever_ready_is_no_matter_for_restarts(tmp_path: Path) -> None:
    """What fails at once fails again: one start, one message."""

    async def main() -> None:
        it, _ = child("import sys; sys.exit('bad flag')", tmp_path / "mark")
        it.begin()
        with pytest.raises(ChildFailedError, match="exited with 1 before it was ready"):
            await it.ready()
        assert it.starts == 1
        await it.stop()

    asyncio.run(main())


def test_one_that_is_never_ready_is_killed(tmp_path: Path) -> None:
    """ready_s_max bounds the wait, whatever the question raises."""

    async def never() -> bool:
        raise OSError("nobody there")

    async def main() -> None:
        it, _ = child(SLEEPER, tmp_path / "mark", ready=never, ready_s_max=0.3)
        it.begin()
        with pytest.raises(ChildFailedError, match=r"did not answer for 0\.3 s and was killed before"):
            await it.ready()
        assert it.pid is None
        await it.stop()

    asyncio.run(main())


def test_a_stall_of_ours_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """We stand for longer than a child may be silent, then a question fails: it is asked again, and lives."""
    monkeypatch.setattr("extproc.supervise.child.SILENT_S_MAX", 2.0)
    asked = 0

    async def answers() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            asyncio.get_running_loop().call_later(0.2, time.sleep, 3.0)  # over the next question's time
        return asked != 2

    async def main() -> None:
        it, lines = child(SLEEPER, tmp_path / "mark", ready=answers)
        it.begin()
        await until(lambda: any("answers again" in line for line in lines), "it answers again")
        assert asked >= 3
        assert it.starts == 1
        await it.stop()

    asyncio.run(main())


def test_a_stop_drains_first_and_kills_last(tmp_path: Path) -> None:
    """The drain runs while the process lives; one that ignores SIGTERM is killed after stop_s_max."""

    async def main() -> None:
        seen: list[bool] = []

        async def drain() -> None:
            seen.append(it.pid is not None)

        it, lines = child(STUBBORN, tmp_path / "mark", drain=drain, drain_s_max=1.0, stop_s_max=0.2)
        it.begin()
        await it.ready()
        pid = it.pid
        assert pid
        began = time.monotonic()
        await asyncio.wait_for(it.stop(), PATIENCE_S)
        assert time.monotonic() - began >= 0.2
        assert seen == [True]
        assert not alive(pid)
        assert "it: still there 0.2 s after SIGTERM; killed" in lines

    asyncio.run(main())


def test_kill_forces_a_stop_that_is_under_way(tmp_path: Path) -> None:
    """The second Ctrl-C: no waiting for stop_s_max."""

    async def main() -> None:
        it, _ = child(STUBBORN, tmp_path / "mark", stop_s_max=600.0)
        it.begin()
        await it.ready()
        stopping = asyncio.create_task(it.stop())
        await asyncio.sleep(0.1)
        it.kill()
        await asyncio.wait_for(stopping, PATIENCE_S)

    asyncio.run(main())


def test_a_killed_child_stays_down_until_its_turn_to_stop(tmp_path: Path) -> None:
    """A forced stop ends all children at once, before each is stopped in order: none may come back."""

    async def main() -> None:
        it, lines = child(SLEEPER, tmp_path / "mark")
        it.begin()
        await it.ready()
        it.kill()
        await asyncio.sleep(0.3)
        assert it.starts == 1
        assert it.pid is None
        await it.stop()
        assert it.state is ChildState.STOPPED
        assert len(lines) == 1

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(5))
def test_a_stop_that_comes_with_an_answer_is_not_forgotten(tmp_path: Path, turns: int) -> None:
    """However near to each other the two come: it is stopped, and not asked again for ever."""

    async def main() -> None:
        asked: list[asyncio.Future[bool]] = []

        async def ready() -> bool:
            asked.append(asyncio.get_running_loop().create_future())
            return await asked[-1]

        it, _ = child(SLEEPER, tmp_path / "mark", ready=ready)
        it.begin()
        await until(lambda: asked, "a question")
        asked[-1].set_result(True)
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping = asyncio.create_task(it.stop())
        # Not `timeout`: a stop takes a cancellation for its child's.
        await asyncio.wait({stopping}, timeout=PATIENCE_S)
        assert stopping.done()
        assert it.state is ChildState.STOPPED

    asyncio.run(main())


def test_a_signal_waits_for_readiness(tmp_path: Path) -> None:
    """SIGHUP to a process that has no handler yet would kill it."""
    mark, got = tmp_path / "mark", tmp_path / "got"
    script = (
        "import signal,sys,time,pathlib; time.sleep(.3);"
        f"signal.signal(signal.SIGHUP, lambda *_: pathlib.Path({str(got)!r}).write_text('hup'));"
        "pathlib.Path(sys.argv[1]).write_text('1'); time.sleep(60)"
    )

    async def main() -> None:
        it, _ = child(script, mark)
        it.begin()
        await asyncio.sleep(0.05)
        it.signal(signal.SIGHUP)
        await it.ready()
        await until(got.exists, "the signal")
        assert it.starts == 1
        await it.stop()

    asyncio.run(main())


def test_run_once_gives_status_and_words_and_leaves_no_process() -> None:
    """A command to its end, and one that takes too long."""

    async def main() -> None:
        said = await run_once((*PYTHON, "print('hello'); raise SystemExit(4)"), s_max=10)
        assert said == (4, "hello")
        assert (await run_once(("/no/such/thing",), s_max=10))[1].startswith("cannot run /no/such/thing")
        with pytest.raises(TimeoutError):
            await run_once((*PYTHON, "import time; time.sleep(60)"), s_max=0.2)

    asyncio.run(main())


PARENT = """
import asyncio, sys
from random import Random
from extproc.supervise.child import Child, ChildSpec
from extproc.supervise.output import Output

async def main():
    async def yes(): return True
    spec = ChildSpec(name="it", argv=(*{python!r}, {script!r}, sys.argv[1]), ready=yes)
    it = Child(spec, output=Output("it"), report=print, rng=Random(1))
    it.begin()
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_children_die_with_a_parent_that_was_killed_with_nine(tmp_path: Path) -> None:
    """No handler of the parent runs; the kernel ends a child that would ignore SIGTERM."""
    mark = tmp_path / "mark"
    text = PARENT.format(python=PYTHON, script=STUBBORN)
    parent = subprocess.Popen([sys.executable, "-c", text, str(mark)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: mark.exists() and mark.read_text(), "the child runs")
        pid = int(mark.read_text())
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(pid), "the child outlived its parent")


def test_a_halted_process_is_woken_to_stop_in_order(tmp_path: Path) -> None:
    """SIGTERM alone would wait for ever in a process that somebody has halted."""

    async def main() -> None:
        made, lines = child(SLEEPER, tmp_path / "m", stop_s_max=600.0)
        made.begin()
        await made.ready()
        assert made.pid is not None
        os.kill(made.pid, signal.SIGSTOP)
        await asyncio.wait_for(made.stop(), PATIENCE_S)
        assert made.pid is None
        assert not any("killed" in line for line in lines)

    asyncio.run(main())
