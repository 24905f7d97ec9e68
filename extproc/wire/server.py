"""What Envoy calls, on whichever transport: ext_proc, access log, first-token events and health.

Owns the choice of the transport, the table of methods and the drain. How a call travels is http2's or aio's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from extproc.core.contract import EVENT_METHOD, EVENT_SERVICE, FILL_METHOD
from extproc.core.outcome import Outcome
from extproc.wire import accesslog
from extproc.wire.aio import AioTransport
from extproc.wire.bind import BindError
from extproc.wire.calls import Methods, RpcCall, Unary
from extproc.wire.decisions import DecisionCall
from extproc.wire.fills import CacheFills
from extproc.wire.firsttoken import FirstToken, FirstTokens
from extproc.wire.gate import TokenCheck
from extproc.wire.health import HEALTH, HealthService
from extproc.wire.picker import Picker
from extproc.wire.processor import Processor
from extproc.wire.tls import TlsFiles

if TYPE_CHECKING:
    from extproc.wire.http2 import Http2Transport

__all__ = ["ACCESS_LOG", "EXT_PROC", "HEALTH", "BindError", "Server"]

log = logging.getLogger(__name__)

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
ACCESS_LOG = "envoy.service.accesslog.v3.AccessLogService"
#: A gRPC message may be larger than the body it carries by this much (headers, framing).
MESSAGE_SLACK_BYTES = 1024 * 1024
#: What is called without a token: health tells nothing else, and events are sealed.
OPEN_TO_ALL = (HEALTH, EVENT_SERVICE)

TransportName = Literal["http2", "grpcio"]


class Transport(Protocol):
    """What carries calls."""

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that run may end for so long."""


class Server:
    """What Envoy needs, no more.

    `handlers` are further generic RPC handlers of grpc's kind (ADS), served on the same port, or at
    `ads_listen` alone where that names addresses. `picker` serves the endpoint-picker protocol on the same
    port; `ready` says whether whoever is told of endpoints has told all, for its health name. `tokens`: one
    of them has to be shown, where there are any. `transport` falls back to grpcio where ngh2 cannot be
    imported, which is said.
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
        tls: TlsFiles | None = None,
        transport: TransportName = "http2",
        ads_listen: Sequence[str] = (),
    ) -> None:
        self.processor = processor
        self.health = HealthService((EXT_PROC,), ready)
        self._settle = settle
        methods: Methods = {
            f"/{EXT_PROC}/Process": partial(DecisionCall, processor=processor, picker=picker),
            f"/{ACCESS_LOG}/StreamAccessLogs": partial(AccessLogCall, take=self.take_records),
            f"/{EVENT_SERVICE}/{EVENT_METHOD}": partial(
                Unary, answer=FirstTokens(processor, first_token).receive
            ),
            f"/{EVENT_SERVICE}/{FILL_METHOD}": partial(Unary, answer=CacheFills(processor).receive),
            **self.health.methods,
        }
        message_bytes_max += MESSAGE_SLACK_BYTES
        check = TokenCheck(tokens, open_to_all=OPEN_TO_ALL, refused=self._refused) if tokens else None
        self._ads_listen = ads_listen
        #: Where the handlers are found, if they have addresses of their own.
        self.ads_addresses: list[str] = []
        self._ads: Transport | None = None
        if ads_listen:
            self._ads = AioTransport(
                self.health.methods,
                message_bytes_max=MESSAGE_SLACK_BYTES,
                tokens=check,
                tls=tls,
                handlers=handlers,
                setting="service.ads_listen",
            )
            handlers = ()
        http2 = _http2() if transport == "http2" else None
        self._transport: Transport
        if http2 is None:
            self._transport = AioTransport(
                methods, message_bytes_max=message_bytes_max, tokens=check, tls=tls, handlers=handlers
            )
        else:
            self._transport = http2(
                methods,
                message_bytes_max=message_bytes_max,
                tokens=check,
                tls=tls,
                handlers=handlers,
                # Of each stream that is not decided one message: more are refused by their headers.
                buffered_bytes_max=lambda: processor.decisions_concurrent_max * message_bytes_max,
                count=self._reached,
            )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen; returns the addresses with the real ports. Raises BindError."""
        bound = await self._transport.start(addresses)
        if self._ads is not None:
            try:
                self.ads_addresses = await self._ads.start(self._ads_listen)
            except BindError:
                await self._transport.stop(0.0)
                raise
        return bound

    async def drain(self, timeout_s: float, *, quiet_s: float = 0.0) -> None:
        """Say NOT_SERVING, serve what still comes, stop when it was quiet for so long or time is up."""
        self.health.drain()
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
        for each in (self._ads, self._transport):
            if each is not None:
                await each.stop(0.2)

    def take_records(self, data: bytes) -> None:
        """Settle what a message of the access log tells."""
        try:
            for outcome in accesslog.read(
                data, self.processor.seal, failed=self._lost_record, forged=self.processor.forged
            ):
                self._settle_one(outcome)
        except Exception as error:  # noqa: BLE001 (a bad message must not end the stream of good ones)
            self.processor.failed(error, "access log")

    def _lost_record(self, error: Exception) -> None:
        """A record of the access log that cannot be read; its reservation expires."""
        self.processor.failed(error, "access log")

    def _settle_one(self, outcome: Outcome) -> None:
        try:
            self._settle(outcome)
        except Exception as error:  # noqa: BLE001 (nor must a bad record lose the others of its message)
            self.processor.failed(error, "settling")

    def _reached(self, bound: str) -> None:
        self.processor.scheduler.counts[bound] += 1

    def _refused(self) -> None:
        self.processor.scheduler.counts["calls.unauthenticated"] += 1


class AccessLogCall:
    """A stream of access-log messages, each taken as it comes; answered when Envoy ends it."""

    __slots__ = ("_call", "_take", "busy")

    def __init__(self, call: RpcCall, take: Callable[[bytes], None]) -> None:
        self._call, self._take = call, take
        self.busy = False

    def message(self, data: bytes) -> None:
        """Settle its records."""
        self._take(data)

    def sent(self) -> None:
        """It is over."""

    def sent_all(self) -> None:
        """Envoy has no more records on this stream."""
        self._call.write((b"",), end=True)

    def closed(self) -> None:
        """What was read is settled."""


def _http2() -> type[Http2Transport] | None:
    """None where its package cannot be imported, which is said."""
    try:
        from extproc.wire.http2 import Http2Transport
    except ImportError as error:
        log.warning(
            "service.transport http2 cannot be had (%s): serving with grpcio, which costs more CPU; "
            "install ngh2 for this platform, or set service.transport: grpcio",
            error,
        )
        return None
    return Http2Transport
