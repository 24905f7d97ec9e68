"""The two transports of the service, each behind an Envoy of its own, in one run: CPU and latency a request.

Blocks of requests alternate between them, so that a noisy neighbour hits both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack

from gateway import KEYS, Gateway
from load import Load, request_bytes, static_upstream
from rows import Row, cpu_ns, percentile

BLOCKS = 6
CLOSED_PER_BLOCK = 250
RATE_PER_S, OPEN_SECONDS = 200.0, 3.0
PROMPT_BYTES = 1_000
TRANSPORTS = ("http2", "grpcio")


def run() -> Iterator[Row]:
    """Yield latencies in milliseconds and CPU in microseconds."""
    yield from asyncio.run(_measure())


async def _measure() -> list[Row]:
    addresses, servers = await static_upstream(4)
    pools = {"chat": {"models": ["m"], "addresses": addresses}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * PROMPT_BYTES}]}).encode()
    request = request_bytes(body, KEYS["acme"])
    with ExitStack() as stack:
        gateways = {}
        for name in TRANSPORTS:
            gateway = Gateway(pools, gateway={"failure_mode": "open", "debug_headers": False})
            gateway.config["service"]["transport"] = name
            gateway.write_config()
            gateways[name] = stack.enter_context(gateway)
        try:
            return await _alternate(gateways, request)
        finally:
            for server in servers:
                server.close()


async def _alternate(gateways: dict[str, Gateway], request: bytes) -> list[Row]:
    loads = {name: Load(gateway.port) for name, gateway in gateways.items()}
    for load in loads.values():
        await load.closed(request, 300)  # warm
    closed: dict[str, list[float]] = {name: [] for name in loads}
    opened: dict[str, list[float]] = {name: [] for name in loads}
    cpu = {
        (kind, part, name): 0
        for kind in ("closed", "open")
        for part in ("service", "Envoy")
        for name in loads
    }
    for block in range(BLOCKS):
        for name, load in loads.items():
            parts = {"service": gateways[name].service.pid, "Envoy": gateways[name].envoy.pid}
            kind, took = ("open", opened[name]) if block % 2 else ("closed", closed[name])
            before = {part: cpu_ns(pid) for part, pid in parts.items()}
            if kind == "closed":
                took += await load.closed(request, 2 * CLOSED_PER_BLOCK)
            else:
                took += await load.open(request, RATE_PER_S, OPEN_SECONDS)
            for part, pid in parts.items():
                cpu[kind, part, name] += cpu_ns(pid) - before[part]
    rows = []
    for kind, label, figures in (
        ("closed", "concurrency 1", closed),
        ("open", f"{RATE_PER_S:g} requests/s", opened),
    ):
        for name in TRANSPORTS:
            count = len(figures[name])
            rows += [
                Row(f"{name}: {part} CPU per request, {label}", cpu[kind, part, name] / count / 1e3, "µs")
                for part in ("service", "Envoy")
            ]
            for share in (0.5, 0.99):
                rows.append(Row(f"{name}: {label}, p{share * 100:g}", percentile(figures[name], share), "ms"))
    failed = sum(load.failed for load in loads.values())
    for load in loads.values():
        load.close()
    return [*rows, Row("requests failed", float(failed), "", 0.0)]
