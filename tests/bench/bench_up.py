"""`steersman up` that nobody asks: CPU and memory of supervisor, service and Envoy, with 100 endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from gateway import Child, free_ports, listens, tenants, wait_for
from processes import leashed, stop_all
from rows import Row, cpu_ns

HERE = Path(__file__).parent
ENDPOINTS = 100
#: What the start leaves to be done is done by then; and so long it is looked at.
SETTLED_S, LOOKED_S = 8.0, 30.0
AIM_PERCENT, AIM_MIB = 5.0, 150.0


def run() -> Iterator[Row]:
    """Yield percents of a core, and MiB."""
    with tempfile.TemporaryDirectory(prefix="steersman-bench-") as name:
        folder = Path(name)
        listen, envoy_admin, service, *ports = free_ports(3 + ENDPOINTS)
        engine = Child("engine", [sys.executable, str(HERE / "engine.py"), *map(str, ports)], folder)
        engine.start()
        config = {
            "gateway": {"listen": f"127.0.0.1:{listen}", "envoy_admin": f"127.0.0.1:{envoy_admin}"},
            "service": {"listen": [f"127.0.0.1:{service}"]},
            "pools": [
                {
                    "name": "chat",
                    "models": ["m"],
                    "endpoints": [{"address": f"127.0.0.1:{port}"} for port in ports],
                }
            ],
            "tenants": tenants(),
        }
        (folder / "steersman.yaml").write_text(yaml.safe_dump(config))
        # As it is installed: the tests' children are forks of what has imported everything.
        command = [
            sys.executable,
            "-m",
            "extproc.cli",
            "up",
            "--no-table",
            "-f",
            str(folder / "steersman.yaml"),
        ]
        up = leashed(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            wait_for("Envoy", lambda: listens(listen))
            time.sleep(SETTLED_S)
            yield from _rows(up.pid)
        finally:
            up.terminate()
            up.wait(60)
            stop_all([engine])


def _rows(supervisor: int) -> Iterator[Row]:
    children = [int(pid) for pid in _text(supervisor, f"task/{supervisor}/children").split()]
    service = next(pid for pid in children if "serve" in _text(pid, "cmdline").split("\0"))
    envoy = next(pid for pid in children if pid != service)
    pids = {"supervisor": supervisor, "service": service, "Envoy": envoy}
    before = {name: cpu_ns(pid) for name, pid in pids.items()}
    time.sleep(LOOKED_S)
    spent = {name: (cpu_ns(pid) - before[name]) / 1e7 / LOOKED_S for name, pid in pids.items()}
    resident = {name: _resident_mib(pid) for name, pid in pids.items()}
    what = f"idle with {ENDPOINTS} endpoints"
    for name in pids:
        yield Row(f"{what}: {name}", spent[name], "% of a core")
    yield Row(f"{what}: all three", sum(spent.values()), "% of a core", AIM_PERCENT)
    for name in pids:
        yield Row(f"{what}: {name}", resident[name], "MiB")
    both = resident["supervisor"] + resident["service"]
    yield Row(f"{what}: supervisor and service, resident", both, "MiB", AIM_MIB)


def _text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _resident_mib(pid: int) -> float:
    pages = int(_text(pid, "statm").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
