"""What a node agent costs: 8 fake GPUs and 8 simulated replicas, idle at 1 Hz and at work at 100 ms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rows import Row

SCRIPT = Path(__file__).parents[1] / "agents" / "bench_agent.py"
AIM_IDLE_PERCENT = 0.5


def run() -> Iterator[Row]:
    """Yield percent of a core per replica."""
    found = json.loads(
        subprocess.run(
            [sys.executable, str(SCRIPT), "--seconds", "10"], check=True, capture_output=True, text=True
        ).stdout
    )
    for phase, aim in (("idle", AIM_IDLE_PERCENT), ("at_work", None)):
        figures = found[phase]
        yield Row(
            f"agent CPU per replica, {phase.replace('_', ' ')}",
            figures["cpu_percent_a_replica"],
            "%",
            aim,
        )
