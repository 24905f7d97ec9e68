"""What listening to a large fleet costs the service: a thousand replicas, each heard of once a second.

125 nodes, each with 8 replicas and 8 GPUs whose figures all move between two reports (the worst case: no
byte of a report is as before). The share of a core is CPU time per second of such a fleet's life.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from random import Random

import grpc
from rows import Row

from extproc._pb import telemetry_pb2 as pb
from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.reports import ReplicaReport
from extproc.telemetry.ingest import Ingest, PushingNode
from extproc.telemetry.server import TELEMETRY, TelemetryServer

NODES, REPLICAS, GPUS = 125, 8, 8
SECONDS, STEPS_PER_S = 8, 4
S = 1_000_000_000
#: Percent of a core.
AIM, AIM_ALONE = 10.0, 5.0


def address(node: int, replica: int) -> str:
    """The address of a node's replica."""
    return f"10.{node // 250}.{node % 250}.{replica + 1}:8080"


def report(node: int, sequence: int, rng: Random, unix_ms: int) -> bytes:
    """A report as an agent beside H100s sends it, every figure drawn anew."""
    message = pb.Report(node=f"node-{node}", boot_id=node + 1, sequence=sequence, sent_unix_ms=unix_ms)
    for i in range(REPLICAS):
        message.replicas.add(
            address=address(node, i),
            pool="chat",
            zone=f"zone-{node % 3}",
            region="eu",
            engine="tgi",
            state=pb.READY,
            models=["meta-llama/Llama-3.1-8B-Instruct"],
            waiting=rng.randrange(4),
            running=rng.randrange(60),
            kv_used_tokens=rng.randrange(400_000),
            kv_capacity_tokens=450_000,
            max_concurrent=128,
            prefill_tokens_per_s=rng.uniform(0, 20_000),
            decode_tokens_per_s=rng.uniform(0, 4_000),
            probe_ttft_ms=rng.uniform(20, 80),
            gpu_uuids=[f"GPU-{node:08x}-0000-0000-0000-{i:012x}"],
        )
    for i in range(GPUS):
        message.gpus.add(
            uuid=f"GPU-{node:08x}-0000-0000-0000-{i:012x}",
            index=i,
            name="NVIDIA H100 80GB HBM3",
            pci_id=f"00000000:{i:02x}:00.0",
            utilization_percent=rng.randrange(101),
            memory_used_bytes=70 << 30,
            memory_total_bytes=80 << 30,
            power_w=rng.uniform(100, 690),
            power_limit_w=700.0,
            temperature_c=rng.randrange(40, 70),
            sm_clock_mhz=rng.randrange(1400, 1980),
            sm_clock_max_mhz=1980,
            throttle_reasons=0x4,
            ecc_corrected=rng.randrange(3),
            ecc_uncorrected=0,
            remapped_rows_corrected=0,
            remapped_rows_uncorrected=0,
            remap_pending=False,
            remap_failed=False,
            nvlink_errors=0,
        ).processes.add(pid=1000 + i, memory_bytes=70 << 30)
    return message.SerializeToString()


def fleet() -> Fleet:
    """Everything in one pool: what is quadratic shows."""
    everyone = tuple(
        (address(node, i), f"zone-{node % 3}", 128) for node in range(NODES) for i in range(REPLICAS)
    )
    return Fleet([PoolSpec(name="chat", models=("m",), strategy="least_work", endpoints=everyone)])


class Service:
    """Ingest and fleet as the service joins them; `steps_ns` is the CPU time of the steps."""

    def __init__(self) -> None:
        self.fleet = fleet()
        self.steps_ns = 0
        self.ingest = Ingest(
            [PushingNode(name=f"node-{node}") for node in range(NODES)],
            anyone=False,
            on_reports=self._take,
            on_leaving=lambda _node, _now_ns: None,
        )

    def _take(self, _node: str, reports: list[ReplicaReport], now_ns: int) -> None:
        for each in reports:
            assert self.fleet.heard(each, now_ns=now_ns)

    def step(self, now_ns: int) -> None:
        """Let time pass."""
        began = time.thread_time_ns()
        self.fleet.step(now_ns=now_ns)
        self.steps_ns += time.thread_time_ns() - began


