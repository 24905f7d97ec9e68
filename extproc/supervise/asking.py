"""Asks the running parts how they are: Envoy's admin port and the service's health and status RPCs.

Owns the clients' side of both; nothing here changes state but what is asked for: drains, cleared faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import grpc
import msgspec

from extproc._pb import health_pb2

ADMIN_S_MAX = 1.0
ADMIN_ANSWER_BYTES_MAX = 64 * 1024
HEALTH_S_MAX = 1.0
STATUS_S_MAX = 10.0
ORDER_S_MAX = 30.0
STATUS_BYTES_MAX = 64 * 1024 * 1024
#: How often a drain looks whether requests are left.
DRAIN_LOOK_S = 0.1
#: Envoy closes its listeners this long after a drain began; clients see `connection: close` meanwhile.
DRAIN_TIME_S = 1

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_ACTIVE = re.compile(rb"^http\.gateway\.downstream_(?:cx|rq)_active: (\d+)", re.MULTILINE)


def reachable(address: str) -> str:
    """Where to connect to for something that listens there: every interface is reached at loopback."""
    for every, loopback in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if address.startswith(every):
            return loopback + address.removeprefix(every)
    return address


class EnvoyAdmin:
    """Envoy's admin interface at `ip:port`."""

    def __init__(self, address: str) -> None:
        host, _, port = reachable(address).rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)

    async def ready(self) -> bool:
        """Whether Envoy serves."""
        status, _ = await self._ask("GET", "/ready")
        return status == 200

    async def drain(self) -> None:
        """Let running requests end and take no new connections; returns when none is left.

        Not bounded: the caller's patience is. Ends with OSError when Envoy is gone.
        """
        if await self._active("cx") == 0:
            return
        await self._ask("POST", "/healthcheck/fail")  # /ready says no from here on
        await self._ask("POST", "/drain_listeners?graceful")
        await asyncio.sleep(DRAIN_TIME_S)
        while await self._active("rq"):  # noqa: ASYNC110 (another process's count: no event tells it)
            await asyncio.sleep(DRAIN_LOOK_S)

    async def _active(self, what: str) -> int:
        """Client connections (`cx`) or requests (`rq`) under way."""
        _, answer = await self._ask("GET", f"/stats?filter=^http.gateway.downstream_{what}_active")
        found = _ACTIVE.search(answer)
        return int(found.group(1)) if found else 0

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        async with asyncio.timeout(ADMIN_S_MAX):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                request = f"{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close"
                writer.write(request.encode() + b"\r\n\r\n")
                answer = b""
                while len(answer) < ADMIN_ANSWER_BYTES_MAX and (part := await reader.read(16 * 1024)):
                    answer += part
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        found = _STATUS_LINE.match(answer)
        return (int(found.group(1)) if found else 0), answer


class ServiceSilentError(Exception):
    """The service did not answer; the message says where it was looked for."""


class ServiceLink:
    """A running service's health and status at `ip:port` or `unix:/path`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(
            reachable(address),
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", STATUS_BYTES_MAX),
                # A service that comes back shall be found at once.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )
        self._check = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        self._get = self._channel.unary_unary("/steersman.status.v1.Status/Get")
        self._drain = self._channel.unary_unary("/steersman.status.v1.Status/Drain")
        self._clear = self._channel.unary_unary("/steersman.status.v1.Status/ClearFaults")

    async def serving(self) -> bool:
        """Whether it takes decisions (a draining one does not say so)."""
        answer = await self._check(b"", timeout=HEALTH_S_MAX)
        status = health_pb2.HealthCheckResponse.FromString(answer).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    async def status(self) -> dict[str, Any]:
        """The service's own figures. Raises ServiceSilentError."""
        return await self._ask(self._get, b"")

    async def drain(self, address: str, *, draining: bool) -> bool:
        """Order an endpoint's drain or its end; false for an address that is not in the fleet.

        Raises ServiceSilentError.
        """
        body = msgspec.json.encode({"address": address, "draining": draining})
        return bool((await self._ask(self._drain, body))["found"])

    async def clear_faults(self, address: str) -> list[str] | None:
        """Say that an endpoint's GPU was seen to; the faults that ended, None for an unknown address.

        Raises ServiceSilentError.
        """
        answer = await self._ask(self._clear, msgspec.json.encode({"address": address}))
        return list(answer["cleared"]) if answer["found"] else None

    async def _ask(self, call: Any, body: bytes) -> dict[str, Any]:
        try:
            answer = await call(body, timeout=STATUS_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ServiceSilentError(f"what listens at {self.address} is no Steersman") from None
            raise ServiceSilentError(f"no Steersman answers at {self.address}") from None
        try:
            found = msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ServiceSilentError(f"what listens at {self.address} is no Steersman") from None
        return found

    async def order(self, method: str, body: object) -> dict[str, Any]:
        """An operator's command. Raises ServiceSilentError, and ValueError with what it says against it."""
        call = self._channel.unary_unary(f"/steersman.status.v1.Status/{method}")
        try:
            answer = await call(msgspec.json.encode(body), timeout=ORDER_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise ValueError((error.details() or "").removeprefix(f"{method}: ")) from None
            raise ServiceSilentError(f"no Steersman that knows {method} answers at {self.address}") from None
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()
