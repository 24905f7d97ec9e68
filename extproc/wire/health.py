"""gRPC's health service, as Envoy, other gateways and supervisors ask it. It tells nothing but who serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import grpc

from extproc._pb import health_pb2

HEALTH = "grpc.health.v1.Health"
#: The picker protocol's health names: the process answers; it knows its endpoints and does not drain.
LIVENESS, READINESS = "liveness", "readiness"
#: How often a watched readiness is looked at.
WATCH_S = 0.25

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.NOT_SERVING
).SerializeToString()
_UNKNOWN = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()


class HealthService:
    """Answers for these names beside its own, and the empty one: the server as a whole."""

    def __init__(self, names: Collection[str], ready: Callable[[], bool]) -> None:
        self._names = frozenset({"", LIVENESS, READINESS, *names})
        self._ready = ready
        #: Set once, when the service begins to end.
        self.draining = asyncio.Event()

    def handler(self) -> Any:
        """For a server's generic handlers."""
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    def _answer(self, request: bytes) -> bytes:
        name = health_pb2.HealthCheckRequest.FromString(request).service
        if name not in self._names:
            return _UNKNOWN
        if name == LIVENESS:
            return _SERVING
        serves = not self.draining.is_set() and (name != READINESS or self._ready())
        return _SERVING if serves else _NOT_SERVING

    async def _check(self, request: bytes, context: Any) -> bytes:
        answer = self._answer(request)
        if answer is _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return answer

    async def _watch(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        told = self._answer(request)
        yield told
        while not self.draining.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S if told is _NOT_SERVING else None):
                    await self.draining.wait()
            if (now := self._answer(request)) is not told:
                told = now
                yield told
