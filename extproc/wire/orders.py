"""The operators' socket: figures of the service, and orders to it, for who may open the file.

Owns the gRPC service of both, apart from the port that Envoy reaches: there nobody gives orders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from extproc.wire.aio import generic_handlers
from extproc.wire.bind import bind
from extproc.wire.health import HealthService

STATUS = "steersman.status.v1.Status"
#: A body to explain may be as large as requests may be.
ORDER_BYTES_MAX = 16 * 1024 * 1024

#: An operator's order: bytes in, bytes out; what takes longer is awaited.
Command = Callable[[bytes], bytes | Awaitable[bytes]]


class OrdersServer:
    """Status and orders on one unix socket, mode 0600."""

    def __init__(
        self, *, status: Callable[[], bytes], commands: Mapping[str, Command], health: HealthService
    ) -> None:
        self._path: Path | None = None

        async def get(_: bytes, __: Any) -> bytes:
            return status()

        methods = {name: _command(name, call) for name, call in commands.items()}
        methods["Get"] = grpc.unary_unary_rpc_method_handler(get)
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", ORDER_BYTES_MAX)])
        self._server.add_generic_rpc_handlers(
            (*generic_handlers(health.methods), grpc.method_handlers_generic_handler(STATUS, methods))
        )

    async def start(self, path: Path) -> None:
        """Listen. Raises wire.bind.BindError."""
        bind(self._server, f"unix:{path}", private=True, setting="service.run_dir")
        self._path = path
        await self._server.start()

    async def stop(self) -> None:
        """End, and leave no socket behind."""
        await self._server.stop(grace=0.2)
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _command(name: str, call: Command) -> Any:
    """An operator's order as a unary method; what it cannot read is the caller's mistake."""

    async def serve(request: bytes, context: Any) -> bytes:
        try:
            answer = call(request)
            return answer if isinstance(answer, bytes) else await answer
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {error}")
            raise AssertionError("abort raises") from error

    return grpc.unary_unary_rpc_method_handler(serve)
