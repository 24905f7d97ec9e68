"""What an agent costs: CPU of one core for 8 fake GPUs and 8 simulated replicas, idle and at work.

    .venv/bin/python tests/agents/bench_agent.py [--seconds 20]

The agent runs in a process of its own and pushes to a telemetry service in this one; its CPU is read
from /proc (all threads, user and system). Idle is metrics, health and GPUs at 1 Hz; at work every
replica decodes and is asked every 100 ms. Prints JSON; compare the ratios, not the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio

from extproc._pb import telemetry_pb2 as pb
from steersman_agent.nvml_fake import write_script
from steersman_agent.push import METHOD

REPLICAS = GPUS = 8
SETTLE_S = 4.0
_SIM = "from extproc.cli.sim_replica import command; command()"


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def main(seconds: float) -> dict[str, Any]:
    """Measure both and describe them."""
    reports: list[int] = []

    async def push(incoming: AsyncIterator[pb.Report], _context: Any) -> AsyncIterator[pb.Ack]:
        async for report in incoming:
            reports.append(report.ByteSize())
            yield pb.Ack(sequence=report.sequence)

    server = grpc.aio.server()
    package, name = METHOD.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(
        push, request_deserializer=pb.Report.FromString, response_serializer=pb.Ack.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(package, {name: handler}),))
    service = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    sim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SIM, "--count", str(REPLICAS), "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    assert sim.stdout is not None
    addresses = []
    for _ in range(REPLICAS):
        line = (await sim.stdout.readline()).decode()
        addresses.append(line.split()[1].removeprefix("http://"))

    with tempfile.TemporaryDirectory() as folder:
        script, file = Path(folder, "gpus.json"), Path(folder, "agent.yaml")
        write_script(script, {"gpus": [{} for _ in range(GPUS)]})
        config = {
            "node": "bench",
            "services": [f"127.0.0.1:{service}"],
            "nvml": f"fake:{script}",
            "replicas": [
                {"address": address, "pool": "p", "engine": "tgi", "gpus": [at]}
                for at, address in enumerate(addresses)
            ],
        }
        await asyncio.to_thread(file.write_text, json.dumps(config))  # JSON is YAML
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "steersman_agent", "-f", str(file)), stderr=asyncio.subprocess.DEVNULL
        )

        async def measure() -> dict[str, float]:
            await asyncio.sleep(SETTLE_S)
            before_s, count = cpu_s(agent.pid), len(reports)
            await asyncio.sleep(seconds)
            percent = 100 * (cpu_s(agent.pid) - before_s) / seconds
            return {
                "cpu_percent_of_a_core": round(percent, 2),
                "cpu_percent_a_replica": round(percent / REPLICAS, 3),
                "reports_a_second": round((len(reports) - count) / seconds, 1),
                "report_bytes": reports[-1],
                "rss_mib": round(rss_mib(agent.pid), 1),
            }

        try:
            idle = await measure()
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
                work = [asyncio.create_task(_work(session, address)) for address in addresses]
                busy = await measure()
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
        finally:
            for child in (agent, sim):
                child.terminate()
                await child.wait()
            await server.stop(0)
    return {"replicas": REPLICAS, "gpus": GPUS, "seconds": seconds, "idle": idle, "at_work": busy}


async def _work(session: aiohttp.ClientSession, address: str) -> None:
    """Requests of different lengths, four at a time, so that queue and KV keep moving."""

    async def one(tokens: int) -> None:
        body = {"inputs": f"Go. [[sim:out={tokens}]]", "parameters": {"max_new_tokens": tokens}}
        while True:
            async with session.post(f"http://{address}/generate", json=body) as response:
                await response.read()

    await asyncio.gather(*(one(tokens) for tokens in (50, 90, 170, 310)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    print(json.dumps(asyncio.run(main(parser.parse_args().seconds)), indent=2))
