"""The tests' own child processes: what they are told to be, and gone when the tests are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gateway import wait_for
from processes import Child, logs_of_running, run, steersman

#: A test process that starts children, says their numbers, and has its fork server import nothing.
STARTS = """
import signal, sys, time
from pathlib import Path
import processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in its background ignores it
server = processes.ForkServer(preloaded=[])
processes.fork_server = lambda: server
folder = Path(sys.argv[1])
script = folder / "sleeps.py"
script.write_text("import time; print('up', flush=True); time.sleep(600)")
ours = processes.Process([sys.executable, str(script)], folder / "ours")
another = processes.Process(["sleep", "600"], folder / "another")
print(ours.pid, another.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """It runs: neither gone nor a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_children_end_with_the_tests(tmp_path: Path, number: signal.Signals) -> None:
    """Whether they are interrupted or killed, in which case no code of theirs runs any more."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        pids = [int(word) for word in tests.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        tests.send_signal(number)
    wait_for("their end", lambda: not any(alive(pid) for pid in pids))


def test_a_child_whose_server_ended_before_it_could_ask_to_end_with_it_ends() -> None:
    """The kernel tells it of no end that came before it asked."""
    code = "import fork_server; fork_server.become({}, parent=0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == 1


def test_a_command_is_run_as_it_would_be(tmp_path: Path) -> None:
    """Its code, both outputs, its environment; a program that is no Python as well."""
    assert steersman("--version").startswith("steersman")
    refused = run(sys.executable, "-m", "extproc.cli", "check", "-f", str(tmp_path / "none.yaml"))
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "none.yaml" in refused.stderr
    script = tmp_path / "says.py"
    script.write_text("import beside, sys; print(beside.WORD, *sys.argv[1:], __name__)")
    (tmp_path / "beside.py").write_text("WORD = 'so'")
    assert run(sys.executable, str(script), "x").stdout == "so x __main__\n"
    assert run(sys.executable, "-c", "print('plain')").stdout == "plain\n"
    told = run("sh", "-c", "echo $TOLD; exit 3", environment={**os.environ, "TOLD": "so"})
    assert (told.returncode, told.stdout) == (3, "so\n")


def test_a_child_is_stopped_killed_and_started_again(tmp_path: Path) -> None:
    """A signal's end is a negative code; what ignores SIGTERM is killed; a halted one hears it."""
    deaf = Child("deaf", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], tmp_path)
    deaf.start()
    wait_for("its start", lambda: "up" in deaf.log.read_text())
    assert deaf.process is not None
    assert deaf.process.poll() is None
    assert deaf.stop(timeout_s=0.2) == -signal.SIGKILL
    sleeper = Child("sleeper", ["sleep", "600"], tmp_path)
    for _ in range(2):
        sleeper.start()
        sleeper.signal(signal.SIGSTOP)
        assert sleeper.stop() == -signal.SIGTERM


#: A test file with a child that lives on, as a gateway does that a module's tests share.
FAILS = """
import sys
import processes
from gateway import wait_for

def test_it(tmp_path):
    child = processes.Child("speaker", ["sh", "-c", "echo what it said; sleep 600"], tmp_path)
    child.start()
    wait_for("its word", child.log.read_text)
    assert False
"""


def test_what_failed_is_reported_with_the_logs_of_what_runs(tmp_path: Path) -> None:
    """By pytest itself, so that no fixture has to; what was stopped says nothing any more."""
    (tmp_path / "test_fails.py").write_text(FAILS)
    root = Path(__file__).parents[2]
    options = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(root / "pyproject.toml"))
    # Not by the fork server: pytest's options are read from what is there when it starts.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(root), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert re.search(r"-+ log of speaker -+\nwhat it said", done.stdout), done.stdout
    child = Child("quiet", ["sh", "-c", "echo so; exec sleep 600"], tmp_path)
    child.start()
    wait_for("its word", child.log.read_text)
    assert ("log of quiet", "so") in logs_of_running()
    child.stop()
    assert not [name for name, _ in logs_of_running() if name == "log of quiet"]


def test_a_wait_that_fails_says_what_it_saw(tmp_path: Path) -> None:
    """What was waited for, how things stand and the last look; at once where it cannot come any more."""
    with pytest.raises(TimeoutError, match=r"it, now 3 did not come within 0 s; the last look: \[\]"):
        wait_for(lambda: f"it, now {1 + 2}", list, timeout_s=0)

    def refused() -> bool:
        raise ConnectionRefusedError(111, "nobody listens")

    with pytest.raises(TimeoutError, match="nobody listens"):
        wait_for("it", refused, timeout_s=0)
    child = Child("brief", ["sh", "-c", "exit 3"], tmp_path)
    child.start()
    with pytest.raises(RuntimeError, match="it will not come: brief has ended with 3"):
        wait_for("it", lambda: False, runs=child)
    child.stop()
