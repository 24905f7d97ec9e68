"""The tests where nobody leaves them the machine: `make busy`, some runs of pytest beside busy loops.

A test that passes on a quiet machine and falls on a busy one measures the machine. Two loops at the tests'
own priority take what two cores have; each run has a seed of its own, printed, for the order of its tests.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What pytest's last lines say of a test that fell.
FELL = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@contextmanager
def loops(number: int) -> Iterator[None]:
    """So many processes that do nothing but work; they end with this one, however that ends."""
    program = (
        "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(number)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def once(seed: int, workers: int, arguments: list[str], log: Path, s_max: float) -> tuple[int, float]:
    """One run of pytest: its exit status and its wall time in seconds."""
    began_s = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        str(workers),
        "-q",
        f"--randomly-seed={seed}",
        *arguments,
    ]
    with log.open("wb") as out:
        # In the loops' own session: Linux shares the cores by session first (autogroup).
        run = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, process_group=0)
        try:
            status = run.wait(s_max)
        except BaseException as error:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = -1
    return status, time.monotonic() - began_s


def main() -> int:
    """0 when every run was green."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="how often (%(default)s)")
    parser.add_argument("--loops", type=int, default=2, help="busy loops beside it (%(default)s)")
    parser.add_argument("--workers", type=int, default=5, help="pytest's processes (%(default)s)")
    parser.add_argument("--run-s-max", type=float, default=3_600, help="a run is ended after (%(default)s s)")
    given, arguments = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(prefix="steersman-busy-"))
    green = 0
    with loops(given.loops):
        for number in range(1, given.runs + 1):
            seed, log = secrets.randbelow(2**31), folder / f"run{number}.log"
            status, wall_s = once(seed, given.workers, arguments, log, given.run_s_max)
            green += not status
            text = log.read_text(errors="replace")
            last = text.rstrip().rpartition("\n")[2].strip("= ")
            said = "ended by the time limit" if status < 0 else last
            print(f"run {number} of {given.runs}: {wall_s:.0f} s, seed {seed}: {said}", flush=True)
            if status:
                for name in sorted(set(FELL.findall(text))):
                    print(f"  fell: {name}")
                print(f"  log: {log}", flush=True)
    print(f"{green} of {given.runs} green beside {given.loops} busy loops")
    return 0 if green == given.runs else 1


if __name__ == "__main__":
    sys.exit(main())
