"""TGI's metrics, by TGI's names, as Prometheus text.

Owns what is counted, and by which names; how it is written is `observe.metrics.text`'s. Knows no HTTP and no
clock. TGI's counters carry no `_total`; it has no time-to-first-token and no KV utilisation metric, and its
request histograms move at completion only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

from extproc.core.series import Histogram
from extproc.observe.metrics.text import MetricSample, histogram, lines

_DURATION_BUCKETS: Final = tuple(0.00015 * 1.5**k for k in range(35))
# TGI has 1,024 linear ones here; powers of two say the same in eleven lines.
_BATCH_BUCKETS: Final = tuple(float(1 << k) for k in range(11))
_METHODS: Final = ("prefill", "decode")


class SimMetrics:
    """All series of one replica. Label sets are closed: failures by TGI's six reasons, two methods."""

    def __init__(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        inputs = [max_input_tokens / 100 * (k + 1) for k in range(100)]
        totals = [max_total_tokens / 100 * (k + 1) for k in range(100)]
        self.requests = 0
        self.success = 0
        self.failures = dict.fromkeys(
            ("overloaded", "validation", "template", "incomplete", "generation", "dropped"), 0
        )
        self.batches = dict.fromkeys(_METHODS, 0)
        self.concats = 0
        self.input_length = Histogram(inputs)
        self.max_new_tokens = Histogram(totals)
        self.generated_tokens = Histogram(totals)
        self.next_size = Histogram(_BATCH_BUCKETS)
        self._durations = {
            name: Histogram(_DURATION_BUCKETS)
            for name in (
                "duration",
                "validation_duration",
                "queue_duration",
                "inference_duration",
                "mean_time_per_token_duration",
            )
        }
        self._batch_durations = {
            kind: {method: Histogram(_DURATION_BUCKETS) for method in _METHODS}
            for kind in ("inference", "forward", "decode", "filter")
        }

    def completed(
        self,
        *,
        total_s: float,
        validation_s: float,
        queue_s: float,
        inference_s: float,
        generated_tokens: int,
    ) -> None:
        """One request ended well; seconds of wall time."""
        self.success += 1
        durations = self._durations
        durations["duration"].saw(total_s)
        durations["validation_duration"].saw(validation_s)
        durations["queue_duration"].saw(queue_s)
        durations["inference_duration"].saw(inference_s)
        durations["mean_time_per_token_duration"].saw(inference_s / generated_tokens)
        self.generated_tokens.saw(generated_tokens)

    def stepped(self, *, method: str, duration_s: float, admitted: int, concatenated: bool) -> None:
        """One engine step ended. Only the forward pass takes simulated time: the rest is observed as 0."""
        self.batches[method] += 1
        durations = self._batch_durations
        durations["inference"][method].saw(duration_s)
        durations["forward"][method].saw(duration_s)
        durations["decode"][method].saw(0.0)
        durations["filter"][method].saw(0.0)
        if admitted:
            self.next_size.saw(admitted)
            self.concats += concatenated

    def render(self, *, queue_size: int, batch_size: int, batch_max_tokens: int) -> str:
        """The exposition; the gauges are handed in by whoever holds the scheduler."""
        out: list[str] = []

        def told(name: str, kind: str, label: str, samples: Iterable[MetricSample]) -> None:
            out.extend(lines(f"tgi_{name}", kind, (label,) if label else (), samples))

        def scalar(name: str, kind: str, value: int) -> None:
            told(name, kind, "", [("", (), value)])

        def counts(name: str, label: str, table: Mapping[str, int]) -> None:
            told(name, "counter", label, [("", (each,), count) for each, count in table.items()])

        def times(name: str, label: str, table: Mapping[str, Histogram]) -> None:
            samples = (histogram((k,) if label else (), h.read(), h.bounds) for k, h in table.items())
            told(name, "histogram", label, chain.from_iterable(samples))

        scalar("request_count", "counter", self.requests)
        scalar("request_success", "counter", self.success)
        counts("request_failure", "err", {err: count for err, count in self.failures.items() if count})
        counts("batch_inference_count", "method", self.batches)
        counts("batch_inference_success", "method", self.batches)
        counts("batch_concat", "reason", {"chunking": self.concats} if self.concats else {})
        scalar("queue_size", "gauge", queue_size)
        scalar("batch_current_size", "gauge", batch_size)
        scalar("batch_current_max_tokens", "gauge", batch_max_tokens)
        for name, own in self._durations.items():
            times(f"request_{name}", "", {"": own})
        times("request_input_length", "", {"": self.input_length})
        times("request_max_new_tokens", "", {"": self.max_new_tokens})
        times("request_generated_tokens", "", {"": self.generated_tokens})
        times("batch_next_size", "", {"": self.next_size})
        for kind, methods in self._batch_durations.items():
            times(f"batch_{kind}_duration", "method", methods)
        return "".join(out)
