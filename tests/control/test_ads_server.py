"""ADS over real gRPC: many streams, slow ones, ended ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from extproc._pb import discovery_pb2 as pb
from extproc.control.ads_server import METHOD, SERVICE, AdsPublisher
from extproc.control.snapshot import CLUSTER_TYPE, ENDPOINT_TYPE, FleetSnapshot, Resource, Resources


def snapshot(*addresses: str, padding: int = 0) -> FleetSnapshot:
    members = frozenset(("chat", address) for address in addresses)
    data = ",".join(addresses).encode() + b"x" * padding
    return FleetSnapshot(
        Resources.of([Resource("pool.chat", b"cluster")]),
        Resources.of([Resource("pool.chat", data, members)]),
    )


class Envoy:
    """A client that answers when it is told to."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )
        self.stream: Any = self.channel.stream_stream(f"/{SERVICE}/{METHOD}")()

    async def ask(self, type_url: str, *names: str, nonce: str = "", error: str = "") -> None:
        message = pb.DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
        if error:
            message.error_detail.message = error
        await self.stream.write(message.SerializeToString())

    async def read(self) -> Any:
        data = await asyncio.wait_for(self.stream.read(), 5)
        assert data is not grpc.aio.EOF
        return pb.DiscoveryResponse.FromString(data)

    async def accept(self) -> Any:
        response = await self.read()
        await self.ask(response.type_url, "pool.chat", nonce=response.nonce)
        return response

    async def connect(self) -> None:
        """As far as having accepted the endpoints."""
        await self.ask(ENDPOINT_TYPE, "pool.chat")
        await self.accept()

    async def close(self) -> None:
        self.stream.cancel()
        await self.channel.close()


@contextlib.asynccontextmanager
async def serving(publisher: AdsPublisher) -> AsyncIterator[Callable[[], Envoy]]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((publisher.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    envoys: list[Envoy] = []

    def envoy() -> Envoy:
        envoys.append(Envoy(f"127.0.0.1:{port}"))
        return envoys[-1]

    try:
        yield envoy
    finally:
        for each in envoys:
            await each.close()
        await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.002)


def test_what_every_envoy_accepted_is_known() -> None:
    """The intersection; one that has accepted nothing yet does not count, one that left no more."""

    async def run() -> None:
        publisher = AdsPublisher()
        assert publisher.acked_addresses() is None
        assert publisher.versions == {}
        publisher.publish(snapshot("a"))
        async with serving(publisher) as envoy:
            one = envoy()
            await one.connect()
            await until(lambda: publisher.acked_addresses() == {("chat", "a")})
            two = envoy()
            await two.ask(CLUSTER_TYPE)
            await two.accept()
            await until(lambda: publisher.counts["streams"] == 2)
            assert publisher.acked_addresses() == {("chat", "a")}
            await two.connect()
            newest = snapshot("a", "b")
            publisher.publish(newest)
            await one.accept()
            versions = [link.stream for link in publisher._links]
            await until(lambda: newest.endpoints.version in {each.held_version for each in versions})
            assert publisher.acked_addresses() == {("chat", "a")}, "two has not accepted b yet"
            await two.accept()
            await until(lambda: publisher.acked_addresses() == {("chat", "a"), ("chat", "b")})
            publisher.publish(snapshot("b"))
            await one.accept()
            await until(lambda: publisher.acked_addresses() == {("chat", "b")})
            await one.close()
            await until(lambda: publisher.acked_addresses() == {("chat", "a"), ("chat", "b")})
            await two.close()
            await until(lambda: publisher.acked_addresses() is None)
            assert publisher.versions["eds"] == snapshot("b").endpoints.version
            counts = publisher.counts
            assert (counts["streams"], counts["connections"], counts["nacks"]) == (0, 2, 0)

    asyncio.run(run())


def test_an_envoy_that_reads_nothing_costs_one_response() -> None:
    """However much is published; then it gets the newest. Others are not kept waiting."""

    async def run() -> None:
        publisher = AdsPublisher()
        publisher.publish(snapshot("0"))
        async with serving(publisher) as envoy:
            slow, quick = envoy(), envoy()
            await slow.connect()
            await quick.connect()
            # Far above what HTTP/2's windows take, so that the server's write waits.
            for i in range(1, 40):
                publisher.publish(snapshot(str(i), padding=3_000_000))
                await quick.accept()
            assert all(len(link.unwritten) <= 1 for link in publisher._links)
            await until(lambda: publisher.counts["acks"] == 41)
            assert (await slow.accept()).resources[0].value.startswith(b"1x")
            assert (await slow.accept()).resources[0].value.startswith(b"39x")
            await until(lambda: publisher.acked_addresses() == {("chat", "39")})

    asyncio.run(run())


def test_rubbish_ends_its_stream_alone() -> None:
    """INVALID_ARGUMENT for one, service for the other."""

    async def run() -> None:
        publisher = AdsPublisher()
        publisher.publish(snapshot("a"))
        async with serving(publisher) as envoy:
            good, bad = envoy(), envoy()
            await good.connect()
            await bad.stream.write(b"\xff\xff")
            assert await bad.stream.code() == grpc.StatusCode.INVALID_ARGUMENT
            await until(lambda: publisher.counts["streams"] == 1)
            publisher.publish(snapshot("b"))
            await good.accept()
            assert publisher.counts["protocol_errors"] == 1

    asyncio.run(run())


def test_a_refusal_is_counted() -> None:
    """And what was accepted before stays known."""

    async def run() -> None:
        publisher = AdsPublisher()
        publisher.publish(snapshot("a"))
        async with serving(publisher) as envoy:
            one = envoy()
            await one.connect()
            publisher.publish(snapshot("b"))
            response = await one.read()
            await one.ask(ENDPOINT_TYPE, "pool.chat", nonce=response.nonce, error="no")
            await until(lambda: publisher.counts["nacks"] == 1)
            assert publisher.acked_addresses() == {("chat", "a")}

    asyncio.run(run())


def test_streams_have_a_bound() -> None:
    """One more is told to try another service."""

    async def run() -> None:
        publisher = AdsPublisher(streams_max=1)
        publisher.publish(snapshot("a"))
        async with serving(publisher) as envoy:
            await envoy().connect()
            assert await envoy().stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert publisher.counts["refused_streams"] == 1

    asyncio.run(run())


@pytest.mark.parametrize("reading", [True, False])
def test_a_closing_publisher_ends_its_streams(reading: bool) -> None:
    """In order, so that Envoys go elsewhere; also one whose Envoy takes nothing."""

    async def run() -> None:
        publisher = AdsPublisher()
        publisher.publish(snapshot("a"))
        async with serving(publisher) as envoy:
            one = envoy()
            await one.connect()
            await until(lambda: publisher.counts["acks"] == 1)
            if not reading:
                publisher.publish(snapshot("b", padding=60_000_000))
                await asyncio.sleep(0.05)
            publisher.close()
            await until(lambda: publisher.counts["streams"] == 0)
            if reading:
                assert await one.stream.code() == grpc.StatusCode.OK
            assert await envoy().stream.code() == grpc.StatusCode.UNAVAILABLE

    asyncio.run(run())