def run() -> Iterator[Row]:
    """Yield percents of a core."""
    service, rng = Service(), Random(1)
    taken_ns = 0
    for second in range(SECONDS):
        unix_ms = second * 1000
        reports = [(f"node-{node}", report(node, second + 1, rng, unix_ms)) for node in range(NODES)]
        share = NODES // STEPS_PER_S + 1
        for quarter in range(STEPS_PER_S):
            now_ns = second * S + quarter * S // STEPS_PER_S
            began = time.thread_time_ns()
            for node, data in reports[quarter * share : (quarter + 1) * share]:
                service.ingest.take(data, node, now_ns=now_ns, now_unix_ms=unix_ms)
            taken_ns += time.thread_time_ns() - began
            service.step(now_ns)
    assert service.ingest.counts == {"taken": NODES * SECONDS}, service.ingest.counts
    assert not any(endpoint.stale for endpoint in service.fleet.endpoints)
    percent = 100 / (SECONDS * S)
    yield Row("1,000 replicas at 1 Hz: reports taken", taken_ns * percent, "% core")
    yield Row(f"1,000 replicas: {STEPS_PER_S} steps of health a second", service.steps_ns * percent, "% core")
    yield Row("1,000 replicas: both", (taken_ns + service.steps_ns) * percent, "% core", AIM_ALONE)
    yield Row("1,000 replicas at 1 Hz over gRPC, a stream a node", asyncio.run(_over_grpc()), "% core", AIM)


async def _over_grpc() -> float:
    """The service in this process, the agents in a child: the CPU that is counted is the service's."""
    service = Service()
    tokens = {hashlib.sha256(f"token-{node}".encode()).hexdigest(): f"node-{node}" for node in range(NODES)}
    server = TelemetryServer(service.ingest, tokens=tokens)
    [listening] = await server.start(["127.0.0.1:0"])
    agents = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, listening), stdout=asyncio.subprocess.PIPE
    )
    assert agents.stdout is not None
    try:
        await agents.stdout.readline()  # every stream has been answered once
        began, cpu = time.monotonic(), time.process_time()
        while time.monotonic() - began < SECONDS:
            await asyncio.sleep(1 / STEPS_PER_S)
            service.step(time.monotonic_ns())
        used = (time.process_time() - cpu) / (time.monotonic() - began)
        assert service.ingest.counts["taken"] >= NODES * (SECONDS - 1), service.ingest.counts
    finally:
        agents.terminate()
        await agents.wait()
        await server.stop()
    return used * 100


async def _agents(target: str) -> None:
    """Every node's agent, each with a connection of its own."""
    answered = [asyncio.Event() for _ in range(NODES)]
    streams = [asyncio.create_task(_agent(target, node, answered[node])) for node in range(NODES)]
    for event in answered:
        await event.wait()
    print("all", flush=True)
    await asyncio.gather(*streams)


async def _agent(target: str, node: int, answered: asyncio.Event) -> None:
    rng = Random(node)

    async def reports() -> AsyncIterator[bytes]:
        sequence = 0
        while True:
            sequence += 1
            yield report(node, sequence, rng, int(time.time() * 1000))
            await asyncio.sleep(1 + rng.uniform(-0.1, 0.1))

    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        push = channel.stream_stream(f"/{TELEMETRY}/Push")
        async for ack in push(reports(), metadata=[("authorization", f"Bearer token-{node}")]):
            assert not pb.Ack.FromString(ack).rejected, ack
            answered.set()


if __name__ == "__main__":
    asyncio.run(_agents(sys.argv[1]))
