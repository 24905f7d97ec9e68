"""What tracing costs a request on its path, in CPU time; and what its threads do beside.

The call's metadata is a real one's, read by grpc itself from a call of this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import grpc
from bench_decide import exchange_messages
from rows import Row, settled

from extproc._pb import access_log_pb2
from extproc._pb import ext_proc_pb2 as pb
from extproc.config.tracing import OpenTelemetry
from extproc.core.outcome import Outcome, Reject
from extproc.core.reading import parse
from extproc.core.routes import find_route
from extproc.core.tenant import ANONYMOUS
from extproc.observe.tracing.pipeline import SPANS_AT_ONCE, Pipeline
from extproc.observe.tracing.request_trace import Decided, Note, RequestTrace, RequestTraces, TraceEnd
from extproc.observe.tracing.semconv import RELEASES
from extproc.observe.tracing.spans import Span, Spans
from extproc.wire import accesslog, codec, ticket
from extproc.wire.exchange import Exchange
from extproc.wire.processor import Processor
from extproc.wire.seal import Seal

AIM_US = 20.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SEAL = Seal()
METADATA = (("user-agent", "envoy"), ("traceparent", PARENT), ("x-request-id", "0b5ee4f6"))


def cpu_us(call: Callable[[], object], *, rounds: int = 15, count: int = 400) -> float:
    """CPU microseconds per call of this thread: the least of several rounds."""
    for _ in range(count):
        call()
    figures = []
    for _ in range(rounds):
        began = time.thread_time_ns()
        for _ in range(count):
            call()
        figures.append((time.thread_time_ns() - began) / count / 1e3)
    return min(figures)


def run() -> Iterator[Row]:
    """Yield CPU microseconds per request.

    What is added is measured by itself, part by part: it is a thirtieth of a whole exchange, whose own
    figure moves by more than that from run to run.
    """
    metadata_us = _metadata_us()
    yield Row("tracing: reading the call's metadata (grpc)", metadata_us, "µs")
    for name, flags in (("sampled", "01"), ("not sampled", "00")):
        notes_us, rides_us = _noting_us(flags)
        yield Row(f"tracing: noting a request's way and end, {name}", notes_us, "µs")
        if rides_us:
            yield Row("tracing: what rides with the request, written and read", rides_us, "µs")
        yield Row(f"tracing: added to a request, {name}", metadata_us + notes_us + rides_us, "µs", AIM_US)
    yield from _threads()


def _noting_us(flags: str) -> tuple[float, float]:
    """Everything that the wire calls of a trace; and its text in both of Envoy's messages."""
    processor, head, body = exchange_messages(1_000)
    notes: list[Note] = []
    request_traces = _request_traces(processor, notes)
    exchange = Exchange(processor)
    exchange.receive(head)
    exchange.receive(body)
    (kept,) = processor.scheduler.dispatcher.decisions.placed_last(1)
    routed = kept.routed
    route = find_route("POST", "/v1/chat/completions")
    assert route is not None
    request = parse(route, pb.ProcessingRequest.FromString(body).request_body.body)
    assert not isinstance(request, Reject)
    metadata = tuple((k, v[:-2] + flags if k == "traceparent" else v) for k, v in METADATA)
    clock = processor.clock
    outcome = Outcome(reservation=routed.reservation, final=True, status=200, duration_ns=10**9)
    carried = ""

    def noted() -> None:
        nonlocal carried
        request_trace = request_traces.begin(lambda: metadata)
        request_trace.headers(route.kind, {})
        request_trace.identified(ANONYMOUS)
        request_trace.read(request)
        carried = request_trace.placed(routed)
        request_trace.decided(clock(), clock())
        request_trace.delivered()
        request_trace.closed()
        request_traces.settled(settled(outcome), now_ns=clock())
        notes.clear()

    notes_us = cpu_us(noted)
    if not carried:
        return notes_us, 0.0

    def message(trace: str) -> bytes:
        return codec.routed(routed, "request_body", seal=SEAL, carried=trace)

    def record(trace: str) -> bytes:
        log = access_log_pb2.StreamAccessLogsMessage()
        fields = log.http_logs.log_entry.add().common_properties.metadata.filter_metadata["steersman"]
        sealed = ticket.write(routed.reservation, SEAL)
        fields.update({"ticket": sealed, **({"trace": trace} if trace else {})})
        return log.SerializeToString()

    def read(data: bytes) -> list[Outcome]:
        return list(accesslog.read(data, SEAL))

    bare, full = record(""), record(carried)
    return notes_us, (
        max(0.0, cpu_us(lambda: message(carried)) - cpu_us(lambda: message("")))
        + max(0.0, cpu_us(lambda: read(full)) - cpu_us(lambda: read(bare)))
    )


