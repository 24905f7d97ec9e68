"""Asks the running parts how they are: Envoy's admin port and the service's health and status RPCs.

Owns the clients' side of both; nothing here changes state but what is asked for: drains, cleared faults.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from extproc import http1
from extproc.addresses import split
from extproc.config.places import orders_at
from extproc.supervise.grpc_call import NoMessageError, call

ADMIN_S_MAX = 1.0
ADMIN_ANSWER_BYTES_MAX = 64 * 1024
HEALTH_S_MAX = 1.0
STATUS_S_MAX = 10.0
ORDER_S_MAX = 30.0
STATUS_BYTES_MAX = 64 * 1024 * 1024
STATUS = "/steersman.status.v1.Status"
HEALTH = "/grpc.health.v1.Health/Check"
#: grpc.health.v1.HealthCheckResponse with the status SERVING.
SERVING = b"\x08\x01"
HEALTH_BYTES_MAX = 1024
#: How often a drain looks whether requests are left.
DRAIN_LOOK_S = 0.1
#: Envoy closes its listeners this long after a drain began; clients see `connection: close` meanwhile.
DRAIN_TIME_S = 1

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", STATUS_BYTES_MAX),
    # A service that comes back shall be found at once. What gRPC calls the least backoff is not set: it is
    # also how long a connection may take to be made, and a service on a busy machine takes longer than that.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
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
        self._host, self._port = split(reachable(address))

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
            return await http1.ask(
                *(method, self._host, self._port, path),
                headers={"host": "admin", "content-length": "0"},
                answer_bytes_max=ADMIN_ANSWER_BYTES_MAX,
            )


class ServiceSilentError(Exception):
    """The service did not answer; the message says where it was looked for."""

    #: What a command says behind it.
    advice = "is it running? Give its service.listen with --address"


class ServiceRefusedError(ServiceSilentError):
    """The service answered, and does not do it for this caller."""

    advice = "a token with enough scope is made by: steersman tenant key new"


class ServiceLink:
    """A running service on this machine, by the `service.listen` that it has or by its operators' socket.

    Its figures and orders are at that socket (config/places.py); its health at either. What a supervisor asks
    again and again needs no gRPC library; orders, whose refusals have a text, do.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._target = ""
        self._channel: Any = None

    def _at(self, *, health: bool = False) -> str:
        """The socket as it is now: a service may come later, and elsewhere."""
        found = orders_at(self.address)
        if found is None and not health:
            raise ServiceSilentError(f"no Steersman answers at {self.address}")
        return f"unix:{found}" if found is not None else reachable(self.address)

    async def _reach(self) -> Any:
        import grpc.aio

        target = self._at()
        if target != self._target:
            await self.close()
            self._target, self._channel = target, grpc.aio.insecure_channel(target, options=_OPTIONS)
        return self._channel

    async def serving(self) -> bool:
        """Whether it takes decisions (a draining one does not say so). Raises OSError, TimeoutError."""
        async with asyncio.timeout(HEALTH_S_MAX):
            return await call(self._at(health=True), HEALTH, answer_bytes_max=HEALTH_BYTES_MAX) == SERVING

    async def status(self) -> dict[str, Any]:
        """The service's own figures. Raises ServiceSilentError."""
        target = self._at()
        try:
            async with asyncio.timeout(STATUS_S_MAX):
                answer = await call(target, f"{STATUS}/Get", answer_bytes_max=STATUS_BYTES_MAX)
        except (NoMessageError, ValueError):
            raise ServiceSilentError(f"what listens at {self.address} is no Steersman") from None
        except (OSError, TimeoutError):
            raise ServiceSilentError(f"no Steersman answers at {self.address}") from None
        return self._read(answer)

    async def drain(self, address: str, *, draining: bool) -> bool:
        """Order an endpoint's drain or its end; false for an address that is not in the fleet.

        Raises ServiceSilentError.
        """
        body = msgspec.json.encode({"address": address, "draining": draining})
        return bool((await self._ask("Drain", body))["found"])

    async def clear_faults(self, address: str) -> list[str] | None:
        """Say that an endpoint's GPU was seen to; the faults that ended, None for an unknown address.

        Raises ServiceSilentError.
        """
        answer = await self._ask("ClearFaults", msgspec.json.encode({"address": address}))
        return list(answer["cleared"]) if answer["found"] else None

    async def _ask(self, method: str, body: bytes) -> dict[str, Any]:
        import grpc.aio

        method_ = (await self._reach()).unary_unary(f"{STATUS}/{method}")
        try:
            answer = await method_(body, timeout=STATUS_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ServiceSilentError(f"what listens at {self.address} is no Steersman") from None
            raise ServiceSilentError(f"no Steersman answers at {self.address}") from None
        return self._read(answer)

    def _read(self, answer: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ServiceSilentError(f"what listens at {self.address} is no Steersman") from None

    async def order(self, method: str, body: object) -> dict[str, Any]:
        """An operator's command. Raises ServiceSilentError, and ValueError with what it says against it."""
        import grpc.aio

        method_ = (await self._reach()).unary_unary(f"{STATUS}/{method}")
        try:
            answer = await method_(msgspec.json.encode(body), timeout=ORDER_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise ValueError((error.details() or "").removeprefix(f"{method}: ")) from None
            raise ServiceSilentError(f"no Steersman that knows {method} answers at {self.address}") from None
        return msgspec.json.decode(answer, type=dict[str, Any])

    async def close(self) -> None:
        """Let go of the connection."""
        channel, self._channel, self._target = self._channel, None, ""
        if channel is not None:
            await channel.close()
