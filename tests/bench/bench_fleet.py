"""How old the service's knowledge is: from a change at an engine to the endpoint's state that knows it.

A real agent process polls engines at 100 ms while they are busy and pushes over gRPC; the service's
telemetry server, ingest and fleet run here. The engines are pages whose gauges change at random moments.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import yaml
from gateway import Child
from rows import Row, percentile

from extproc.core.fleet import Fleet, PoolSpec
from extproc.core.reports import ReplicaReport
from extproc.telemetry.ingest import Ingest, PushingNode
from extproc.telemetry.server import TelemetryServer

CHANGES = 60
#: The pause between two changes of a replica: longer than one takes to be known, and out of step.
PAUSE_S = (0.15, 0.3)
#: What was waited for longer than this never came.
KNOWN_S_MAX = 5.0
TOKEN = "bench-token"
AIM_P99_MS = 150.0


@dataclass
class EnginePage:
    """An engine of which only the pages are there; `waiting` and `running` are what changes."""

    waiting: int = 1
    running: int = 40
    steps: int = 0
    changed_ns: int = 0
    took_ms: list[float] = field(default_factory=list)

    def page(self, path: str) -> str:
        """The page under a path; a busy engine's counters have moved each time."""
        self.steps += 1
        if path == "/metrics":
            return (
                f"tgi_queue_size {self.waiting}\n"
                f"tgi_batch_current_size {self.running}\n"
                f"tgi_batch_current_max_tokens {self.running * 500}\n"
                f'tgi_batch_inference_success{{method="decode"}} {self.steps}\n'
            )
        return '{"model_id": "m", "max_concurrent_requests": 128}' if path == "/info" else ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on one connection until it ends."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = self.page(head.split(b" ", 2)[1].decode())
                kind = "application/json" if body.startswith("{") else "text/plain"
                head_lines = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}"
                writer.write(f"{head_lines}\r\n\r\n{body}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def run() -> Iterator[Row]:
    """Yield milliseconds."""
    for count, name, change in ((1, "waiting", _waiting), (8, "waiting", _waiting), (8, "running", _running)):
        took = asyncio.run(_measure(count, change))
        label = f"a change of {name} known, node of {count}, polled at 100 ms"
        yield Row(f"{label}, p50", percentile(took, 0.5), "ms")
        yield Row(f"{label}, p99", percentile(took, 0.99), "ms", AIM_P99_MS)


def _waiting(engine: EnginePage) -> None:
    engine.waiting += 1


def _running(engine: EnginePage) -> None:
    # What an agent tells before its heartbeat: 2 % of the permits.
    engine.running = 40 if engine.running != 40 else 43


async def _measure(count: int, change: Callable[[EnginePage], None]) -> list[float]:
    engines = [EnginePage() for _ in range(count)]
    servers = [await asyncio.start_server(engine.serve, "127.0.0.1", 0) for engine in engines]
    addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    by_address = dict(zip(addresses, engines, strict=True))
    members = tuple((address, "", 128) for address in addresses)
    fleet = Fleet([PoolSpec(name="chat", models=("m",), strategy="least_work", endpoints=members)])

    heard = asyncio.Event()

    def taken(_: str, reports: list[ReplicaReport], now_ns: int) -> None:
        heard.set()
        for each in reports:
            assert fleet.heard(each, now_ns=now_ns)
            engine = by_address[each.address]
            if engine.changed_ns and (each.waiting, each.running) == (engine.waiting, engine.running):
                engine.took_ms.append((time.monotonic_ns() - engine.changed_ns) / 1e6)
                engine.changed_ns = 0

    ingest = Ingest([PushingNode(name="bench")], anyone=False, on_reports=taken, on_leaving=lambda *_: None)
    server = TelemetryServer(ingest, tokens={hashlib.sha256(TOKEN.encode()).hexdigest(): "bench"})
    [listening] = await server.start(["127.0.0.1:0"])
    with tempfile.TemporaryDirectory() as folder:
        agent = _agent(Path(folder), listening, addresses)
        agent.start()
        try:
            await heard.wait()
            await asyncio.sleep(1.0)
            await asyncio.gather(*(_change(engine, change, Random(i)) for i, engine in enumerate(engines)))
        finally:
            agent.stop()
            await server.stop()
            for each in servers:
                each.close()
    return [ms for engine in engines for ms in engine.took_ms]


async def _change(engine: EnginePage, change: Callable[[EnginePage], None], rng: Random) -> None:
    for _ in range(CHANGES):
        await asyncio.sleep(rng.uniform(*PAUSE_S))
        change(engine)
        engine.changed_ns = time.monotonic_ns()
        until_ns = engine.changed_ns + int(KNOWN_S_MAX * 1e9)
        while engine.changed_ns:
            assert time.monotonic_ns() < until_ns, "a change never came to be known"
            await asyncio.sleep(0.005)


def _agent(folder: Path, service: str, addresses: list[str]) -> Child:
    secret, file = folder / "token", folder / "agent.yaml"
    secret.write_text(TOKEN)
    replicas = [{"address": address, "pool": "chat", "engine": "tgi"} for address in addresses]
    config = {"node": "bench", "services": [service], "token_file": str(secret), "nvml": "off", "probe_ms": 0}
    file.write_text(yaml.safe_dump({**config, "replicas": replicas}))
    return Child("agent", [sys.executable, "-m", "steersman_agent", "-f", str(file)], folder)
