"""`steersman top`: the view's state and frames as values, and the whole program in a pty."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.cli.top import KEYS, decoded
from extproc.terminal.top_panes import PANES
from extproc.terminal.top_view import Rates, Shown, ViewState, frame, sparkline
from tests.stand.examples import examples
from tests.stand.waits import PATIENCE_S

ADDRESS = "127.0.0.1:50051"


def endpoint(number: int, **facts: Any) -> dict[str, Any]:
    """An endpoint as the status has it."""
    return {
        "address": f"10.0.0.{number}:8080", "pool": "chat", "zone": "", "node": "node-a", "ready": True,
        "draining": False, "announced": True, "suspect": False, "stale": False, "health": 1.0, "causes": {},
        "state": "ready", "in_flight": number, "waiting": 0, "running": 1, "kv_used_tokens": 10 * number,
        "kv_capacity_tokens": 100, "tokens_per_s": 1.0, "failed": 0, "ttft_p50_ms": 10.0 * number,
        "ttft_p99_ms": 20.0 * number, **facts,
    }  # fmt: skip


def status(endpoints: int = 3, **facts: Any) -> dict[str, Any]:
    """A service's figures."""
    counts = {
        "decided": 5, "ok": 4, "failed": 0, "refused": 0, "rejected": 1, "client_gone": 0,
        "tokens_per_s": 12.0, "ttft_p50_ms": 40.0, "ttft_p99_ms": 90.0,
    }  # fmt: skip
    limit = {"limit": "requests", "scope": "tenant", "used": 9, "allowed": 10}
    return {
        "uptime_s": 61.0, "in_flight": 4, "held": 2,
        "endpoints": [endpoint(i) for i in range(1, endpoints + 1)],
        "tenants": {"acme": counts, "globex": {**counts, "decided": 50}},
        "use": {"tenants": {
            "acme": {"class": "standard", "in_flight": 3, "held": 2, "limits": [limit]},
            "idle": {"class": "batch", "in_flight": 0, "held": 0, "limits": []},
        }},
        "decisions": [
            {"id": "a-1", "tenant": "acme", "pool": "chat", "endpoint": "10.0.0.1:8080", "input_tokens": 10,
             "output_tokens": 20, "reason": "steer: 10.0.0.1:8080=1.5"}
        ],
        **facts,
    }  # fmt: skip


def lines(
    state: ViewState, told: dict[str, Any], *, width: int = 80, height: int = 24, trouble: str = ""
) -> list[str]:
    """A frame as plain text."""
    shown = Shown(address=ADDRESS, rates=Rates(), trouble=trouble)
    found = frame(state, told, shown, width=width, height=height)
    return ["".join(segment.text for segment in line if not segment.control).rstrip() for line in found]


def press(state: ViewState, *keys: str) -> bool:
    """Whether it still goes on after all of them."""
    went_on = [state.pressed(key) for key in keys]
    return all(went_on)


@pytest.mark.parametrize("pane", range(len(PANES)))
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (132, 50), (200, 12)])
def test_a_frame_is_as_large_as_it_is_told(pane: int, width: int, height: int) -> None:
    """Never a cell or a line more, however many rows there are; the keys stand in the last line."""
    told = lines(ViewState(pane=pane), status(60), width=width, height=height)
    assert len(told) == height
    assert max(map(len, told)) <= width
    assert told[-1].startswith("q quit")


def test_the_figures_stand_above_every_pane() -> None:
    """Ready, in flight, held, TTFT; 80 columns are enough."""
    told = lines(ViewState(), status())
    assert told[0].startswith(f"steersman top  {ADDRESS}")
    assert told[0].endswith("up 1:01")
    assert told[1].startswith("3 of 3 ready   4 in flight   2 held   24 tokens/s   – requests/s")
    assert told[2] == "TTFT p50 10–30 ms, worst p99 60 ms at 10.0.0.3:8080"


