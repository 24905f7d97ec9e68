"""A server of the decision port, and a channel to it: what its tests share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import envoy_messages as envoy
import grpc

from extproc._pb import health_pb2
from extproc.config.picker import PickerConfig as PickerSettings
from extproc.core.contract import (
    DECISION_NAMESPACE,
    EVENT_METHOD,
    EVENT_SERVICE,
)
from extproc.core.fleet import PoolSpec
from extproc.core.outcome import Outcome
from extproc.core.scheduler import Scheduler
from extproc.wire import server as server_module
from extproc.wire.firsttoken import FirstToken
from extproc.wire.picker import Picker
from extproc.wire.processor import Processor
from extproc.wire.server import Server, TransportName
from tests.stand.schedulers import make_processor, make_scheduler
from tests.stand.waits import PATIENCE_S

BODY = json.dumps({"prompt": "hello", "max_tokens": 5}).encode()
HEADERS = envoy.headers("POST", "/v1/completions")
TIMEOUT_S = PATIENCE_S / 2
EXT_PROC_PATH = f"/{server_module.EXT_PROC}/Process"


class Running:
    """A server and a channel to it."""

    def __init__(self, server: Server, processor: Processor, settled: list[Outcome]) -> None:
        self.server, self.processor, self.settled = server, processor, settled
        self.address = ""
        self.channel: Any = None

    def exchange(self) -> Any:
        return self.channel.stream_stream(f"/{server_module.EXT_PROC}/Process")(timeout=TIMEOUT_S)

    async def decide(self) -> Any:
        call = self.exchange()
        await call.write(HEADERS)
        await call.read()
        await call.write(envoy.body(BODY))
        answer = envoy.response(await call.read())
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        return answer

    async def log(self, *messages: bytes) -> None:
        call = self.channel.stream_unary(f"/{server_module.ACCESS_LOG}/StreamAccessLogs")(timeout=TIMEOUT_S)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        assert await call == b""

    async def event(self, *headers: tuple[str, str]) -> bytes:
        call = self.channel.unary_unary(f"/{EVENT_SERVICE}/{EVENT_METHOD}")
        answer: bytes = await call(b"", metadata=headers, timeout=TIMEOUT_S)
        return answer

    def check(self, service: str = "") -> Awaitable[bytes]:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        return self.channel.unary_unary(f"/{server_module.HEALTH}/Check")(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]


def build(
    settle: Callable[[Outcome], None] | None = None,
    first_token: FirstToken | None = None,
    picker: PickerSettings | None = None,
    ready: Callable[[], bool] = lambda: True,
    transport: TransportName = "http2",
    scheduler: Scheduler | None = None,
    tokens: Collection[bytes] = (),
    **more: Any,
) -> tuple[Server, Processor, list[Outcome]]:
    endpoints = (("10.0.0.1:80", "", 64), ("10.0.0.2:80", "", 64))
    pool = PoolSpec(name="p", models=("m",), strategy="least_work", endpoints=endpoints)
    if scheduler is None:
        scheduler = make_scheduler(pool)
    processor = make_processor(scheduler, decisions_concurrent_max=64, body_bytes_max=100_000)
    settled: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        if settle is not None:
            settle(outcome)
        if scheduler.settlement.settle(outcome, now_ns=0):
            settled.append(outcome)

    server = Server(
        processor,
        settle=take,
        message_bytes_max=100_000,
        first_token=first_token,
        picker=Picker(processor, picker, settle=take, first_token=lambda *_: None) if picker else None,
        ready=ready,
        transport=transport,
        tokens=tokens,
        **more,
    )
    return server, processor, settled


@asynccontextmanager
async def running(
    address: str = "127.0.0.1:0",
    settle: Callable[[Outcome], None] | None = None,
    first_token: FirstToken | None = None,
    picker: PickerSettings | None = None,
    ready: Callable[[], bool] = lambda: True,
    transport: TransportName = "http2",
    scheduler: Scheduler | None = None,
    tokens: Collection[bytes] = (),
) -> AsyncIterator[Running]:
    server, processor, settled = build(settle, first_token, picker, ready, transport, scheduler, tokens)
    it = Running(server, processor, settled)
    (it.address,) = await server.start([address])
    try:
        async with grpc.aio.insecure_channel(it.address) as channel:
            it.channel = channel
            yield it
    finally:
        # Also after a failed test: what is left of a server fails whoever runs when it is collected.
        await server.drain(0)


def ended(answer: Any) -> bytes:
    """The record of a decision's end."""
    message, entry = envoy.record()
    metadata = entry.common_properties.metadata.filter_metadata
    metadata[DECISION_NAMESPACE].update({"ticket": envoy.metadata(answer, DECISION_NAMESPACE)["ticket"]})
    entry.response.response_code.value = 200
    data: bytes = message.SerializeToString()
    return data


def status_of(data: bytes) -> str:
    return health_pb2.HealthCheckResponse.ServingStatus.Name(
        health_pb2.HealthCheckResponse.FromString(data).status
    )
