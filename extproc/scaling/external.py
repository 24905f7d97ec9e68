"""KEDA's external scaler: answers for each trigger how many replicas its pool is to have.

Owns the gRPC server, its TLS, its streams and what is answered. What is wanted is the planner's; how HPA is
made to hear it is core/scaling/reported.py's. Nothing is kept of who asked: a service that has just begun
answers as the one before it, once it has a plan, and until then with UNAVAILABLE, which changes nothing at
KEDA's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from extproc._pb import externalscaler_pb2 as pb
from extproc.config.scaling import ScalerConfig, ScalerTls
from extproc.core.scaling.reported import reported_milli
from extproc.core.scaling.values import PoolPlan
from extproc.grpc_peers import PeerBounds
from extproc.scaling.trigger import ScalerTrigger, TriggerError, UnknownPoolError, trigger_of
from extproc.wire.tls import TlsFiles

log = logging.getLogger(__name__)

SERVICE: Final = "externalscaler.ExternalScaler"
#: A trigger's metadata are a few words.
MESSAGE_BYTES_MAX: Final = 64 * 1024
#: Pushed streams at once; more are told RESOURCE_EXHAUSTED.
STREAMS_MAX: Final = 256
#: Calls at once, streams among them.
CALLS_MAX: Final = 1_024
#: KEDA has one for each trigger's address; who asks the port otherwise is a stranger.
PEERS: Final = PeerBounds(connections_max=1_024)
#: How often "active" is said again while the pool has no replica: KEDA may have failed to start one.
AGAIN_S: Final = 10.0
#: Mistakes of triggers that are told in the log, once each.
MISTAKES_KEPT: Final = 256
#: How long calls may take to end when the service does.
STOP_S: Final = 1.0


class ScalerSource(Protocol):
    """What the scaler knows of the pools; asked on the event loop, for each call."""

    def pools(self) -> Collection[str]:
        """Those that scale."""

    def plan(self, pool: str) -> PoolPlan | None:
        """Its newest plan; None before the first, and where it is too old to go by."""

    def held(self, pool: str) -> int:
        """Requests that wait in the gateway now."""

    def asked(self, pool: str) -> bool:
        """Whether somebody waits, runs, or was turned away just now for want of a replica."""


class ExternalScaler:
    """The server. `clock` gives nanoseconds that never go back.

    Raises OSError from `start` where the address or TLS's files are no good.
    """

    def __init__(
        self,
        settings: ScalerConfig,
        source: ScalerSource,
        *,
        clock: Callable[[], int],
        peers: PeerBounds = PEERS,
    ) -> None:
        self._peers = peers
        self.settings, self._source, self._clock = settings, source, clock
        self.address = ""
        #: Calls by method, and answers that were errors, since the start.
        self.counts: Counter[str] = Counter()
        self.streams = 0
        self._asked_ns = clock()
        #: Streams that have last said "inactive", and what wakes them.
        self._asleep: dict[asyncio.Event, str] = {}
        self._told: set[str] = set()
        self._server: Any = None
        self._tls = None if settings.tls is None else files_of(settings.tls)
        #: When TLS's files were written, as they were read.
        self._files: tuple[int, ...] = ()

    @property
    def sleeping(self) -> set[str]:
        """The pools whose streams have last said that nobody needs them."""
        return set(self._asleep.values())

    def silence_s(self) -> float:
        """Seconds since anybody called (since the start, where nobody did); open streams are no calls."""
        return (self._clock() - self._asked_ns) / 1e9

    async def start(self) -> str:
        """Listen; returns the address with its real port."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
                *self._peers.options(),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        server.add_generic_rpc_handlers((self._handler(),))
        listen = self.settings.listen
        host = listen.rpartition(":")[0]
        self._files = self._dated()
        try:
            port = (
                server.add_insecure_port(listen)
                if self._tls is None
                else server.add_secure_port(listen, self._tls.for_grpc())
            )
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(
                f"cannot listen on {listen}: it is taken or not this machine's; free it or change "
                "scaling.external_scaler.listen"
            ) from error
        await server.start()
        self._server, self.address = server, f"{host}:{port}"
        log.info("the external scaler listens on %s%s", self.address, "" if self._tls is None else " (TLS)")
        return self.address

    async def renew(self) -> bool:
        """Begin anew where TLS's files have changed: certificates are renewed under our feet; whether it did.

        Streams end and KEDA opens others. What cannot be read is read again later. (grpc's own way,
        `dynamic_ssl_server_credentials`, brought the process down once in two runs under grpc.aio.)
        """
        try:
            if self._server is None or self._dated() == self._files:
                return False
            assert self._tls is not None
            self._tls.context()
        except OSError as error:
            log.warning("scaling.external_scaler.tls: %s; the old certificate stays", error)
            return False
        listen, self.settings = self.settings.listen, _at(self.settings, self.address)
        try:
            await self.stop()
            await self.start()
        finally:
            self.settings = _at(self.settings, listen)
        log.info("scaling.external_scaler.tls: the new certificate holds")
        return True

    async def stop(self) -> None:
        """Take no more calls; open streams end."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(STOP_S)

    def wake(self, pool: str) -> None:
        """Let the streams of a pool look now, and not at their interval's end."""
        for event in [event for event, asleep in self._asleep.items() if asleep == pool]:
            del self._asleep[event]
            event.set()

    def status(self) -> dict[str, object]:
        """Where it listens and who asked."""
        return {
            "listen": self.address,
            "calls": dict(self.counts),
            "streams": self.streams,
            "silence_s": round(self.silence_s(), 1),
        }

    def _dated(self) -> tuple[int, ...]:
        """Raises OSError where a file is away."""
        tls = self._tls
        files = () if tls is None else (tls.certificate, tls.key, tls.client_ca)
        return tuple(file.stat().st_mtime_ns for file in files if file is not None)

    def _handler(self) -> Any:
        def unary(answer: Any, request: Any, response: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)

        def pushed(answer: Any, request: Any, response: Any) -> Any:
            return grpc.unary_stream_rpc_method_handler(
                answer, request.FromString, response.SerializeToString
            )

        ref, spec = pb.ScaledObjectRef, pb.GetMetricSpecResponse
        table = {
            "IsActive": unary(self._is_active, ref, pb.IsActiveResponse),
            "StreamIsActive": pushed(self._stream_is_active, ref, pb.IsActiveResponse),
            "GetMetricSpec": unary(self._get_metric_spec, ref, spec),
            "GetMetrics": unary(self._get_metrics, pb.GetMetricsRequest, pb.GetMetricsResponse),
            "StreamMetricSpec": pushed(self._stream_metric_spec, ref, spec),
        }
        return grpc.method_handlers_generic_handler(SERVICE, table)

    async def _is_active(self, ref: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        trigger = await self._trigger("IsActive", ref, context)
        active = self._active(trigger.pool)
        if active is None:
            await self._no_plan(trigger.pool, context)
        return pb.IsActiveResponse(result=bool(active))

    async def _get_metric_spec(self, ref: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        return _spec(await self._trigger("GetMetricSpec", ref, context))

    async def _get_metrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        trigger = await self._trigger("GetMetrics", request.scaledObjectRef, context)
        plan = self._source.plan(trigger.pool)
        if plan is None:
            await self._no_plan(trigger.pool, context)
        assert plan is not None
        match trigger.metric:
            case "wanted":
                milli = reported_milli(
                    plan.wanted, plan.had, tolerance=trigger.tolerance, target_milli=trigger.target_milli
                )
            case "held":
                milli = self._source.held(trigger.pool) * 1_000
            case "forecast":
                milli = round(plan.forecast.median * 1_000)
        # KEDA asks by the name that it was given; it may have made other letters of it.
        name = request.metricName or trigger.name
        # Whoever reads the old field alone gets whole replicas, and never too few.
        value = pb.MetricValue(
            metricName=name, metricValue=-(-milli // 1_000), metricValueFloat=_exact(milli)
        )
        return pb.GetMetricsResponse(metricValues=[value])

    async def _stream_is_active(
        self, ref: pb.ScaledObjectRef, context: Any
    ) -> AsyncIterator[pb.IsActiveResponse]:
        trigger = await self._trigger("StreamIsActive", ref, context)
        await self._open(context)
        wake, loop = asyncio.Event(), asyncio.get_running_loop()
        said: bool | None = None
        said_at = 0.0
        try:
            while trigger.pool in self._source.pools():
                active = self._active(trigger.pool)
                plan = self._source.plan(trigger.pool)
                again = bool(active) and (plan is None or plan.had == 0) and loop.time() - said_at >= AGAIN_S
                if active is not None and (active != said or again):
                    said, said_at = active, loop.time()
                    yield pb.IsActiveResponse(result=active)
                wake.clear()
                if not active:
                    self._asleep[wake] = trigger.pool
                try:
                    async with asyncio.timeout(self.settings.push_interval_s):
                        await wake.wait()
                except TimeoutError:
                    pass
                finally:
                    self._asleep.pop(wake, None)
            await self._gone(trigger.pool, context)
        finally:
            self.streams -= 1

    async def _stream_metric_spec(
        self, ref: pb.ScaledObjectRef, context: Any
    ) -> AsyncIterator[pb.GetMetricSpecResponse]:
        trigger = await self._trigger("StreamMetricSpec", ref, context)
        await self._open(context)
        try:
            # It is the metadata's alone, and those are the stream's: it changes when KEDA opens another.
            yield _spec(trigger)
            while trigger.pool in self._source.pools():  # noqa: ASYNC110 (pools come and go with the file)
                await asyncio.sleep(self.settings.push_interval_s)
            await self._gone(trigger.pool, context)
        finally:
            self.streams -= 1

    async def _open(self, context: Any) -> None:
        if self.streams >= STREAMS_MAX:
            self.counts["refused_streams"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{STREAMS_MAX} streams are open")
        self.streams += 1

    async def _trigger(self, method: str, ref: pb.ScaledObjectRef, context: Any) -> ScalerTrigger:
        self.counts[method] += 1
        self._asked_ns = self._clock()
        try:
            return trigger_of(ref.scalerMetadata, self._source.pools())
        except TriggerError as error:
            self.counts["mistakes"] += 1
            where = f"ScaledObject {ref.namespace[:63]}/{ref.name[:63]}: {error}"
            if where not in self._told and len(self._told) < MISTAKES_KEPT:
                self._told.add(where)
                log.warning("scaling.external_scaler: %s", where)
            unknown = isinstance(error, UnknownPoolError)
            code = grpc.StatusCode.NOT_FOUND if unknown else grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(code, where)
            raise AssertionError("abort raises") from error

    async def _no_plan(self, pool: str, context: Any) -> None:
        self.counts["no_plan"] += 1
        text = f"pool {pool}: there is no plan yet, or none that is fresh; what there is stays"
        await context.abort(grpc.StatusCode.UNAVAILABLE, text)

    async def _gone(self, pool: str, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"pool {pool} does not scale any more")

    def _active(self, pool: str) -> bool | None:
        """Whether the pool is to have replicas; None where nobody knows yet."""
        if self._source.asked(pool):
            return True
        plan = self._source.plan(pool)
        return None if plan is None else plan.wanted > 0 or plan.held > 0


def _spec(trigger: ScalerTrigger) -> pb.GetMetricSpecResponse:
    milli = trigger.target_milli
    spec = pb.MetricSpec(
        metricName=trigger.name, targetSize=max(1, round(milli / 1_000)), targetSizeFloat=_exact(milli)
    )
    return pb.GetMetricSpecResponse(metricSpecs=[spec])


def files_of(tls: ScalerTls) -> TlsFiles:
    """TLS's files as the transports take them."""
    authority = None if tls.client_ca is None else Path(tls.client_ca)
    return TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), client_ca=authority)


def _at(settings: ScalerConfig, listen: str) -> ScalerConfig:
    return settings.model_copy(update={"listen": listen})


def _exact(milli: int) -> float:
    """Thousandths as the double of which KEDA's int64(1000 · x) makes the same thousandths again."""
    value = milli / 1_000
    return value if int(value * 1_000) == milli else (milli + 0.25) / 1_000
