"""asking.py: what is no Steersman, what is gone, and where something that listens everywhere is reached."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from extproc.supervise.asking import EnvoyAdmin, ServiceLink, ServiceSilentError, reachable
from extproc.supervise.ports import free_ports


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("[::]:1", "[::1]:1"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("unix:/x", "unix:/x"),
    ],
)
def test_every_interface_is_reached_at_loopback(address: str, where: str) -> None:
    """An address to listen on is not always one to connect to."""
    assert reachable(address) == where


def test_nobody_there_is_said_with_the_address() -> None:
    """Neither a hang nor a gRPC error."""

    async def main() -> None:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        link = ServiceLink(address)
        with pytest.raises(ServiceSilentError, match=f"no Steersman answers at {address}"):
            await link.status()
        await link.close()
        with pytest.raises(OSError):  # noqa: PT011 (refused or reset, as the system has it)
            await EnvoyAdmin(address).ready()

    asyncio.run(main())


def test_another_grpc_server_is_told_from_a_steersman(tmp_path: Path) -> None:
    """A wrong socket is a likelier mistake than a broken service."""

    async def main() -> None:
        server = grpc.aio.server()
        server.add_insecure_port(f"unix:{tmp_path}/other.orders.sock")
        await server.start()
        link = ServiceLink(f"unix:{tmp_path}/other.orders.sock")
        with pytest.raises(ServiceSilentError, match="is no Steersman"):
            await link.status()
        await link.close()
        await server.stop(0)

    asyncio.run(main())


def test_a_service_that_is_slow_to_greet_is_waited_for(tmp_path: Path) -> None:
    """A connection may take as long as the answer: on a busy machine nobody is told that none is there."""
    # Three times what gRPC gave the connection while the least backoff was set.
    greets_after_s = 0.3

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def main() -> None:
        server = grpc.aio.server()
        behind = f"{tmp_path}/behind.sock"
        server.add_insecure_port(f"unix:{behind}")
        get = grpc.unary_unary_rpc_method_handler(lambda _body, _context: b'{"uptime_s": 1}')
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("steersman.status.v1.Status", {"Get": get}),)
        )
        await server.start()
        async with asyncio.TaskGroup() as pumps:

            async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await asyncio.sleep(greets_after_s)
                there, back = await asyncio.open_unix_connection(behind)
                pumps.create_task(pump(reader, back))
                pumps.create_task(pump(there, writer))

            slow = await asyncio.start_unix_server(greet, f"{tmp_path}/slow.orders.sock")
            link = ServiceLink(f"unix:{tmp_path}/slow.orders.sock")
            assert await link.status() == {"uptime_s": 1}
            await link.close()
            slow.close()
        await server.stop(0)

    asyncio.run(main())
