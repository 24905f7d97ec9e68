"""What watches the service brings none of what the service is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Megabytes and threads, for a process that asks two others once a second how they are.
HEAVY = {
    *("grpc", "google.protobuf", "envoy_data_plane", "betterproto2", "redis", "opentelemetry", "aiohttp"),
    *(
        "extproc.service",
        "extproc.wire",
        "extproc.control",
        "extproc.state",
        "extproc.observe",
        "extproc._pb",
    ),
}
#: What `steersman up` imports where it runs (cli/up.py).
SUPERVISOR = """
import sys
import extproc.cli.up
from extproc.config.load import load
import extproc.history.follow, extproc.supervise.gateway, extproc.supervise.rundir, extproc.supervise.signals
import extproc.terminal.live, extproc.terminal.tables
load(sys.argv[1])
print(*sys.modules)
"""


def test_the_supervisor_imports_nothing_heavy() -> None:
    """No gRPC, no protobuf, no message of Envoy's, and nothing of the service."""
    command = [sys.executable, "-c", SUPERVISOR, str(ROOT / "envoy/examples/full.yaml")]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "extproc.supervise.asking" in modules
    assert HEAVY.isdisjoint(modules)


def test_the_modules_are_those_that_up_imports() -> None:
    """The list above is the command's own."""
    source = (ROOT / "extproc/cli/up.py").read_text()
    used = {line.split()[1] for line in source.splitlines() if line.strip().startswith("from extproc.")}
    assert {name for name in used if name not in SUPERVISOR} <= {
        *("extproc.cli.options", "extproc.config.model", "extproc.supervise.envoy", "extproc.supervise.page"),
    }
