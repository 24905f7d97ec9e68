"""The gRPC server: carries messages between Envoy and the processor, and nothing else.

Owns grpc.aio, the addresses, the health service and the drain. Handlers take and give raw bytes, so
another transport can stand here without touching what decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from extproc._pb import health_pb2
from extproc.core.contract import EVENT_METHOD, EVENT_SERVICE
from extproc.core.desk import AskQuota
from extproc.core.outcome import Outcome
from extproc.wire import accesslog
from extproc.wire.codec import Reply
from extproc.wire.exchange import Exchange
from extproc.wire.firsttoken import FirstToken, FirstTokens
from extproc.wire.picker import Picker
from extproc.wire.processor import Processor

log = logging.getLogger(__name__)

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG = "envoy.service.accesslog.v3.AccessLogService"
HEALTH = "grpc.health.v1.Health"
STATUS = "steersman.status.v1.Status"

#: The picker protocol's health names: the process answers; it knows its endpoints and does not drain.
LIVENESS, READINESS = "liveness", "readiness"
#: The health service answers for these names; the empty one is the server as a whole.
HEALTH_NAMES = frozenset({"", EXT_PROC, LIVENESS, READINESS})
#: How often a watched readiness is looked at.
WATCH_S = 0.25
#: A gRPC message may be larger than the body it carries by this much (headers, framing).
MESSAGE_SLACK_BYTES = 1024 * 1024

#: An operator's order: bytes in, bytes out; what takes longer is awaited.
Command = Callable[[bytes], bytes | Awaitable[bytes]]

#: How long a unix socket may take to accept before it counts as somebody's.
PROBE_S = 0.5

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
_NOT_SERVING = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.NOT_SERVING
).SerializeToString()
_UNKNOWN = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()


class BindError(OSError):
    """An address cannot be listened on; the message names it and the mend."""


class Server:
    """ext_proc, access log, first-token events, health and status on one grpc.aio server.

    `handlers` are further generic RPC handlers (ADS); `commands` are operators' orders, served beside the
    status as unary methods of bytes. `picker` serves the endpoint-picker protocol on the same port; `ready`
    says whether whoever is told of endpoints has told all, for the health name of that protocol.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        settle: Callable[[Outcome], None],
        status: Callable[[], bytes],
        message_bytes_max: int,
        handlers: Sequence[Any] = (),
        commands: Mapping[str, Command] | None = None,
        first_token: FirstToken | None = None,
        picker: Picker | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.processor = processor
        self._picker = picker
        self._ready_to_serve = ready
        self._settle = settle
        self._status = status
        self._draining = asyncio.Event()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_bytes_max + MESSAGE_SLACK_BYTES),
                # Two services on one port would share its connections by chance.
                ("grpc.so_reuseport", 0),
                # Envoy keeps one connection for long; its keepalive pings are no attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                # An Envoy that hangs is let go, and with it what decisions wait for it to accept.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
            ]
        )
        events = FirstTokens(processor, first_token)
        self._server.add_generic_rpc_handlers(
            (
                _service(EXT_PROC, Process=grpc.stream_stream_rpc_method_handler(self._process)),
                _service(ACCESS_LOG, StreamAccessLogs=grpc.stream_unary_rpc_method_handler(self._access_log)),
                _service(
                    EVENT_SERVICE, **{EVENT_METHOD: grpc.unary_unary_rpc_method_handler(events.receive)}
                ),
                _service(
                    HEALTH,
                    Check=grpc.unary_unary_rpc_method_handler(self._health_check),
                    Watch=grpc.unary_stream_rpc_method_handler(self._health_watch),
                ),
                _service(
                    STATUS,
                    Get=grpc.unary_unary_rpc_method_handler(self._get_status),
                    **{name: _command(name, call) for name, call in (commands or {}).items()},
                ),
                *handlers,
            )
        )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""
        try:
            bound = [self._bind(address) for address in addresses]
        except BindError:
            await self._server.stop(None)  # lets go of the addresses bound before
            raise
        await self._server.start()
        return bound

    def _bind(self, address: str) -> str:
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            if not path.parent.is_dir():
                raise BindError(f"cannot listen on {address}: {path.parent} is not a folder; make it first")
            # grpc replaces any socket it finds: right for one left by a killed predecessor, but a living
            # one would go on without its clients and know nothing of it.
            if path.is_socket() and _answers(path):
                raise BindError(_taken(address))
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise BindError(_taken(address)) from error
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def drain(self, timeout_s: float, *, quiet_s: float = 0.0) -> None:
        """Say NOT_SERVING, serve what still comes, stop when it was quiet for so long or time is up."""
        self._draining.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        quiet_since = loop.time()
        while loop.time() < deadline:
            if self.processor.open_exchanges:
                quiet_since = loop.time()
            elif loop.time() - quiet_since >= quiet_s:
                break
            await asyncio.sleep(0.02)
        # What remains are Envoy's standing streams (access log, health watch): nothing is cut.
        await self._server.stop(grace=0.2)

    async def _process(self, _: AsyncIterator[bytes], context: Any) -> None:
        data = await context.read()
        if data is grpc.aio.EOF:
            return
        try:
            exchange = self._open(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ProcessingRequest")
        if self.processor.journeys is not None:
            exchange.journey = self.processor.journeys.begin(context.invocation_metadata)
        try:
            async with asyncio.timeout(exchange.deadline_s) as limit:
                await self._converse(exchange, context, data, limit)
        except TimeoutError:
            # Envoy waits for as long as the client does: somebody must say that it is too long.
            await _send(exchange.overdue(), exchange, context)
        finally:
            exchange.close()

    def _open(self, first: bytes) -> Exchange:
        """The machine for a stream that begins with this message."""
        if self._picker is not None and self._picker.speaks(first):
            return self._picker.open()
        return self.processor.open()

    async def _converse(self, exchange: Exchange, context: Any, data: Any, limit: asyncio.Timeout) -> None:
        while data is not grpc.aio.EOF:
            try:
                reply = exchange.receive(data)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a ProcessingRequest")
            if reply.ask is not None:
                reply = await self._asked(exchange, reply.ask)
            if reply.after_s:
                await asyncio.sleep(reply.after_s)
            await _send(reply, exchange, context)
            if reply.wait:
                # A client that leaves meanwhile cancels this call, and `close` gives the wait up.
                reply = await self._ready(exchange)
                await _send(reply, exchange, context)
            if reply.end:
                # Ending the stream here is what lets every token stream outlive this process.
                return
            if reply.reservation_id:
                limit.reschedule(None)
            data = await context.read()
        exchange.sent_all()

    async def _asked(self, exchange: Exchange, asked: AskQuota) -> Reply:
        try:
            answer = await self.processor.desk.quotas.ask(
                asked.account, asked.case.id, asked.amounts, idle_capacity=asked.idle
            )
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            return exchange.unanswered(error)
        return exchange.answered(asked, answer)

    async def _ready(self, exchange: Exchange) -> Reply:
        ready: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        exchange.when_ready(lambda reply: None if ready.done() else ready.set_result(reply))
        return await ready

    async def _access_log(self, messages: AsyncIterator[bytes], _: Any) -> bytes:
        async for data in messages:
            try:
                for outcome in accesslog.read(data):
                    self._settle_one(outcome)
            except Exception as error:  # noqa: BLE001 (a bad message must not end the stream of good ones)
                self.processor.failed(error, "access log")
        return b""

    def _settle_one(self, outcome: Outcome) -> None:
        try:
            self._settle(outcome)
        except Exception as error:  # noqa: BLE001 (nor must a bad record lose the others of its message)
            self.processor.failed(error, "settling")

    def _health(self, request: bytes) -> bytes:
        name = health_pb2.HealthCheckRequest.FromString(request).service
        if name not in HEALTH_NAMES:
            return _UNKNOWN
        if name == LIVENESS:
            return _SERVING
        serves = not self._draining.is_set() and (name != READINESS or self._ready_to_serve())
        return _SERVING if serves else _NOT_SERVING

    async def _health_check(self, request: bytes, context: Any) -> bytes:
        answer = self._health(request)
        if answer is _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return answer

    async def _health_watch(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        told = self._health(request)
        yield told
        while not self._draining.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S if told is _NOT_SERVING else None):
                    await self._draining.wait()
            if (now := self._health(request)) is not told:
                told = now
                yield told

    async def _get_status(self, _: bytes, __: Any) -> bytes:
        return self._status()


async def _send(reply: Reply, exchange: Exchange, context: Any) -> None:
    """Send a reply whole, and tell the exchange when it held the decision."""
    if reply.data:
        await context.write(reply.data)
    for data in reply.more:
        await context.write(data)
    if reply.end or reply.reservation_id:
        exchange.delivered()


def _taken(address: str) -> str:
    return f"cannot listen on {address}: it is taken or not this machine's; free it or change service.listen"


def _answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket; its file alone says nothing."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # no answer in time, or no right to ask: not ours to remove
    return True


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


def _service(name: str, **methods: Any) -> Any:
    return grpc.method_handlers_generic_handler(name, methods)
