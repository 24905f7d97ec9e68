"""Where Envoy is told of endpoints apart from decisions (service.ads_listen)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from serving import TIMEOUT_S, build

from extproc._pb import health_pb2
from extproc.control.ads_server import METHOD, SERVICE, AdsPublisher
from extproc.wire import server as server_module
from extproc.wire.server import BindError, TransportName


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_an_address_of_the_handlers_own(tmp_path: Path, transport: TransportName) -> None:
    """They are served there alone, beside health; that it is taken is said with its setting."""

    async def code(address: str) -> grpc.StatusCode:
        """What a message that is none is answered with."""
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/{METHOD}")(b"garbage", timeout=TIMEOUT_S)
            found: grpc.StatusCode = await call.code()
            return found

    async def play() -> None:
        ads = f"unix:{tmp_path}/ads.sock"
        server, *_ = build(transport=transport, handlers=[AdsPublisher().handler()], ads_listen=[ads])
        [here] = await server.start(["127.0.0.1:0"])
        assert server.ads_addresses == [ads]
        assert await code(here) is grpc.StatusCode.UNIMPLEMENTED
        assert await code(ads) is grpc.StatusCode.INVALID_ARGUMENT
        async with grpc.aio.insecure_channel(ads) as channel:
            check = channel.unary_unary(f"/{server_module.HEALTH}/Check")
            answer = health_pb2.HealthCheckResponse.FromString(await check(b"", timeout=TIMEOUT_S))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        other, *_ = build(transport=transport, ads_listen=[ads])
        with pytest.raises(BindError, match=f"{ads}: it is taken .* service.ads_listen"):
            await other.start(["127.0.0.1:0"])
        await server.drain(0.0)

    asyncio.run(play())
