"""CPU of the quick commands, as multiples of `python -c pass` in the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rows import Row

FILE = Path(__file__).parents[2] / "envoy" / "examples" / "full.yaml"
RUNS = 3
AIM_CHECK_S, AIM_ENVOY_S = 0.5, 2.0


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


def run() -> Iterator[Row]:
    """Yield seconds of CPU and ratios."""
    bare = cpu_s(["-c", "pass"])
    for name, aim in (("check", AIM_CHECK_S), ("envoy-config", AIM_ENVOY_S)):
        took = cpu_s(["-m", "extproc.cli", name, "-f", str(FILE)])
        yield Row(f"steersman {name}: CPU", took, "s", aim)
        yield Row(f"steersman {name} over python -c pass", took / bare, "×")
