"""TGI's metrics, by TGI's names, as Prometheus text.

Owns counting and rendering. Knows no HTTP and no clock. TGI's counters carry no `_total`; it has no
time-to-first-token and no KV utilisation metric, and its request histograms move at completion only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_DURATION_BUCKETS: Final = tuple(0.00015 * 1.5**k for k in range(35))
# TGI has 1,024 linear ones here; powers of two say the same in eleven lines.
_BATCH_BUCKETS: Final = tuple(float(1 << k) for k in range(11))
_METHODS: Final = ("prefill", "decode")


class SimHistogram:
    """Cumulative buckets, a sum and a count."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """Its exposition lines; `labels` like `method="decode"`."""
        comma = "," if labels else ""
        out, running = [], 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            running += count
            out.append(f'{name}_bucket{{{labels}{comma}le="{bound}"}} {running}')
        braces = f"{{{labels}}}" if labels else ""
        out.append(f"{name}_sum{braces} {self._total!r}")
        out.append(f"{name}_count{braces} {running}")
        return out


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
        self.input_length = SimHistogram(inputs)
        self.max_new_tokens = SimHistogram(totals)
        self.generated_tokens = SimHistogram(totals)
        self.next_size = SimHistogram(_BATCH_BUCKETS)
        self._durations = {
            name: SimHistogram(_DURATION_BUCKETS)
            for name in (
                "duration",
                "validation_duration",
                "queue_duration",
                "inference_duration",
                "mean_time_per_token_duration",
            )
        }
        self._batch_durations = {
            kind: {method: SimHistogram(_DURATION_BUCKETS) for method in _METHODS}
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
        durations["duration"].observe(total_s)
        durations["validation_duration"].observe(validation_s)
        durations["queue_duration"].observe(queue_s)
        durations["inference_duration"].observe(inference_s)
        durations["mean_time_per_token_duration"].observe(inference_s / generated_tokens)
        self.generated_tokens.observe(generated_tokens)

    def stepped(self, *, method: str, duration_s: float, admitted: int, concatenated: bool) -> None:
        """One engine step ended. Only the forward pass takes simulated time: the rest is observed as 0."""
        self.batches[method] += 1
        durations = self._batch_durations
        durations["inference"][method].observe(duration_s)
        durations["forward"][method].observe(duration_s)
        durations["decode"][method].observe(0.0)
        durations["filter"][method].observe(0.0)
        if admitted:
            self.next_size.observe(admitted)
            self.concats += concatenated

    def render(self, *, queue_size: int, batch_size: int, batch_max_tokens: int) -> str:
        """The exposition; the gauges are handed in by whoever holds the scheduler."""
        out: list[str] = []

        def scalar(kind: str, name: str, *samples: tuple[str, float]) -> None:
            out.append(f"# TYPE {name} {kind}")
            out.extend(f"{name}{labels} {value}" for labels, value in samples)

        scalar("counter", "tgi_request_count", ("", self.requests))
        scalar("counter", "tgi_request_success", ("", self.success))
        failures = [(f'{{err="{err}"}}', count) for err, count in self.failures.items() if count]
        if failures:
            scalar("counter", "tgi_request_failure", *failures)
        by_method = [(f'{{method="{method}"}}', count) for method, count in self.batches.items()]
        scalar("counter", "tgi_batch_inference_count", *by_method)
        scalar("counter", "tgi_batch_inference_success", *by_method)
        if self.concats:
            scalar("counter", "tgi_batch_concat", ('{reason="chunking"}', self.concats))
        scalar("gauge", "tgi_queue_size", ("", queue_size))
        scalar("gauge", "tgi_batch_current_size", ("", batch_size))
        scalar("gauge", "tgi_batch_current_max_tokens", ("", batch_max_tokens))
        for name, histogram in self._durations.items():
            out.append(f"# TYPE tgi_request_{name} histogram")
            out.extend(histogram.lines(f"tgi_request_{name}"))
        for name, histogram in (
            ("tgi_request_input_length", self.input_length),
            ("tgi_request_max_new_tokens", self.max_new_tokens),
            ("tgi_request_generated_tokens", self.generated_tokens),
            ("tgi_batch_next_size", self.next_size),
        ):
            out.append(f"# TYPE {name} histogram")
            out.extend(histogram.lines(name))
        for kind, methods in self._batch_durations.items():
            out.append(f"# TYPE tgi_batch_{kind}_duration histogram")
            for method, histogram in methods.items():
                out.extend(histogram.lines(f"tgi_batch_{kind}_duration", f'method="{method}"'))
        return "\n".join(out) + "\n"
