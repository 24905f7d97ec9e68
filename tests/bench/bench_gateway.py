"""What the service adds to a request, against the same Envoy without it, in one run.

The second Envoy has the same configuration less ext_proc and access log, and goes straight to the
pool. Blocks of requests alternate between the two, so that a noisy neighbour hits both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import yaml
from gateway import KEYS, Child, Gateway, envoy_binary, free_ports, wait_for
from load import Load, request_bytes, static_upstream
from rows import Row, cpu_ns, percentile

BLOCKS = 6
CLOSED_PER_BLOCK = 250
RATE_PER_S, OPEN_SECONDS = 200.0, 4.0
PROMPT_BYTES = 1_000


def run() -> Iterator[Row]:
    """Yield latencies in milliseconds and CPU in microseconds."""
    yield from asyncio.run(_measure())


def _without_service(bootstrap: dict[str, Any], port: int, admin_port: int) -> dict[str, Any]:
    """The same Envoy, deciding nothing: no ext_proc, no access log, straight to the pool."""
    plain: dict[str, Any] = json.loads(json.dumps(bootstrap))
    listener = plain["static_resources"]["listeners"][0]
    listener["address"]["socket_address"]["port_value"] = port
    plain["admin"]["address"]["socket_address"]["port_value"] = admin_port
    for chain in listener["filter_chains"]:
        for network_filter in chain["filters"]:
            manager = network_filter["typed_config"]
            manager.pop("access_log", None)
            manager["http_filters"] = [
                each for each in manager["http_filters"] if "ext_proc" not in each["name"]
            ]
    return plain


async def _measure() -> list[Row]:
    addresses, servers = await static_upstream(4)
    pools = {"chat": {"models": ["m"], "addresses": addresses}}
    gateway = Gateway(pools, gateway={"failure_mode": "open", "debug_headers": False})
    with gateway:
        port, admin_port = free_ports(2)
        bootstrap = yaml.safe_load((gateway.folder / "envoy.yaml").read_text())
        plain_file = gateway.folder / "plain.yaml"
        plain_file.write_text(yaml.safe_dump(_without_service(bootstrap, port, admin_port)))
        plain = Child(
            "plain",
            [
                envoy_binary(),
                "-c",
                str(plain_file),
                "--disable-hot-restart",
                "--concurrency",
                "2",
                "-l",
                "error",
            ],
            gateway.folder,
        )
        plain.start()
        try:
            body = json.dumps(
                {"model": "m", "messages": [{"role": "user", "content": "x" * PROMPT_BYTES}]}
            ).encode()
            return await _alternate(gateway, plain, port, request_bytes(body, KEYS["acme"]))
        finally:
            plain.stop()
            for server in servers:
                server.close()


async def _alternate(gateway: Gateway, plain: Child, plain_port: int, request: bytes) -> list[Row]:
    loads = {"with": Load(gateway.port), "without": Load(plain_port)}
    await asyncio.to_thread(wait_for, "the plain Envoy", lambda: _listens(plain_port))
    for load in loads.values():
        await load.closed(request, 100)  # warm
    closed: dict[str, list[float]] = {"with": [], "without": []}
    opened: dict[str, list[float]] = {"with": [], "without": []}
    service_ns = requests = 0
    for _ in range(BLOCKS):
        for name, load in loads.items():
            before = cpu_ns(gateway.service.pid)
            closed[name] += await load.closed(request, CLOSED_PER_BLOCK)
            if name == "with":
                service_ns += cpu_ns(gateway.service.pid) - before
                requests += CLOSED_PER_BLOCK
    open_ns = open_requests = 0
    for _ in range(2):
        for name, load in loads.items():
            before = cpu_ns(gateway.service.pid)
            took = await load.open(request, RATE_PER_S, OPEN_SECONDS)
            opened[name] += took
            if name == "with":
                open_ns += cpu_ns(gateway.service.pid) - before
                open_requests += len(took)
    failed = sum(load.failed for load in loads.values())
    for load in loads.values():
        load.close()
    rows = []
    for label, figures in (("concurrency 1", closed), (f"{RATE_PER_S:g} requests/s", opened)):
        for share in (0.5, 0.99):
            with_ms, without_ms = (percentile(figures[name], share) for name in ("with", "without"))
            name = f"{label}, p{share * 100:g}"
            rows += [
                Row(f"Envoy alone, {name}", without_ms, "ms"),
                Row(f"Envoy with Steersman, {name}", with_ms, "ms"),
                Row(f"added by Steersman, {name}", with_ms - without_ms, "ms"),
            ]
    rows += [
        Row("service CPU per request, concurrency 1", service_ns / requests / 1e3, "µs"),
        Row(f"service CPU per request, {RATE_PER_S:g} requests/s", open_ns / open_requests / 1e3, "µs"),
        Row("requests failed", float(failed), "", 0.0),
    ]
    return rows


def _listens(port: int) -> bool:
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