def _request_traces(processor: Processor, notes: list[Note]) -> RequestTraces:
    return RequestTraces(
        OpenTelemetry(endpoint="http://127.0.0.1:4317"),
        clock=processor.clock,
        wall_ns=time.time_ns,
        rng=Random(1),
        offer=notes.append,
        heir=lambda _: True,
    )


def _metadata_us() -> float:
    """What `invocation_metadata` takes on a call like Envoy's."""

    async def measure() -> float:
        figures: list[float] = []

        async def serve(_: bytes, context: Any) -> bytes:
            figures.append(cpu_us(context.invocation_metadata))
            return b""

        server = grpc.aio.server()
        methods = {"Call": grpc.unary_unary_rpc_method_handler(serve)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Metadata", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary("/bench.Metadata/Call")(b"", metadata=METADATA[1:])
        await server.stop(0)
        return figures[0]

    return asyncio.run(measure())


def _threads() -> Iterator[Row]:
    """The threads' own work for a request, and what 300 requests/s of it do to an event loop beside it."""
    processor, head, body = exchange_messages(1_000)
    notes: list[Note] = []
    processor.request_traces = _request_traces(processor, notes)
    exchange = Exchange(processor)
    exchange.request_trace = processor.request_traces.begin(lambda: METADATA)
    exchange.receive(head)
    reply = exchange.receive(body)
    exchange.delivered()
    entry = processor.scheduler.ledger.get(reply.reservation_id)
    assert entry is not None
    processor.request_traces.settled(
        settled(Outcome(reservation=entry.reservation, final=True, status=200, duration_ns=10**9)), now_ns=1
    )
    decided, ended = notes
    assert isinstance(decided, Decided)
    assert isinstance(ended, TraceEnd)
    assert isinstance(exchange.request_trace, RequestTrace)
    routed = exchange.request_trace.routed
    spans = Spans(RELEASES["0.1/dup"], engines={}, rng=Random(2))

    def build(note: Note) -> list[Span]:
        if isinstance(note, Decided):
            note.request_trace.routed = routed
        return spans.of(note)

    yield Row("tracing thread: spans of a request", cpu_us(lambda: (build(decided), build(ended))), "µs")
    from extproc.observe.tracing.otlp import Otlp

    otlp = Otlp(
        OpenTelemetry(endpoint="http://127.0.0.1:1", metrics=False),
        RELEASES["0.1/dup"],
        headers={},
        instance="bench",
    )
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    def encode(batch: Sequence[Span]) -> bool:
        return bool(encode_spans([otlp.readable(span) for span in batch]).SerializeToString())

    batch = [*build(decided), *build(ended)] * (SPANS_AT_ONCE // 2)
    encode_us = cpu_us(lambda: encode(batch), count=20) / len(batch)
    yield Row(f"tracing thread: OTLP message, a span of {len(batch)}", encode_us, "µs")
    otlp.close(0.1)
    for name, offered in (("without tracing", None), ("while 300 requests/s are traced", (decided, ended))):
        yield Row(f"event loop's lag p99, {name}", _lag_ms(offered, build, encode), "ms")


def _lag_ms(offered: tuple[Note, Note] | None, build: Any, encode: Any) -> float:
    """How late a loop that sleeps 1 ms wakes, at the 99th percentile, over 2 s."""
    line = Pipeline(queue_max=10_000, interval_s=0.2)
    line.start(build=build, send=encode, measure=None)

    async def watch() -> list[float]:
        late_ms: list[float] = []
        until = time.perf_counter() + 2.0
        owed = 0.0
        while (began := time.perf_counter()) < until:
            await asyncio.sleep(0.001)
            took = time.perf_counter() - began
            late_ms.append((took - 0.001) * 1e3)
            owed += took * 300
            while owed >= 1 and offered is not None:
                owed -= 1
                for note in offered:
                    line.offer(note)
        return late_ms

    late_ms = sorted(asyncio.run(watch()))
    line.stop(2.0)
    return late_ms[int(len(late_ms) * 0.99)]
