"""What the replica simulator itself costs: the scheduler alone, and a token through the HTTP server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from heapq import heappop, heappush
from random import Random

from gateway import free_ports, wait_for
from rows import Row, cpu_ns

from extproc.sim.events import Finished, SimRequest
from extproc.sim.replica import SimReplica
from extproc.sim.spec import ReplicaSpec

REQUESTS = 5_000
REPLICAS = 8
STREAMS, TOKENS = 50, 200


def run() -> Iterator[Row]:
    """Yield costs in microseconds."""
    yield from _scheduler()
    for per_s in (
        3.5,
        7.0,
    ):  # a replica: leaps are long at the first, at the second nearly every step changes
        best = min(_fleet(per_s) for _ in range(3))
        yield Row(
            f"{REPLICAS} replicas as the simulation drives them, {per_s:g}/s each, per request",
            best,
            "µs",
            40,
        )
    yield from _server()


def _scheduler() -> Iterator[Row]:
    spec = ReplicaSpec(name="bench")
    rng = Random(4)
    replica = SimReplica(spec.timing(), spec.limits(), rng=Random(5))
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


def _fleet(per_s: float) -> float:
    """CPU µs per request over eight replicas with one heap of what is due; sizes like the Azure
    conversation trace's (means of 1,100 prompt and 210 output tokens).
    """
    spec = ReplicaSpec(name="bench")
    rng = Random(4)
    fleet = [SimReplica(spec.timing(), spec.limits(), rng=Random(at)) for at in range(REPLICAS)]
    arrivals = []
    at_ns = 0
    for i in range(REQUESTS):
        at_ns += int(rng.expovariate(per_s * REPLICAS) * 1e9)
        request = SimRequest(
            request_id=i,
            prompt_tokens=max(1, min(7000, int(rng.lognormvariate(6.75, 0.7)))),
            output_tokens=max(1, min(1000, int(rng.lognormvariate(5.18, 0.57)))),
            max_new_tokens=1000,
        )
        arrivals.append((at_ns, request))
    due: list[tuple[int, int, int]] = []
    version = [0] * REPLICAS
    finished = at = 0
    began = time.process_time()
    while at < REQUESTS or due:
        if due and (at == REQUESTS or due[0][0] <= arrivals[at][0]):
            due_ns, which, valid = heappop(due)
            if valid != version[which]:
                continue
            for event in fleet[which].advance(due_ns):
                finished += type(event) is Finished
        else:
            at_ns, request = arrivals[at]
            which = at % REPLICAS
            at += 1
            fleet[which].submit(request, now_ns=at_ns)
        version[which] += 1
        next_ns = fleet[which].next_event_ns()
        if next_ns is not None:
            heappush(due, (next_ns, which, version[which]))
    took_s = time.process_time() - began
    assert finished == REQUESTS, finished
    return took_s / REQUESTS * 1e6


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
