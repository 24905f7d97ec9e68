"""What the first-token event costs: the service's and Envoy's CPU, and the first token's time, in one run.

The second Envoy has the same configuration less the event's call, and asks the same service. Blocks of
streams alternate between the two, so that a noisy neighbour hits both.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import yaml
from gateway import KEYS, Child, Gateway, envoy_binary, free_ports, listens, wait_for
from load import request_bytes
from rows import Row, cpu_ns, percentile

from extproc.config.places import key_file, orders_at
from extproc.core import contract
from extproc.wire.seal import EVENT, Seal

BLOCKS = 10
STREAMS_PER_BLOCK = 150
#: Between a stream's first chunk and its end: the event's call is over by then.
REST_S = 0.005
EVENTS = 8_000
EVENTS_AT_ONCE = 64

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
END = b"0\r\n\r\n"


def run() -> Iterator[Row]:
    """Yield milliseconds of the first token's time and microseconds of CPU."""
    yield from asyncio.run(_measure())


class _Engine(asyncio.Protocol):
    """Streams the same answer to everybody: the first chunk at once, the rest a moment later."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self.buffer) >= end + 4 + length:
            self.buffer.clear()
            self.transport.write(HEAD + _chunk(FIRST))
            asyncio.get_running_loop().call_later(REST_S, self._rest)

    def _rest(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_chunk(LAST) + END)


class _Client(asyncio.Protocol):
    """One keep-alive connection, one stream at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, bytearray()
        self.first_s: float | None = None
        self.ended: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.first_s is None and b"data:" in self.buffer:
            self.first_s = time.perf_counter()
        if self.buffer.endswith(END) and self.ended is not None and not self.ended.done():
            self.ended.set_result(None)

    async def ttft_ms(self, request: bytes) -> float:
        """One stream: the time to its first event."""
        self.buffer.clear()
        self.first_s, self.ended = None, asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.transport.write(request)
        await asyncio.wait_for(self.ended, 10.0)
        assert self.first_s is not None
        return (self.first_s - began) * 1e3


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _without_event(bootstrap: dict[str, Any], port: int, admin_port: int) -> dict[str, Any]:
    """The same Envoy, whose script tells nobody."""
    text = json.dumps(bootstrap)
    call = json.dumps("        tell(handle, refused)\n")[1:-1]
    assert text.count(call) == 1, "the script has changed: say here what the event's call is"
    other: dict[str, Any] = json.loads(text.replace(call, ""))
    other["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"] = port
    other["admin"]["address"]["socket_address"]["port_value"] = admin_port
    return other


async def _measure() -> list[Row]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Engine, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    pools = {"chat": {"models": ["m"], "addresses": [address]}}
    gateway = Gateway(pools, gateway={"debug_headers": False})
    with gateway:
        port, admin_port = free_ports(2)
        bootstrap = yaml.safe_load((gateway.folder / "envoy.yaml").read_text())
        file = gateway.folder / "silent.yaml"
        file.write_text(yaml.safe_dump(_without_event(bootstrap, port, admin_port)))
        options = ["--disable-hot-restart", "--concurrency", "2", "-l", "error"]
        silent = Child("silent", [envoy_binary(), "-c", str(file), *options], gateway.folder)
        silent.start()
        try:
            await asyncio.to_thread(wait_for, "the silent Envoy", lambda: listens(port))
            rows = await _alternate(gateway, {"with": gateway.envoy, "without": silent}, port)
            return [*rows, *await _saturate(gateway)]
        finally:
            silent.stop()
            server.close()


async def _alternate(gateway: Gateway, envoys: dict[str, Child], silent_port: int) -> list[Row]:
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 1_000}]})
    request = request_bytes(body.encode(), KEYS["acme"])
    clients: dict[str, _Client] = {}
    for name, port in (("with", gateway.port), ("without", silent_port)):
        _, clients[name] = await asyncio.get_running_loop().create_connection(_Client, "127.0.0.1", port)
        for _ in range(100):  # warm
            await clients[name].ttft_ms(request)
    before_events = _events(gateway)
    ttft_ms: dict[str, list[float]] = {"with": [], "without": []}
    service_ns, envoy_ns = dict.fromkeys(envoys, 0), dict.fromkeys(envoys, 0)
    for block in range(BLOCKS):
        order = list(envoys) if block % 2 else list(reversed(list(envoys)))
        for name in order:
            before = cpu_ns(gateway.service.pid), cpu_ns(envoys[name].pid)
            ttft_ms[name] += [await clients[name].ttft_ms(request) for _ in range(STREAMS_PER_BLOCK)]
            service_ns[name] += cpu_ns(gateway.service.pid) - before[0]
            envoy_ns[name] += cpu_ns(envoys[name].pid) - before[1]
    for client in clients.values():
        client.transport.close()
    streams = BLOCKS * STREAMS_PER_BLOCK
    lost = streams - (_events(gateway) - before_events)
    with_ms, without_ms = (percentile(ttft_ms[name], 0.5) for name in ("with", "without"))
    return [
        Row("time to first token without the event, p50", without_ms, "ms"),
        Row("time to first token with the event, p50", with_ms, "ms"),
        Row("added by the event, p50", with_ms - without_ms, "ms"),
        *(
            Row(f"{whose} CPU of an event, one stream at a time", _each(spent, streams), "µs")
            for whose, spent in (("service", service_ns), ("Envoy", envoy_ns))
        ),
        Row("events lost", float(lost), "", 0.0),
    ]


def _each(spent_ns: dict[str, int], streams: int) -> float:
    return (spent_ns["with"] - spent_ns["without"]) / streams / 1e3


def _events(gateway: Gateway) -> int:
    count: int = gateway.status()["counts"].get("events.first_token", 0)
    return count


def _seal(gateway: Gateway) -> Seal:
    """The service's own, by the key that it keeps: an event that it does not know costs it less."""
    socket = orders_at(gateway.service_address)
    assert socket is not None
    return Seal([bytes.fromhex(key_file(socket.parent, gateway.service_address).read_text())])


async def _saturate(gateway: Gateway) -> list[Row]:
    """Events straight to the service, as many as it takes."""
    async with grpc.aio.insecure_channel(gateway.service_address) as channel:
        call = channel.unary_unary(f"/{contract.EVENT_SERVICE}/{contract.EVENT_METHOD}")

        seal = _seal(gateway)

        async def some(count: int) -> None:
            for i in range(count):
                await call(b"", metadata=((contract.RESERVATION_HEADER, seal.sealed(f"bench-{i}", EVENT)),))

        await some(200)  # warm
        before, began = cpu_ns(gateway.service.pid), time.perf_counter()
        await asyncio.gather(*(some(EVENTS // EVENTS_AT_ONCE) for _ in range(EVENTS_AT_ONCE)))
        took_s = time.perf_counter() - began
        each_us = (cpu_ns(gateway.service.pid) - before) / EVENTS / 1e3
    return [
        Row(f"service CPU of an event, {EVENTS / took_s:.0f} a second", each_us, "µs"),
        Row("events that one core takes", 1e6 / each_us, "/s"),
    ]
