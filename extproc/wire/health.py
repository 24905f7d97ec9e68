"""gRPC's health service, as Envoy, other gateways and supervisors ask it. It tells nothing but who serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial

from google.protobuf.message import DecodeError

from extproc._pb import health_pb2
from extproc.wire.calls import GrpcStatus, Methods, RpcCall, Unary

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
        self._watches: set[HealthWatch] = set()
        #: Set once, when the service begins to end.
        self.draining = False

    @property
    def methods(self) -> Methods:
        """What any transport serves."""
        return {
            f"/{HEALTH}/Check": partial(Unary, answer=self._check),
            f"/{HEALTH}/Watch": partial(HealthWatch, health=self),
        }

    def drain(self) -> None:
        """Say NOT_SERVING from now on; whoever watches hears of it at once."""
        self.draining = True
        for watch in tuple(self._watches):
            watch.look()

    def answer(self, request: bytes) -> bytes:
        """How it is with whom a request names. Raises DecodeError."""
        name = health_pb2.HealthCheckRequest.FromString(request).service
        if name not in self._names:
            return _UNKNOWN
        if name == LIVENESS:
            return _SERVING
        serves = not self.draining and (name != READINESS or self._ready())
        return _SERVING if serves else _NOT_SERVING

    def _check(self, request: bytes, call: RpcCall) -> bytes | None:
        try:
            answer = self.answer(request)
        except DecodeError:
            call.fail(GrpcStatus.INVALID_ARGUMENT, "not a HealthCheckRequest")
            return None
        if answer is _UNKNOWN:
            call.fail(GrpcStatus.NOT_FOUND, "unknown service")
            return None
        return answer

    def watched(self, watch: HealthWatch, *, on: bool) -> None:
        """Somebody watches, or has ceased to."""
        (self._watches.add if on else self._watches.discard)(watch)


class HealthWatch:
    """One call of `Watch`: tells what is so, and each change, until the service begins to end."""

    def __init__(self, call: RpcCall, health: HealthService) -> None:
        self._call, self._health = call, health
        self._request, self._told = b"", b""
        self._writing = self._ended = False
        self._next: asyncio.TimerHandle | None = None
        self.busy = False

    def message(self, data: bytes) -> None:
        """Whom it watches."""
        self.busy, self._request = True, data
        try:
            self._health.answer(data)
        except DecodeError:
            self._call.fail(GrpcStatus.INVALID_ARGUMENT, "not a HealthCheckRequest")
            return
        self._health.watched(self, on=True)
        self.look()

    def look(self) -> None:
        """Tell what has changed."""
        self._forget()
        if self._writing or self._ended:
            return  # `sent` looks again
        now, ends = self._health.answer(self._request), self._health.draining
        if now is not self._told or ends:
            self._writing, self._ended = True, ends
            self._call.write((now,) if now is not self._told else (), end=ends)
            self._told = now
        elif now is _NOT_SERVING:
            self._next = asyncio.get_running_loop().call_later(WATCH_S, self.look)

    def sent(self) -> None:
        """It may have changed meanwhile."""
        self._writing = False
        self.look()

    def sent_all(self) -> None:
        """Nobody was named."""
        self._call.fail(GrpcStatus.INTERNAL, "a call of one message had none")

    def closed(self) -> None:
        """Nobody watches any more."""
        self._forget()
        self._ended = True
        self._health.watched(self, on=False)

    def _forget(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
