"""CPU of the quick commands, as multiples of `python -c pass` in the same run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway import listens, wait_for
from lone_service import Service
from rows import Row

FILE = Path(__file__).parents[2] / "envoy" / "examples" / "full.yaml"
RUNS = 3
AIM_CHECK_S, AIM_ENVOY_S = 0.5, 2.0
TENANTS, AIM_START_S, AIM_TENANTS_S = 5_000, 1.5, 3.0


def cpu_s(arguments: Sequence[str]) -> float:
    """User and system time of a Python with these arguments, the least of some runs."""
    least = float("inf")
    for _ in range(RUNS):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        user, system = after.children_user, after.children_system
        least = min(least, user + system - before.children_user - before.children_system)
    return least


def start_s(tenants: int) -> float:
    """CPU of `steersman serve` until it listens, the least of some starts, with so many tenants in YAML."""
    least = float("inf")
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            service = Service(Path(folder), tenants=tenants)
            # A process of its own: the tests' children are forks that have imported all already.
            serve = [sys.executable, "-m", "extproc.cli", "serve", "-f", str(service.file)]
            child = subprocess.Popen(serve, stderr=subprocess.DEVNULL)
            try:
                wait_for("the service", lambda service=service: listens(int(service.address[-5:])))
                # User and system time, in the kernel's ticks.
                fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
                least = min(least, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
            finally:
                service.channel.close()
                child.kill()
                child.wait()
    return least


def run() -> Iterator[Row]:
    """Yield seconds of CPU and ratios."""
    bare = cpu_s(["-c", "pass"])
    for name, aim in (("check", AIM_CHECK_S), ("envoy-config", AIM_ENVOY_S)):
        took = cpu_s(["-m", "extproc.cli", name, "-f", str(FILE)])
        yield Row(f"steersman {name}: CPU", took, "s", aim)
        yield Row(f"steersman {name} over python -c pass", took / bare, "×")
    yield Row("steersman serve until it listens: CPU", start_s(0), "s", AIM_START_S)
    yield Row(f"the same with {TENANTS} tenants", start_s(TENANTS), "s", AIM_TENANTS_S)