def test_each_pane_shows_its_rows() -> None:
    """1 to 4, Tab and back; a tenant that never asked is there too, with its quota's share."""
    state, told = ViewState(), status()
    assert "10.0.0.1:8080 chat" in "\n".join(lines(state, told))
    press(state, "2")
    tenants = "\n".join(lines(state, told))
    assert re.search(r"^acme +3 +2 +5 .* 90% ", tenants, re.MULTILINE)
    assert re.search(r"^idle +0 +0 ", tenants, re.MULTILINE)
    press(state, "tab")
    assert "steer: 10.0.0.1:8080=1.5" in "\n".join(lines(state, told))
    press(state, "tab")
    assert "no alert fires" in "\n".join(lines(state, told))
    press(state, "tab", "shift-tab", "left")
    assert state.pane == 2


def test_alerts_are_named_in_the_head_and_in_their_pane() -> None:
    """Whatever pane is shown, what fires is in the third line."""
    alert = {
        "labels": {"alertname": "LatencyAndErrors", "severity": "critical"},
        "annotations": {
            "description": "TTFT p99 4 s and 12 % errors in pool chat",
            "summary": "Slow and failing.",
        },
        "startsAt": "2026-11-27T15:00:01Z",
    }
    told = status(alerts={"firing": [alert], "recent": [alert], "rules": []})
    assert lines(ViewState(), told)[2].startswith("1 alerts: LatencyAndErrors   TTFT p50")
    pane = "\n".join(lines(ViewState(pane=3), told))
    assert re.search(r"^LatencyAndErrors firing critical 15:00:01 TTFT p99 4 s", pane, re.MULTILINE)
    assert re.search(r"^LatencyAndErrors over ", pane, re.MULTILINE)


def test_rows_are_sorted_filtered_and_scrolled() -> None:
    """The largest first by a figure; r turns it; a filter looks at what a row says; scrolling ends."""
    state, told = ViewState(), status(40)

    def first() -> str:
        return lines(state, told)[6].split()[0]

    while state.sorted_by.get(0) != "flight":
        press(state, "s")
    assert first() == "10.0.0.40:8080"
    assert "flight▾" in lines(state, told)[5]
    press(state, "r")
    assert first() == "10.0.0.1:8080"
    press(state, "down", "down")
    assert first() == "10.0.0.3:8080"
    press(state, "end")
    assert lines(state, told)[-2].split()[0] == "10.0.0.40:8080"
    assert "24–40 of 40" in lines(state, told)[3]
    press(state, "page-up", "home", "/", "0", ".", "3", "9", "enter")
    assert first() == "10.0.0.39:8080"
    assert "/0.39" in lines(state, told)[3]
    press(state, "/", "x", "enter")
    assert "nothing matches the filter" in "\n".join(lines(state, told))
    press(state, "esc")
    assert state.filter == ""


def test_what_is_typed_into_the_filter_is_no_command() -> None:
    """q is a letter there; Backspace takes one back; outside it ends."""
    state = ViewState()
    assert press(state, "/", "q", "s", "backspace", "p", "enter")
    assert (state.filter, state.paused, state.typing) == ("qp", False, False)
    assert press(state, "p")
    assert state.paused
    assert "PAUSED" in lines(state, status())[0]
    assert not press(state, "q")
    assert not press(ViewState(), "ctrl-c")


def test_a_silent_service_is_said_where_the_figures_are_old() -> None:
    """The rows stay."""
    told = lines(ViewState(), status(), trouble="the service does not answer")
    assert told[2] == "the service does not answer"
    assert "10.0.0.1:8080" in told[6]


def test_a_terminal_that_is_too_small_is_told_so() -> None:
    """And nothing breaks."""
    assert lines(ViewState(), status(), width=30, height=5)[0].startswith("the terminal is too small")


@examples(50)
@given(st.lists(st.sampled_from([*{*KEYS.values()}, *"1234srpjkgG/x "]), max_size=40), st.integers(0, 30))
def test_any_keys_leave_a_whole_frame(keys: list[str], endpoints: int) -> None:
    """Whatever is pressed, in whatever order."""
    state = ViewState()
    for key in keys:
        state.pressed(key)
        assert len(lines(state, status(endpoints))) == 24


