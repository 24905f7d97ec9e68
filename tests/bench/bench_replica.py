"""What the replica simulator itself costs: the scheduler alone, and a token through the HTTP server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from random import Random

from gateway import free_ports, wait_for
from rows import Row, cpu_ns

from extproc.sim.events import Finished, SimRequest
from extproc.sim.replica import Replica
from extproc.sim.spec import ReplicaSpec

REQUESTS = 5_000
STREAMS, TOKENS = 50, 200


def run() -> Iterator[Row]:
    """Yield costs in microseconds."""
    yield from _scheduler()
    yield from _server()


def _scheduler() -> Iterator[Row]:
    spec = ReplicaSpec(name="bench")
    rng = Random(4)
    replica = Replica(spec.timing(), spec.limits(), rng=Random(5))
    arrivals = []
    at_ns = 0
    for i in range(REQUESTS):
        at_ns += int(rng.expovariate(4.0) * 1e9)
        output = max(1, min(1000, int(rng.lognormvariate(5.0, 0.8))))
        arrivals.append(
            (
                at_ns,
                SimRequest(
                    request_id=i,
                    prompt_tokens=max(1, min(4000, int(rng.lognormvariate(6.3, 1.0)))),
                    output_tokens=output,
                    max_new_tokens=1000,
                ),
            )
        )
    began = time.perf_counter()
    finished = tokens = 0
    for at_ns, request in arrivals:
        while (due := replica.next_event_ns()) is not None and due <= at_ns:
            finished += sum(isinstance(event, Finished) for event in replica.advance(due))
        replica.submit(request, now_ns=at_ns)
        tokens += request.output_tokens
    while (due := replica.next_event_ns()) is not None:
        finished += sum(isinstance(event, Finished) for event in replica.advance(due))
    took = time.perf_counter() - began
    yield Row("replica scheduler alone, per request", took / max(1, finished) * 1e6, "µs")
    yield Row("replica scheduler alone, times faster than life", at_ns / 1e9 / took, "×")


def _server() -> Iterator[Row]:
    port = free_ports(1)[0]
    child = subprocess.Popen(
        [sys.executable, "-m", "extproc.cli", "sim-replica", "--port", str(port), "--time-scale", "4"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for("the replica", lambda: _listens(port))
        before = cpu_ns(child.pid)
        asyncio.run(_streams(port))
        yield Row(
            "replica server, per streamed token",
            (cpu_ns(child.pid) - before) / (STREAMS * TOKENS) / 1e3,
            "µs",
        )
    finally:
        child.terminate()
        child.wait(10)


def _listens(port: int) -> bool:
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


async def _streams(port: int) -> None:
    body = json.dumps({"inputs": f"[[sim:out={TOKENS}]]", "parameters": {"max_new_tokens": TOKENS}}).encode()
    head = b"POST /generate_stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"content-type: application/json\r\n"

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        data = await reader.read()
        writer.close()
        return data.count(b"data:")

    counts = await asyncio.gather(*(one() for _ in range(STREAMS)))
    assert counts == [TOKENS] * STREAMS, counts
