"""The GenAI metrics: what is measured of a request at its end. Runs in the pipeline's thread.

Only the service that decided measures, so that several add up. Label values are bounded by the
configuration's models, six operations and providers, and the errors that a status can name; endpoints are
no labels (Prometheus' figures have them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from extproc.core.outcome import End
from extproc.observe.tracing import propagation, semconv
from extproc.observe.tracing.request_trace import TraceEnd
from extproc.observe.tracing.semconv import Metric, Names
from extproc.observe.tracing.spans import error_of, inference

#: Records one value of a metric with its attributes.
Record = Callable[[Metric, float, dict[str, str]], None]


class SpanMetrics:
    """Measures requests; `engines` names the engine of each pool."""

    def __init__(self, names: Names, record: Record, *, engines: Mapping[str, str]) -> None:
        self.names = names
        self.engines = engines
        self._record = record

    def measure(self, note: TraceEnd) -> None:
        """Record a request that has ended."""
        if not note.here:
            return
        outcome, sample = note.outcome, note.sample
        reservation = outcome.reservation
        origin = note.request_trace if note.request_trace is not None else propagation.read(outcome.trace)
        operation = inference(origin.route_kind) if origin is not None else None
        if origin is None or operation is None:
            return
        about = {
            semconv.OPERATION: operation,
            self.names.provider: self.engines.get(reservation.pool, semconv.OURSELVES),
            semconv.REQUEST_MODEL: origin.asked or reservation.model,
            semconv.RESPONSE_MODEL: reservation.model,
        }
        error = error_of(outcome)
        failed = {**about, semconv.ERROR_TYPE: error} if error else about
        duration_s = outcome.duration_ns / 1e9
        output = outcome.output_tokens
        for metric in self.names.metrics:
            match metric.of:
                case "duration":
                    self._record(metric, duration_s, failed)
                case "ttft" if sample.ttft_ms is not None and outcome.end is End.OK:
                    self._record(metric, sample.ttft_ms / 1e3, about)
                case "tpot" if sample.tpot_ms is not None:
                    self._record(metric, sample.tpot_ms / 1e3, about)
                case "tokens":
                    for which, count in (("input", outcome.prompt_tokens), ("output", output)):
                        if count is not None:
                            self._record(metric, count, {**about, semconv.WHICH_TOKENS: which})
                case "input" | "output":
                    count = outcome.prompt_tokens if metric.of == "input" else output
                    # Engines do not say of which kind tokens are; and no count is a zero, by the conventions.
                    self._record(metric, count or 0, {**about, semconv.MODALITY: "unknown"})
                case _:
                    pass
