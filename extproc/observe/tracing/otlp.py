"""OTLP: spans and figures to a collector, with OpenTelemetry's SDK and exporters (the extra `otel`).

Owns every import of `opentelemetry`; whoever imports this module asks `extras.missing` first. Everything here
runs in threads of its own and may block for as long as an export may take.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extproc import __version__
from extproc.config.tracing import OpenTelemetry
from extproc.observe.tracing.semconv import Metric, Names
from extproc.observe.tracing.spans import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

SCOPE = "steersman"
#: The exporters log each failed attempt; one line in so long is enough.
LOG_EVERY_S = 30.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.sdk.metrics._internal.export",
)


class _Seldom(logging.Filter):
    """Lets one record pass in LOG_EVERY_S."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s = -LOG_EVERY_S

    def filter(self, record: logging.LogRecord) -> bool:
        del record
        now_s = time.monotonic()
        if now_s - self._passed_s < LOG_EVERY_S:
            return False
        self._passed_s = now_s
        return True


def _hush() -> None:
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Seldom) for each in logger.filters):
            logger.addFilter(_Seldom())


class Otlp:
    """One collector: `send` exports spans, `record` takes a metric's value, `close` ends both."""

    def __init__(
        self, settings: OpenTelemetry, names: Names, *, headers: Mapping[str, str], instance: str
    ) -> None:
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        _hush()
        self._settings = settings
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._resource = _resource(settings, instance)
        self._scope = InstrumentationScope(SCOPE, __version__, names.schema_url or None)
        self._spans: SpanExporter | None = self._span_exporter() if settings.traces else None
        self._provider: Any = None
        self._instruments: dict[str, Any] = {}
        if settings.metrics:
            self._meter(names)

    def send(self, spans: Sequence[Span]) -> bool:
        """Export spans; whether they arrived. Blocks for `timeout_ms` at the most."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._spans is None:
            return True
        return self._spans.export([self.readable(span) for span in spans]) is SpanExportResult.SUCCESS

    def record(self, metric: Metric, value: float, attributes: dict[str, str]) -> None:
        """Take a value; it leaves with the others at the next interval."""
        instrument = self._instruments.get(metric.name)
        if instrument is None:
            return
        if metric.buckets is None:
            instrument.add(value, attributes)
        else:
            instrument.record(value, attributes)

    def close(self, timeout_s: float) -> None:
        """Send the metrics once more and let go of the collector."""
        if self._provider is not None:
            try:
                self._provider.shutdown(timeout_millis=int(timeout_s * 1000))
            except Exception:  # noqa: BLE001 (a collector that does not answer must not hold up the end)
                logging.getLogger(__name__).warning("tracing: the last metrics did not reach the collector")
        if self._spans is not None:
            self._spans.shutdown()

    def _span_exporter(self) -> SpanExporter:
        settings, timeout_s = self._settings, self._settings.timeout_ms / 1000
        if settings.protocol == "http":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

            return Http(
                endpoint=_path(settings, "traces"),
                headers=self._headers,
                timeout=timeout_s,
                certificate_file=settings.ca_file,
            )
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(endpoint=settings.endpoint, headers=self._headers, timeout=timeout_s, **_tls(settings))

    def _metric_exporter(self) -> MetricExporter:
        settings, timeout_s = self._settings, self._settings.timeout_ms / 1000
        if settings.protocol == "http":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

            return Http(
                endpoint=_path(settings, "metrics"),
                headers=self._headers,
                timeout=timeout_s,
                certificate_file=settings.ca_file,
            )
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return Grpc(endpoint=settings.endpoint, headers=self._headers, timeout=timeout_s, **_tls(settings))

    def _meter(self, names: Names) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        # Of one metric at most 2,000 sets of label values, the SDK's own bound (law: named bounds).
        reader = PeriodicExportingMetricReader(
            self._metric_exporter(),
            export_interval_millis=self._settings.metrics_interval_s * 1000,
            export_timeout_millis=self._settings.timeout_ms,
        )
        self._provider = MeterProvider([reader], resource=self._resource, shutdown_on_exit=False)
        meter = self._provider.get_meter(SCOPE, __version__, names.schema_url or None)
        for metric in names.metrics:
            about = {"name": metric.name, "unit": metric.unit, "description": metric.description}
            self._instruments[metric.name] = (
                meter.create_counter(**about)
                if metric.buckets is None
                else meter.create_histogram(**about, explicit_bucket_boundaries_advisory=metric.buckets)
            )

    def readable(self, span: Span) -> ReadableSpan:
        """A span as exporters take it."""
        # The SDK's tracer would draw the ids itself and read the clock; an exporter takes what this gives.
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        flags = TraceFlags(TraceFlags.SAMPLED)
        state = TraceState.from_header([span.state]) if span.state else TraceState()
        parent = None
        if span.parent_id:
            parent = SpanContext(
                span.trace_id, span.parent_id, is_remote=True, trace_flags=flags, trace_state=state
            )
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, False, flags, state),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, about, at_ns) for name, at_ns, about in span.events],
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _path(settings: OpenTelemetry, signal: str) -> str:
    return f"{settings.endpoint.rstrip('/')}/v1/{signal}"


def _tls(settings: OpenTelemetry) -> dict[str, Any]:
    if settings.endpoint.startswith("http://"):
        return {"insecure": True}
    import grpc

    authority = None
    if settings.ca_file is not None:
        with open(settings.ca_file, "rb") as file:  # noqa: PTH123 (as short as it gets)
            authority = file.read()
    return {"credentials": grpc.ssl_channel_credentials(root_certificates=authority)}


def _resource(settings: OpenTelemetry, instance: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource.create(
        {
            "service.name": settings.service_name,
            "service.version": __version__,
            "service.instance.id": instance,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            **settings.resource,
        }
    )
