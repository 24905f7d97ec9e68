"""How soon a node agent sees a hang and an XID, and `steersman --help` has answered.

Tests wait for each; the seconds are told here, where nothing falls for a busy core.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
from rows import Row

from extproc.sim.listening import ReplicaSpec, start_replicas
from steersman_agent.agent import Agent
from steersman_agent.config import AgentConfig, ReplicaSettings
from steersman_agent.state import ReplicaState

AIM_HUNG_S, AIM_XID_S, AIM_HELP_S = 1.5, 0.5, 0.25
#: The wait for XID events is registered within this.
REGISTERED_S = 0.5


async def seconds_until(condition: Callable[[], object]) -> float:
    """How long it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (an agent's view: no event tells it)
            await asyncio.sleep(0.005)
    return time.monotonic() - began_s


async def noticed(script: Path) -> tuple[float, float]:
    """Seconds to a hang under work, and to an XID."""
    async with await start_replicas([ReplicaSpec(name="one")]) as running, aiohttp.ClientSession() as session:
        address = running.addresses[0]
        replica = ReplicaSettings(address=address, pool="p", engine="tgi")
        agent = Agent(AgentConfig(nvml=f"fake:{script}", nvml_ms=60_000, node="n", replicas=(replica,)))
        stop = asyncio.Event()
        task = asyncio.create_task(agent.run(stop))
        await seconds_until(
            lambda: agent.view().gpus and agent.view().replicas[0].state is ReplicaState.READY
        )
        await asyncio.sleep(REGISTERED_S)
        script.write_text(json.dumps({"gpus": [{"xids": [48]}]}))  # noqa: ASYNC240 (a tiny file of its own)
        xid_s = await seconds_until(lambda: agent.view().gpus[0].xids)
        body = {"inputs": "Go. [[sim:out=500]]", "parameters": {"max_new_tokens": 500}}
        job = asyncio.create_task(session.post(f"http://{address}/generate", json=body))
        await seconds_until(lambda: agent.view().replicas[0].running == 1)
        await session.post(f"http://{address}/sim/fault", json={"hang": True})
        hung_s = await seconds_until(lambda: agent.view().replicas[0].state is ReplicaState.HUNG)
        job.cancel()
        stop.set()
        await asyncio.gather(task, job, return_exceptions=True)
    return hung_s, xid_s


def run() -> Iterator[Row]:
    """Yield seconds."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gpus.json"
        script.write_text(json.dumps({"gpus": [{}]}))
        hung_s, xid_s = asyncio.run(noticed(script))
    yield Row("agent: a hang under work is seen after", hung_s, "s", AIM_HUNG_S)
    yield Row("agent: an XID is seen after", xid_s, "s", AIM_XID_S)
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-m", "extproc.cli", "--help"], check=True, capture_output=True)
        took_s.append(time.monotonic() - began_s)
    yield Row("steersman --help", min(took_s), "s", AIM_HELP_S)
