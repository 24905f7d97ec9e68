"""Connections to our gRPC ports that never come to a call: bounded in number and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from extproc.config.scaling import ScalerConfig
from extproc.grpc_peers import PeerBounds
from extproc.scaling.external import ExternalScaler
from extproc.telemetry.server import TelemetryServer
from extproc.wire.aio import AioTransport
from tests.stand.keda import FakePools
from tests.stand.waits import PATIENCE_S

BOUNDS = PeerBounds(connections_max=20, handshake_ms=500, idle_ms=500, ping_ms=1_000, answer_ms=500)
OPENED = 60
PREFACE, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
#: A frame of headers that says it has 64 bytes and another after it, and brings 20.
HALF_HEADERS = b"\0\0\x40\1\0\0\0\0\1" + b"\x82" * 20
SENT = {
    "nothing": b"",
    "half a preface": PREFACE[:10],
    "settings": PREFACE + SETTINGS,
    "half headers": PREFACE + SETTINGS + HALF_HEADERS,
}
Stop = Callable[[], Awaitable[None]]


async def keda(_: Any) -> tuple[str, Stop]:
    settings = ScalerConfig.model_construct(listen="127.0.0.1:0", push_interval_s=30.0)
    server = ExternalScaler(settings, FakePools(), clock=time.monotonic_ns, peers=BOUNDS)
    return await server.start(), server.stop


async def telemetry(_: Any) -> tuple[str, Stop]:
    nobody: Any = None
    server = TelemetryServer(nobody, tokens={}, peers=BOUNDS)
    [address] = await server.start(["127.0.0.1:0"])
    return address, server.stop


async def decisions(_: Any) -> tuple[str, Stop]:
    server = AioTransport({}, message_bytes_max=1024, tokens=None, tls=None, peers=BOUNDS)
    [address] = await server.start(["127.0.0.1:0"])
    return address, lambda: server.stop(0.1)


async def ended(reader: asyncio.StreamReader) -> None:
    """Read until the other end closes."""
    try:
        while await reader.read(65_536):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("serve", [keda, telemetry, decisions])
def test_who_never_calls_is_let_go(serve: Callable[[Any], Awaitable[tuple[str, Stop]]], sent: str) -> None:
    """Most of 60 are closed at once, the rest when their time is over; then others are served."""

    async def scenario() -> None:
        address, stop = await serve(None)
        host, _, port = address.rpartition(":")
        writers, waits = [], []
        try:
            for _ in range(OPENED):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(SENT[sent])
                writers.append(writer)
                waits.append(asyncio.create_task(ended(reader)))
            await asyncio.wait_for(asyncio.gather(*waits), PATIENCE_S)
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)
        finally:
            for writer in writers:
                writer.close()
            await stop()

    asyncio.run(scenario())


def test_further_connections_are_closed_unread() -> None:
    """While those that are open have time left, only so many are there."""
    patient = PeerBounds(connections_max=20)

    async def scenario() -> None:
        server = AioTransport({}, message_bytes_max=1024, tokens=None, tls=None, peers=patient)
        [address] = await server.start(["127.0.0.1:0"])
        host, _, port = address.rpartition(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(OPENED)]
        waits = [asyncio.create_task(ended(reader)) for reader, _ in opened]
        try:
            left = OPENED - patient.connections_max
            async with asyncio.timeout(PATIENCE_S):
                while (many := sum(each.done() for each in waits)) < left:
                    rest = [each for each in waits if not each.done()]
                    await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
            assert many == left
            assert sum(each.done() for each in waits) == OPENED - patient.connections_max
        finally:
            for each in waits:
                each.cancel()
            for _, writer in opened:
                writer.close()
            await server.stop(0.1)

    asyncio.run(scenario())
