"""The node agent on a machine with a real card: `python tests/gpu/card_check.py` prints what it saw as JSON.

Owns the check that no test machine of ours can run: NVML's real half, from the card to the service's fleet.
A tensor program (torch) is the load; a simulated TGI replica in the same process is what is mapped onto the
card. An illegal access in a program of its own makes a harmless XID. Changes no setting of the card.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEERSMAN = "from extproc.cli import main; main(__import__('sys').argv[1:])"

#: Memory held and a product that never ends; then the simulated replica in the very process.
LOAD = """
import sys, threading, torch
held = torch.zeros(20 << 30, dtype=torch.uint8, device="cuda")
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
def work():
    while True:
        torch.matmul(a, a); torch.cuda.synchronize()
threading.Thread(target=work, daemon=True).start()
from extproc.cli import main
main(["sim-replica", "--port", sys.argv[1], "--hardware", "h100-80g/llama-3-8b"])
"""
ILLEGAL = """
import cupy
code = 'extern "C" __global__ void f(int* p) { p[0] = 1; }'
cupy.RawKernel(code, "f")((1,), (1,), (cupy.uint64(8),))
cupy.cuda.Stream.null.synchronize()
"""


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A child of this Python with the project on its path."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **options)


def ask(*arguments: str) -> Any:
    """A command's JSON, or what it said instead."""
    done = python(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=60)
    try:
        return json.loads(out)
    except ValueError:
        return {"rc": done.returncode, "out": out[-500:], "err": err[-500:]}


def smi() -> str:
    """What the vendor's own tool says of the same moment."""
    fields = (
        "name,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu,clocks.sm,clocks.max.sm"
    )
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields},clocks_event_reasons.active", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr[-300:]


def reading_costs() -> dict[str, float]:
    """Milliseconds of one look at the cards: with everything, and the short one."""
    sys.path.insert(0, str(ROOT))
    from steersman_agent.nvml import GpuReader
    from steersman_agent.nvml_real import open_nvml

    lib = open_nvml("auto")
    reader = GpuReader(lib)
    reader.read()
    costs = {}
    for name, fully in (("full", True), ("short", False)):
        begun = time.perf_counter()
        for _ in range(50):
            reader.read(fully=fully)
        costs[f"{name}_ms"] = round((time.perf_counter() - begun) / 50 * 1e3, 3)
    lib.nvmlShutdown()
    return costs


def endpoint_of(status: Any) -> dict[str, Any]:
    """What the service knows of the one endpoint."""
    try:
        found = status["endpoints"][0]
    except (KeyError, IndexError, TypeError):
        return {"status": status}
    kept = ("address", "ready", "state", "health", "causes", "node", "engine", "hardware", "gpus", "age_ms")
    return {name: found.get(name) for name in kept}


def main() -> None:
    """Idle, loaded, mapped by process, an XID, and the load gone."""
    found: dict[str, Any] = {"smi_idle": smi(), "once_idle": ask("-m", "steersman_agent", "--once", "--json")}
    found["reading"] = reading_costs()
    folder = Path(tempfile.mkdtemp())
    replica, service, pushed = free_port(), free_port(), free_port()
    (folder / "steersman.yaml").write_text(
        f"gateway: {{auth: none}}\nservice: {{listen: ['127.0.0.1:{service}']}}\n"
        f"telemetry: {{listen: ['127.0.0.1:{pushed}'], auth: none}}\n"
        "pools:\n  - name: llama\n    models: [meta-llama/Meta-Llama-3-8B-Instruct]\n"
        f"    endpoints: [{{address: '127.0.0.1:{replica}'}}]\n"
    )
    # No `gpus`: the card must be found by the process that listens and holds memory on it.
    (folder / "agent.yaml").write_text(
        f"node: gpu-1\nservices: ['127.0.0.1:{pushed}']\nnvml: auto\n"
        f"replicas: [{{address: '127.0.0.1:{replica}', pool: llama, engine: tgi}}]\n"
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": (folder / "log").open("w")}
    children = [
        python("-c", LOAD, str(replica), **quiet),
        python("-c", STEERSMAN, "serve", "-f", str(folder / "steersman.yaml"), **quiet),
        python("-c", STEERSMAN, "agent", "-f", str(folder / "agent.yaml"), **quiet),
    ]
    look = ("-c", STEERSMAN, "status", "--json", "--address", f"127.0.0.1:{service}")
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            seen = endpoint_of(ask(*look))
            if seen.get("gpus") and (seen["gpus"][0].get("utilization_percent") or 0) > 50:
                break
            time.sleep(1)
        found["smi_loaded"], found["fleet_loaded"] = smi(), endpoint_of(ask(*look))
        time.sleep(15)
        found["smi_hot"], found["fleet_hot"] = smi(), endpoint_of(ask(*look))
        illegal = python("-c", ILLEGAL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        found["illegal"] = illegal.communicate(timeout=60)[1][-200:]
        time.sleep(3)
        found["fleet_after_xid"] = endpoint_of(ask(*look))
        children[0].kill()
        time.sleep(4)
        found["smi_after"], found["fleet_after_death"] = smi(), endpoint_of(ask(*look))
    finally:
        for child in children:
            child.kill()
        found["log"] = (folder / "log").read_text()[-2500:]
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
