"""A collector for one machine: takes OTLP over gRPC and HTTP, keeps what came, and prints it as trees.

    python examples/traces/receiver.py            # gRPC on 4317, HTTP on 4318; Ctrl-C ends it

Needs the extra `otel` (for OTLP's messages). It is a toy to see spans with, and what the
tests receive with; a real collector is https://opentelemetry.io/docs/collector/.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb

#: Spans and exports kept; the oldest are forgotten.
KEPT_MAX = 100_000
#: A trace is shown when it has been over for so long: Envoy sends its spans every five seconds.
QUIET_NS = 8_000_000_000
TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS = "opentelemetry.proto.collector.metrics.v1.MetricsService"


@dataclass
class Span:
    """A span as it was received; ids in hex, times in unix nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: bool
    message: str
    events: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    @property
    def service(self) -> str:
        """Whose it is."""
        return str(self.resource.get("service.name", ""))


class Receiver:
    """Context manager: listens on both protocols (port 0: a free one)."""

    def __init__(self, *, grpc_port: int = 0, http_port: int = 0, status: int = 200) -> None:
        """`status` is what HTTP answers with; gRPC says UNAVAILABLE where it is not 200."""
        self.status = status
        #: Set, exports are taken in and not answered until it is cleared.
        self.hang = threading.Event()
        self.spans: list[Span] = []
        self.traces: list[trace_pb.ExportTraceServiceRequest] = []
        self.metrics: list[metrics_pb.ExportMetricsServiceRequest] = []
        #: Of each export: its path (or gRPC service) and headers.
        self.calls: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._grpc = grpc.server(ThreadPoolExecutor(8))
        self._grpc.add_generic_rpc_handlers((self._service(TRACES), self._service(METRICS)))
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._http = ThreadingHTTPServer(("127.0.0.1", http_port), _handler(self))
        self._http.daemon_threads = True
        self.http_port = self._http.server_address[1]

    @property
    def grpc_url(self) -> str:
        """Where gRPC exports go."""
        return f"http://127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Where HTTP exports go."""
        return f"http://127.0.0.1:{self.http_port}"

    def __enter__(self) -> Receiver:
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang.clear()
        self._grpc.stop(0).wait()
        self._http.shutdown()
        self._http.server_close()

    def of(self, trace_id: str) -> list[Span]:
        """A trace's spans, by their start."""
        with self._lock:
            found = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.start_ns)

    def named(self, name: str) -> list[Span]:
        """Spans with a name."""
        with self._lock:
            return [span for span in self.spans if span.name == name]

    def points(self, name: str) -> list[Any]:
        """The newest data points of a metric."""
        with self._lock:
            for request in reversed(self.metrics):
                for metric in _metrics_of(request):
                    if metric.name == name:
                        return list(getattr(metric, metric.WhichOneof("data")).data_points)
        return []

    def take(self, path: str, data: bytes, headers: dict[str, str]) -> bytes:
        """Keep an export; returns the answer's message."""
        while self.hang.is_set():
            time.sleep(0.02)
        with self._lock:
            self.calls.append((path, headers))
            if path.endswith(("/v1/traces", TRACES)):
                request = trace_pb.ExportTraceServiceRequest.FromString(data)
                self.traces.append(request)
                self.spans.extend(_spans_of(request))
                del self.spans[:-KEPT_MAX], self.traces[:-KEPT_MAX]
                return bytes(trace_pb.ExportTraceServiceResponse().SerializeToString())
            self.metrics.append(metrics_pb.ExportMetricsServiceRequest.FromString(data))
            del self.metrics[:-KEPT_MAX]
            return bytes(metrics_pb.ExportMetricsServiceResponse().SerializeToString())

    def _service(self, name: str) -> Any:
        def export(data: bytes, context: Any) -> bytes:
            if self.status != 200:
                context.abort(grpc.StatusCode.UNAVAILABLE, "told to refuse")
            headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            return self.take(name, data, headers)

        return grpc.method_handlers_generic_handler(
            name, {"Export": grpc.unary_unary_rpc_method_handler(export)}
        )


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            answer, status = b"", receiver.status
            if status == 200:
                answer = receiver.take(self.path, data, {k.lower(): v for k, v in self.headers.items()})
            # Who sent it may have given up waiting.
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its base's name)
            """Nothing."""

    return Handler


def _spans_of(request: trace_pb.ExportTraceServiceRequest) -> Iterator[Span]:
    for group in request.resource_spans:
        resource = attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=attributes(span.attributes),
                    resource=resource,
                    error=span.status.code == 2,
                    message=span.status.message,
                    events=[(e.name, e.time_unix_nano, attributes(e.attributes)) for e in span.events],
                )


def _metrics_of(request: metrics_pb.ExportMetricsServiceRequest) -> Iterator[Any]:
    for group in request.resource_metrics:
        for scope in group.scope_metrics:
            yield from scope.metrics


def attributes(pairs: Any) -> dict[str, Any]:
    """OTLP's key-value pairs as a dict."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def tree(spans: list[Span]) -> str:
    """A trace as an indented list: who, what, how long."""
    known = {span.span_id for span in spans}
    lines: list[str] = []

    def add(parent: str, depth: int) -> None:
        for span in spans:
            if span.parent_id == parent or (depth == 0 and span.parent_id not in known):
                mark = " !" if span.error else ""
                took_ms = (span.end_ns - span.start_ns) / 1e6
                error = span.attributes.get("error.type", "")
                line = f"{span.service}: {span.name}  {took_ms:.2f} ms{mark} {error}"
                lines.append("  " * depth + line.rstrip())
                add(span.span_id, depth + 1)

    add("\0", 0)
    return "\n".join(lines)


def main() -> None:
    """Listen and print until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--grpc-port", type=int, default=4317)
    parser.add_argument("--http-port", type=int, default=4318)
    parser.add_argument("--attributes", action="store_true", help="print the GenAI spans' attributes too")
    asked = parser.parse_args()
    with Receiver(grpc_port=asked.grpc_port, http_port=asked.http_port) as receiver:
        print(f"OTLP: gRPC {receiver.grpc_url}, HTTP {receiver.http_url}", flush=True)
        shown: set[str] = set()
        try:
            while True:
                time.sleep(1)
                quiet_ns = time.time_ns() - QUIET_NS
                for trace_id in dict.fromkeys(span.trace_id for span in list(receiver.spans)):
                    spans = receiver.of(trace_id)
                    if trace_id in shown or max(span.end_ns for span in spans) > quiet_ns:
                        continue
                    shown.add(trace_id)
                    print(f"\ntrace {trace_id}\n{tree(spans)}", flush=True)
                    for span in spans if asked.attributes else ():
                        if "gen_ai.operation.name" in span.attributes:
                            for name, value in sorted(span.attributes.items()):
                                print(f"    {name} = {value!r}")
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
