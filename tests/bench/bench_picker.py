"""The picker protocol against our own BUFFERED mode: latency and the service's CPU, in one run.

Three Envoys over the same upstreams, each with a service of its own: ours (BUFFERED, access log), a gateway
that sends bodies both ways (`settle: stream`), and one that sends requests alone (`settle: access_log`).
Blocks of requests alternate between them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from gateway import KEYS, Gateway
from load import Load, request_bytes, static_upstream
from picker_gateway import PickerGateway, asks, connections
from rows import Row, cpu_ns, percentile

BLOCKS = 5
PER_BLOCK = 200
PROMPT_BYTES = 1_000
EVENTS, EVENT_S, STREAMS = 50, 0.004, 20
GRPC_LOG = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"


def run() -> Iterator[Row]:
    """Yield latencies in milliseconds and CPU in microseconds."""
    yield from asyncio.run(_measure())


def _requests_alone(_: PickerGateway, config: dict[str, Any]) -> None:
    connections(config)["access_log"] = [
        {
            "name": "envoy.access_loggers.http_grpc",
            "typed_config": {
                "@type": f"type.googleapis.com/{GRPC_LOG}",
                "common_config": {
                    "log_name": "steersman",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "steersman"}},
                    "transport_api_version": "V3",
                    "buffer_size_bytes": 1,
                },
            },
        }
    ]
    mode = asks(config)["processing_mode"]
    mode |= {"response_header_mode": "SKIP", "response_body_mode": "NONE", "response_trailer_mode": "SKIP"}


class _Events(asyncio.Protocol):
    """Answers every request with a stream of events, each in a packet of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.rstrip().endswith(b"}"):
            return
        event = b'data: {"choices":[{"delta":{"content":"tok"}}]}\n\n'
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
            % (len(event) * EVENTS)
        )
        loop = asyncio.get_running_loop()
        for i in range(EVENTS):
            loop.call_later(EVENT_S * (i + 1), self.transport.write, event)


async def _measure() -> list[Row]:
    addresses, servers = await static_upstream(2)
    events = await asyncio.get_running_loop().create_server(_Events, "127.0.0.1", 0)
    addresses_of_events = [f"127.0.0.1:{events.sockets[0].getsockname()[1]}"]
    pools = {
        "chat": {"models": ["m"], "addresses": addresses},
        "events": {"models": ["events"], "addresses": addresses_of_events},
    }
    with ExitStack() as stack:
        gateways = {
            "BUFFERED, our own": Gateway(pools),
            "picker, stream": PickerGateway(pools),
            "picker, access log": PickerGateway(
                pools, picker={"settle": "access_log"}, change=_requests_alone
            ),
        }
        for gateway in gateways.values():
            await asyncio.to_thread(stack.enter_context, gateway)
        rows = await _whole(gateways) + await _streamed(gateways)
    for server in (*servers, events):
        server.close()
    return rows


def _body(model: str) -> bytes:
    message = {"role": "user", "content": "x" * PROMPT_BYTES}
    return json.dumps({"model": model, "messages": [message], "stream": model == "events"}).encode()


async def _whole(gateways: dict[str, Gateway]) -> list[Row]:
    request = request_bytes(_body("m"), KEYS["acme"])
    loads = {name: Load(gateway.port) for name, gateway in gateways.items()}
    took: dict[str, list[float]] = {name: [] for name in gateways}
    spent = dict.fromkeys(gateways, 0)
    for load in loads.values():
        await load.closed(request, 100)  # warm
    for _ in range(BLOCKS):
        for name, load in loads.items():
            before = cpu_ns(gateways[name].service.pid)
            took[name] += await load.closed(request, PER_BLOCK)
            await asyncio.sleep(0.1)  # the records, too
            spent[name] += cpu_ns(gateways[name].service.pid) - before
    rows = []
    for name, load in loads.items():
        load.close()
        rows += [
            Row(f"{name}: p50 at concurrency 1", percentile(took[name], 0.5), "ms"),
            Row(f"{name}: p99 at concurrency 1", percentile(took[name], 0.99), "ms"),
            Row(f"{name}: service CPU per request", spent[name] / (BLOCKS * PER_BLOCK) / 1e3, "µs"),
            Row(f"{name}: requests failed", float(load.failed), "", 0.0),
        ]
    return rows


async def _streamed(gateways: dict[str, Gateway]) -> list[Row]:
    request = request_bytes(_body("events"), KEYS["acme"])
    rows = []
    for name, gateway in gateways.items():
        load = Load(gateway.port)
        await load.closed(request, 2)
        before = cpu_ns(gateway.service.pid)
        await load.closed(request, STREAMS)
        spent = cpu_ns(gateway.service.pid) - before
        load.close()
        rows.append(Row(f"{name}: service CPU per request of {EVENTS} events", spent / STREAMS / 1e3, "µs"))
    return rows
