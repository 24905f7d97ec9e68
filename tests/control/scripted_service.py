"""The service as a test scripts it for a real Envoy: ext_proc, access log, first-token events, health."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc

from extproc._pb import access_log_pb2, ext_proc_pb2, health_pb2
from extproc.control.ads_server import AdsPublisher
from extproc.core import contract

#: How long anything may take to come, on a machine that does much else.
START_S_MAX = 60.0


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_S_MAX)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def called() -> Any:
            return function(*arguments)

        return self.run(called())

    def close(self) -> None:
        self.run(_cancel_the_rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(START_S_MAX)
        self.loop.close()


async def _cancel_the_rest() -> None:
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@dataclass
class Seen:
    """One access-log record."""

    entry: Any

    @property
    def common(self) -> Any:
        return self.entry.common_properties

    @property
    def periodic(self) -> bool:
        return bool(self.common.access_log_type == access_log_pb2.DOWNSTREAM_PERIODIC)

    def metadata(self, namespace: str) -> dict[str, Any]:
        found = self.common.metadata.filter_metadata
        return dict(found[namespace]) if namespace in found else {}

    @property
    def observed(self) -> dict[str, Any]:
        return self.metadata(contract.OBSERVED_NAMESPACE)


@dataclass
class Service:
    """ext_proc, access log, first-token events and health, on one port."""

    addresses: dict[str, str]
    cluster: str
    port: int = 0
    publisher: AdsPublisher | None = None
    records: list[Seen] = field(default_factory=list)
    decided: list[dict[str, str]] = field(default_factory=list)
    #: The next health answer, and all that are asked for meanwhile, come so late; since when they do.
    late_s: float = 0.0
    late_from_s: float = 0.0
    asked: list[dict[str, str]] = field(default_factory=list)
    #: The headers of each first-token event, and its message.
    events: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    server: Any = None

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        self.server.add_generic_rpc_handlers(
            (
                _handler(
                    "envoy.service.ext_proc.v3.ExternalProcessor",
                    "Process",
                    grpc.stream_stream_rpc_method_handler,
                    self.process,
                    ext_proc_pb2.ProcessingRequest,
                ),
                _handler(
                    "envoy.service.accesslog.v3.AccessLogService",
                    "StreamAccessLogs",
                    grpc.stream_unary_rpc_method_handler,
                    self.log,
                    access_log_pb2.StreamAccessLogsMessage,
                ),
                _handler(
                    "grpc.health.v1.Health",
                    "Check",
                    grpc.unary_unary_rpc_method_handler,
                    self.health,
                    health_pb2.HealthCheckRequest,
                ),
            )
        )
        event = grpc.unary_unary_rpc_method_handler(self.event)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(contract.EVENT_SERVICE, {contract.EVENT_METHOD: event}),)
        )
        if self.publisher is not None:
            self.server.add_generic_rpc_handlers((self.publisher.handler(),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(0)

    async def health(self, request: Any, context: Any) -> Any:
        if self.late_s and not self.late_from_s:
            self.late_from_s = time.monotonic()
        await asyncio.sleep(max(0.0, self.late_from_s + self.late_s - time.monotonic()))
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def event(self, message: bytes, context: Any) -> bytes:
        self.events.append((dict(context.invocation_metadata()), message))
        return b""

    async def log(self, messages: AsyncIterator[Any], context: Any) -> bytes:
        async for message in messages:
            self.records += [Seen(entry) for entry in message.http_logs.log_entry]
        return b""

    async def process(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        headers: dict[str, str] = {}
        async for message in messages:
            if message.WhichOneof("request") == "request_headers":
                headers = {h.key: h.raw_value.decode() for h in message.request_headers.headers.headers}
                # Who asks is all that is asked: the body asks for the decision.
                config = message.protocol_config
                if message.HasField("protocol_config") and config.request_body_mode == config.NONE:
                    self.asked.append(headers)
                    yield _empty()
                    return
                if not message.request_headers.end_of_stream:
                    yield _empty()
                    continue
            self.decided.append(headers)
            if hold_ms := int(headers.get("x-test-hold-ms", "0")):
                longer = ext_proc_pb2.ProcessingResponse()
                longer.override_message_timeout.FromMilliseconds(hold_ms + 1000)
                yield longer
                await asyncio.sleep(hold_ms / 1000)
            yield self.decide(headers, body=message.WhichOneof("request") == "request_body")
            return  # law: decide, then leave

    def decide(self, headers: dict[str, str], *, body: bool) -> Any:
        answer = ext_proc_pb2.ProcessingResponse()
        if status := headers.get("x-test-reject"):
            answer.immediate_response.status.code = int(status)
            answer.immediate_response.body = b'{"mine":true}'
            answer.immediate_response.details = "steersman.test"
            for key, value in (("content-type", "application/json"), ("retry-after", "7")):
                option = answer.immediate_response.headers.set_headers.add()
                option.header.key, option.header.raw_value = key, value.encode()
            return answer
        part = answer.request_body if body else answer.request_headers
        part.response.SetInParent()
        if "x-test-undecided" in headers:
            return answer
        part.response.clear_route_cache = True
        option = part.response.header_mutation.set_headers.add()
        option.header.key, option.header.raw_value = contract.CLUSTER_HEADER, self.cluster.encode()
        option.append_action = ext_proc_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        part.response.header_mutation.remove_headers.append("authorization")
        names = headers.get("x-test-endpoints", "a,b").split(",")
        told = headers.get("x-test-event", "steersman")
        answer.dynamic_metadata.update(
            {
                contract.LB_NAMESPACE: {
                    contract.LB_ENDPOINTS_KEY: ",".join(self.addresses[name] for name in names)
                },
                contract.DECISION_NAMESPACE: {
                    contract.TICKET_KEY: f"ticket-of-{headers['x-request-id']}",
                    contract.POOL_KEY: "chat",
                    contract.REASON_KEY: "because",
                    contract.RESERVATION_KEY: headers["x-request-id"],
                    **({contract.EVENT_CLUSTER_KEY: told} if told != "-" else {}),
                },
            }
        )
        return answer


def _empty() -> Any:
    answer = ext_proc_pb2.ProcessingResponse()
    answer.request_headers.response.SetInParent()
    return answer


def _handler(service: str, method: str, kind: Callable[..., Any], call: Any, request: Any) -> Any:
    handler = kind(
        call,
        request_deserializer=request.FromString,
        response_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})
