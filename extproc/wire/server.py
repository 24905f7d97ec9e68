"""The gRPC server: carries messages between Envoy and the processor, and nothing else.

Owns grpc.aio, the addresses, the health service and the drain. Handlers take and give raw bytes, so
another transport can stand here without touching what decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from extproc.core.contract import EVENT_METHOD, EVENT_SERVICE
from extproc.core.outcome import Outcome
from extproc.core.scheduler import AskQuota
from extproc.wire import accesslog
from extproc.wire.bind import BindError, bind
from extproc.wire.exchange import Exchange
from extproc.wire.firsttoken import FirstToken, FirstTokens
from extproc.wire.gate import TokenGate
from extproc.wire.health import HEALTH, HealthService
from extproc.wire.picker import Picker
from extproc.wire.picker.exchange import PickerExchange
from extproc.wire.processor import Processor
from extproc.wire.responder import Reply

__all__ = ["ACCESS_LOG", "EXT_PROC", "HEALTH", "BindError", "Server"]

log = logging.getLogger(__name__)

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG = "envoy.service.accesslog.v3.AccessLogService"
#: A gRPC message may be larger than the body it carries by this much (headers, framing).
MESSAGE_SLACK_BYTES = 1024 * 1024
#: What is called without a token: health tells nothing else, and events are sealed.
OPEN_TO_ALL = (HEALTH, EVENT_SERVICE)


class Server:
    """ext_proc, access log, first-token events and health on one grpc.aio server: what Envoy needs, no more.

    `handlers` are further generic RPC handlers (ADS). `picker` serves the endpoint-picker protocol on the
    same port; `ready` says whether whoever is told of endpoints has told all, for its health name.
    `tokens`: one of them has to be shown, where there are any. `credentials` are TLS's.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        settle: Callable[[Outcome], None],
        message_bytes_max: int,
        handlers: Sequence[Any] = (),
        first_token: FirstToken | None = None,
        picker: Picker | None = None,
        ready: Callable[[], bool] = lambda: True,
        tokens: Collection[bytes] = (),
        credentials: Any = None,
    ) -> None:
        self.processor = processor
        self.health = HealthService((EXT_PROC,), ready)
        self._picker = picker
        self._settle = settle
        self._credentials = credentials
        gate = TokenGate(tokens, open_to_all=OPEN_TO_ALL, refused=self._refused)
        self._server = grpc.aio.server(
            interceptors=[gate] if tokens else [],
            options=[
                ("grpc.max_receive_message_length", message_bytes_max + MESSAGE_SLACK_BYTES),
                # Two services on one port would share its connections by chance.
                ("grpc.so_reuseport", 0),
                # Envoy keeps one connection for long; its keepalive pings are no attack.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                # An Envoy that hangs is let go, and with it what decisions wait for it to accept.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
            ],
        )
        events = FirstTokens(processor, first_token)
        self._server.add_generic_rpc_handlers(
            (
                _service(EXT_PROC, Process=grpc.stream_stream_rpc_method_handler(self._process)),
                _service(ACCESS_LOG, StreamAccessLogs=grpc.stream_unary_rpc_method_handler(self._access_log)),
                _service(
                    EVENT_SERVICE, **{EVENT_METHOD: grpc.unary_unary_rpc_method_handler(events.receive)}
                ),
                self.health.handler(),
                *handlers,
            )
        )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""
        try:
            bound = [bind(self._server, each, credentials=self._credentials) for each in addresses]
        except BindError:
            await self._server.stop(None)  # lets go of the addresses bound before
            raise
        await self._server.start()
        return bound

    async def drain(self, timeout_s: float, *, quiet_s: float = 0.0) -> None:
        """Say NOT_SERVING, serve what still comes, stop when it was quiet for so long or time is up."""
        self.health.draining.set()
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
        exchange.request_trace = self.processor.request_traces.begin(context.invocation_metadata)
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
            return PickerExchange(self._picker)
        return Exchange(self.processor)

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
            answer = await self.processor.scheduler.quotas.ask(
                asked.account, asked.routing.id, asked.amounts, idle_capacity=asked.idle
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
                for outcome in accesslog.read(
                    data, self.processor.seal, failed=self._lost_record, forged=self.processor.forged
                ):
                    self._settle_one(outcome)
            except Exception as error:  # noqa: BLE001 (a bad message must not end the stream of good ones)
                self.processor.failed(error, "access log")
        return b""

    def _lost_record(self, error: Exception) -> None:
        """A record of the access log that cannot be read; its reservation expires."""
        self.processor.failed(error, "access log")

    def _settle_one(self, outcome: Outcome) -> None:
        try:
            self._settle(outcome)
        except Exception as error:  # noqa: BLE001 (nor must a bad record lose the others of its message)
            self.processor.failed(error, "settling")

    def _refused(self) -> None:
        self.processor.scheduler.counts["calls.unauthenticated"] += 1


async def _send(reply: Reply, exchange: Exchange, context: Any) -> None:
    """Send a reply whole, and tell the exchange when it held the decision."""
    if reply.data:
        await context.write(reply.data)
    for data in reply.more:
        await context.write(data)
    if reply.end or reply.reservation_id:
        exchange.delivered()


def _service(name: str, **methods: Any) -> Any:
    return grpc.method_handlers_generic_handler(name, methods)
