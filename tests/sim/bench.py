"""What the simulator costs: `python -m tests.sim.bench scheduler` and `… server [uvloop]`.

Not a test: prints figures for the machine it runs on.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import resource
import sys
import time
from heapq import heappop, heappush
from random import Random
from typing import Any

from extproc.sim.events import Finished, Overloaded, SimRequest
from extproc.sim.listening import ReplicaSpec, start_replicas
from extproc.sim.replica import ReplicaLimits, SimReplica
from extproc.sim.timing import hardware_named

REPLICAS = 8
STREAMS, TOKENS = 120, 200


def scheduler(requests: int = 19_000, per_s: float = 40.0) -> str:
    """Least-permits placement of a synthetic log-normal load over eight A100 replicas."""
    hardware = hardware_named("a100-80g/llama-3-8b")
    limits = ReplicaLimits(kv_capacity_tokens=hardware.kv_capacity_tokens)
    fleet = [SimReplica(hardware, limits, rng=Random(at), noise=0.05) for at in range(REPLICAS)]
    rng, at_s, load = Random(1), 0.0, []
    for index in range(requests):
        at_s += rng.expovariate(per_s)
        prompt = min(7000, max(1, int(rng.lognormvariate(6.7, 0.9))))
        out = max(1, min(1000, int(rng.lognormvariate(5, 0.7))))
        blocks = [("shared", index % 500, k) if k < 20 else (index, k) for k in range(prompt // 16)]
        load.append(
            (
                int(at_s * 1e9),
                SimRequest(
                    request_id=index,
                    prompt_tokens=prompt,
                    output_tokens=out,
                    max_new_tokens=1000,
                    blocks=blocks,
                ),
            )
        )
    due: list[tuple[int, int, int]] = []
    version = [0] * REPLICAS
    done = refused = at = at_ns = 0
    began_s = time.perf_counter()
    while at < len(load) or due:
        if due and (at == len(load) or due[0][0] <= load[at][0]):
            at_ns, which, valid = heappop(due)
            if valid != version[which]:
                continue
            done += sum(type(event) is Finished for event in fleet[which].advance(at_ns))
        else:
            at_ns, request = load[at]
            at += 1
            which = min(range(REPLICAS), key=lambda k: fleet[k].permits_in_use)
            refused += type(fleet[which].submit(request, now_ns=at_ns)) is Overloaded
        version[which] += 1
        if (next_ns := fleet[which].next_event_ns()) is not None:
            heappush(due, (next_ns, which, version[which]))
    wall_s = time.perf_counter() - began_s
    steps = sum(replica.steps for replica in fleet)
    return (
        f"{requests} requests at {per_s:.0f}/s over {REPLICAS} replicas: {done} finished, {refused} refused, "
        f"{steps} steps in {wall_s:.2f} s: {requests / wall_s:.0f} requests/s, {steps / wall_s:.0f} steps/s, "
        f"{at_ns / 1e9 / wall_s:.0f} × life"
    )


def _serve(out: Any, stop: Any, loop_name: str) -> None:
    async def main() -> None:
        specs = [ReplicaSpec(name=f"r{at}", hardware="h100-tp4/llama-2-70b") for at in range(4)]
        async with await start_replicas(specs) as running:
            out.put(running.ports)
            began = resource.getrusage(resource.RUSAGE_SELF)
            while not stop.is_set():  # noqa: ASYNC110 — another process sets it
                await asyncio.sleep(0.2)
            ended = resource.getrusage(resource.RUSAGE_SELF)
            out.put(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)

    factory = None
    if loop_name == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def _read(port: int, index: int) -> int:
    """One stream over a raw socket, so that the client costs little."""
    body = b'{"inputs":"hello %d [[sim:out=%d]]","parameters":{"max_new_tokens":%d}}' % (
        index,
        TOKENS,
        TOKENS,
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /generate_stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    tokens = 0
    while chunk := await reader.read(65536):
        tokens += chunk.count(b"data: ")
    writer.close()
    return tokens


async def _read_all(ports: list[int]) -> int:
    return sum(await asyncio.gather(*(_read(ports[at % len(ports)], at) for at in range(STREAMS))))


def server(loop_name: str) -> str:
    """CPU of the serving process over 120 streams of 200 tokens at a 70B's pace."""
    out, stop = mp.Queue(), mp.Event()
    process = mp.Process(target=_serve, args=(out, stop, loop_name))
    process.start()
    ports = out.get()
    began_s = time.perf_counter()
    tokens = asyncio.run(_read_all(ports))
    wall_s = time.perf_counter() - began_s
    stop.set()
    cpu_s = out.get()
    process.join()
    return (
        f"{loop_name}: {STREAMS} streams × {TOKENS}: {tokens / wall_s:.0f} tokens/s, "
        f"{cpu_s / tokens * 1e6:.1f} µs of server CPU a token, {cpu_s / wall_s * 100:.0f} % of a core"
    )


if __name__ == "__main__":
    if sys.argv[1] == "scheduler":
        sys.stdout.write(f"{scheduler()}\n{scheduler(per_s=70.0)}\n")
    else:
        sys.stdout.write(server(sys.argv[2] if len(sys.argv) > 2 else "asyncio") + "\n")