def test_rates_are_differences() -> None:
    """Requests decided and rejected, a second; a service that began anew counts from nought."""
    rates = Rates()
    rates.take(status())
    assert list(rates.per_s) == []
    more = status(uptime_s=63.0)
    more["tenants"]["acme"]["rejected"] = 5
    rates.take(more)
    assert list(rates.per_s) == [2.0]
    rates.take(status(uptime_s=1.0))
    assert list(rates.per_s) == [2.0]


def test_a_sparkline_is_the_last_values() -> None:
    """The largest is a full bar."""
    assert sparkline([0, 5, 10], cells=2) == "▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("text", "names", "rest"),
    [
        ("q", ["q"], ""),
        ("\x1b[A\x1b[B", ["up", "down"], ""),
        ("\x1bOA", ["up"], ""),
        ("\x1b[5~x", ["page-up", "x"], ""),
        ("\x1b[", [], "\x1b["),
        ("\x1b", [], "\x1b"),
        ("\x1b[15~s", ["s"], ""),  # F5 is none of ours
        ("\x1b[1;5C", [], ""),
        ("\x1bq", ["esc", "q"], ""),
        ("\t\r\x7f", ["tab", "enter", "backspace"], ""),
        ("é", ["é"], ""),
    ],
)
def test_what_a_terminal_sends_is_read_as_keys(text: str, names: list[str], rest: str) -> None:
    """Sequences that are not whole wait for the rest; unknown ones are passed over."""
    assert decoded(text) == (names, rest)


class Terminal:
    """`steersman top` in a pty; `screen` is all that it has written."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "extproc.cli", "top", "--every", "0.2", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.screen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: str, *, s_max: float = 30.0) -> str:
        """Read until a picture has a text; that picture, without its colours."""
        deadline = time.monotonic() + s_max
        while True:
            pictures = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.screen.rpartition("\x1b[?2026h\x1b[H")[2])
            if text in pictures or (text.startswith("\x1b") and text in self.screen):
                return pictures
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{pictures}"
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.screen += os.read(self.master, 65536).decode(errors="replace")

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(service: str) -> Iterator[Terminal]:
    found = Terminal("--address", service)
    yield found
    found.close()


def test_top_lives_in_a_terminal_and_puts_it_back(terminal: Terminal) -> None:
    """Panes, filter, resizing, q: exit 0, the screen and the terminal's modes as they were."""
    assert len(terminal.until("q quit").split("\r\n")) == 24
    assert not termios.tcgetattr(terminal.slave)[3] & termios.ICANON
    terminal.send("2")
    terminal.until("quota")
    terminal.send("1/nowhere\r")
    terminal.until("nothing matches the filter")
    terminal.send("\x1b")
    terminal.until("10.9.9.1:8000")
    terminal.resize(120, 30)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.until("node")
    assert len(terminal.until("q quit").split("\r\n")) == 30
    terminal.send("q")
    terminal.until("\x1b[?1049l")
    assert terminal.process.wait(PATIENCE_S) == 0
    assert termios.tcgetattr(terminal.slave)[3] == terminal.before[3]


def test_a_signal_ends_top_and_the_terminal_is_put_back(terminal: Terminal) -> None:
    """SIGTERM: the alternate screen is left."""
    terminal.until("q quit")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.until("\x1b[?1049l")
    assert terminal.process.wait(PATIENCE_S) == 0
    assert termios.tcgetattr(terminal.slave)[3] == terminal.before[3]


def test_once_prints_one_frame_without_a_terminal(service: str) -> None:
    """As large as COLUMNS and LINES say, without colours; top alone wants a terminal (exit 2)."""
    base = [sys.executable, "-m", "extproc.cli", "top", "--address", service]
    environment = {**os.environ, "COLUMNS": "90", "LINES": "20"}
    done = subprocess.run(
        [*base, "--once"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 20
    assert "10.9.9.1:8000" in done.stdout
    assert "\x1b" not in done.stdout
    done = subprocess.run(
        base, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--once" in done.stderr


def test_nobody_there_is_exit_1(tmp_path: Path) -> None:
    """With the address and what to do."""
    base = [sys.executable, "-m", "extproc.cli", "top", "--once", "--address", f"unix:{tmp_path}/none.sock"]
    done = subprocess.run(base, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Steersman answers at" in done.stderr
    assert json.dumps("--address")[1:-1] in done.stderr
