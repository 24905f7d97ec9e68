"""start.py: Ctrl-C before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import os, signal, sys
{before}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from extproc.start import main
main()
"""


def run(before: str = "") -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(before=before)
    return subprocess.run(
        [sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=False, timeout=60
    )


def test_ctrl_c_while_it_is_imported_shows_no_traceback() -> None:
    """It ends by the signal, as a shell expects of a program, without a word."""
    done = run("signal.signal(signal.SIGINT, signal.default_int_handler)")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_shell_that_ignores_it_is_obeyed() -> None:
    """Such as one that has started it in the background."""
    done = run("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert done.returncode == 0
    assert done.stdout.startswith("steersman, version")


def test_nothing_else_is_imported_before_it() -> None:
    """What is takes as long as a key takes to press."""
    before = "import sys; before = set(sys.modules)"
    script = f"{before}; import extproc.start; print(*sorted(set(sys.modules) - before))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) <= {"__future__", "_signal", "extproc", "extproc.start"}
