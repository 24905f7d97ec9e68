"""A test that falls beside threads takes no other along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

INSTALL = "from tests.stand import parsing\nparsing.install()\n"

#: Python code that runs in a collection (Hypothesis has some) lets the other thread parse in the middle of
#: this one's parse. pytest's excerpt of the source parses the whole file, so the file is a long one.
BESIDE = """
import ast, gc, threading, time

stop = threading.Event()

def parse():
    while not stop.is_set():
        ast.parse("x = [a, b, {'k': 1}]")

def setup_module():
    gc.callbacks.append(lambda *_: time.sleep(0))
    threading.Thread(target=parse).start()

def teardown_module():
    gc.callbacks.pop()
    stop.set()

def test_falls():
    assert sum([1, 2]) == 4

def test_passes():
    pass
""" + "\n".join(
    f"def never{i}(a, b={i}):\n    return [z for z in (a, {{'k': a + b}}) if z]\n" for i in range(200)
)


def run(folder: Path, conftest: str) -> str:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_beside.py").write_text(BESIDE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-n", "1"]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), "-c", str(folder / "none.ini"), "-p", "no:hypothesispytest"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_failure_beside_threads_is_one_failure(tmp_path: Path) -> None:
    """Its traceback is shown, and what comes after it in that process is run."""
    (tmp_path / "none.ini").write_text("[pytest]\n")
    said = run(tmp_path, INSTALL)
    assert "1 failed, 1 passed" in said, said
    assert "INTERNALERROR" not in said


@pytest.mark.skipif(sys.version_info >= (3, 11, 8), reason="CPython has mended it (3.11.8, 3.12.2)")
def test_without_it_the_process_is_lost(tmp_path: Path) -> None:
    """What is guarded against is there: when this fails, `tests/stand/parsing.py` can go."""
    (tmp_path / "none.ini").write_text("[pytest]\n")
    said = run(tmp_path, "")
    assert "1 failed, 1 passed" not in said, said
    assert "AST constructor recursion depth mismatch" in said, said
