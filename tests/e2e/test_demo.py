"""`steersman demo`: what `make demo` runs, whole and real, on simulated replicas."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gateway import envoy_binary
from processes import leashed

#: A busy machine takes long to start twelve processes; none of these tests is about how long.
SMOKE_S_MAX = 280

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(SMOKE_S_MAX + 20)]


@pytest.fixture(scope="module", autouse=True)
def envoy() -> str:
    """The real Envoy: a CI without one fails, since a skip would prove nothing."""
    return envoy_binary()


def left_of(folder: Path) -> list[str]:
    """Command lines of processes that still name the run's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


def demo(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """In a folder of its own, so that no trace lies beside it: the generated workload."""
    folder.joinpath("here").mkdir()
    return leashed(
        [sys.executable, "-m", "extproc.cli", "demo", "--run-dir", str(folder / "run"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder / "here",
        env={**os.environ, **environment},
    )


#: Ten processes and three clients; `make installs` plays it too, and the page's tests a whole demo.
@pytest.mark.soak
def test_smoke_serves_every_client_and_says_so_in_json(tmp_path: Path) -> None:
    """SMOKE=1: 200 requests of all tenants over all routes, none failed, JSON last, nothing left behind."""
    running = demo(tmp_path, SMOKE="1")
    out, err = running.communicate(timeout=SMOKE_S_MAX)
    assert running.returncode == 0, out + err
    summary = json.loads(out.splitlines()[-1])
    # What the trial's quota refuses is meant to be, and named; nothing else may fail.
    (refused,) = summary["refused"].items()
    assert refused[0] == "free-trial"
    assert refused[1]["by"] == "quota of 30 requests a minute"
    assert summary["sent"] == 200 == summary["ok"] + refused[1]["count"]
    assert summary["failed"] == 0
    assert summary["tenants"] == 3
    assert summary["endpoints_used"] == 4
    assert 0 < summary["ttft_p50_ms"] <= summary["ttft_p99_ms"]
    assert f"free-trial: {refused[1]['count']} refused (429), quota of 30 requests a minute" in out
    assert "fault" not in out, "a smoke test is not disturbed"
    assert "SIMULATED" in out
    assert "workload: generated" in out
    assert "curl " in out
    assert "4 strong-h100 was in no list: node-h registered it" in err
    for part in ("openai /v1/chat/completions", "huggingface_hub /", "text-generation /generate_stream"):
        assert part in out
    assert "Traceback" not in err
    assert left_of(tmp_path) == []


@pytest.mark.soak
def test_ctrl_c_stops_all_of_it(tmp_path: Path) -> None:
    """SIGINT while traffic runs: exit 0, no stack trace, no process left."""
    running = demo(tmp_path, "--no-table", "--speed", "2")
    assert running.stdout is not None
    for line in running.stdout:
        if "sent" in line and "ok" in line:  # the first periodic line: traffic runs
            break
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, out + err
    assert "Traceback" not in err
    assert "failed 0" in out
    assert left_of(tmp_path) == []


ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.soak
def test_a_closed_terminal_ends_all_of_it(tmp_path: Path) -> None:
    """On a terminal it draws the table; when the terminal goes, so does everything."""
    ours, its = os.openpty()
    command = [sys.executable, "-m", "extproc.cli", "demo", "--run-dir", str(tmp_path / "run")]
    running = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "COLUMNS": "110", "LINES": "40", "TERM": "xterm"},
    )
    os.close(its)
    drawn = b""
    while b"Decisions" not in drawn:
        drawn += os.read(ours, 65536)
    os.close(ours)
    try:
        running.wait(15)
    finally:
        running.kill()
    assert b"SIMULATED" in drawn
    assert b"health" in drawn
    assert b"4 strong-h100" in drawn
    assert left_of(tmp_path) == []


def test_a_bad_trace_is_named_before_anything_starts(tmp_path: Path) -> None:
    """Exit 2 with file and line."""
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,ten,5\n", encoding="utf-8")
    running = demo(tmp_path, "--trace", str(trace))
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert f"{trace}:3: input_tokens 'ten' is no number" in err
