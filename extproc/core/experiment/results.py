"""What became of the requests of one arm: plain figures, and the three that are tested.

Attained: the first token and each further one came within the class's targets. An answer that is not
streamed shows neither, so it attains when the whole came within the sum of both; a stream whose tokens nobody
counted is judged by its first alone. What was refused, shed or failed is missed. A client that left says
nothing, unless its first token had come, or was overdue already.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any

from extproc.core.experiment.sequence import ConfidenceSequence, Mean
from extproc.core.outcome import End, Outcome
from extproc.core.slo import ClassSpec

MS_NS = 1_000_000
#: Times to first token count as at most this in the mean with bounds; quantiles and the plain mean do not.
TTFT_CAP_MS = 10_000.0
#: Means with bounds in each arm: attainment, errors, time to first token.
TESTED = 3
#: Width of a bucket of times: quantiles are right within 2.5 %.
BUCKET = log(1.05)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request says; None where it says nothing."""

    attained: bool | None
    error: bool | None
    ttft_ms: float | None = None


def sample_of(outcome: Outcome, spec: ClassSpec) -> Sample:
    """What a request's end says, by its class's targets."""
    ttft = outcome.ttft_ns
    target_ns = spec.target_ns(outcome.reservation.input_tokens)
    failed = outcome.end is End.ERROR or outcome.refused
    ttft_ms = ttft / MS_NS if ttft is not None else None
    if failed or outcome.end is End.REFUSED:
        return Sample(False, failed)
    if outcome.end is End.CLIENT_GONE:
        if ttft is not None:
            return Sample(ttft <= target_ns, False, ttft_ms)
        return Sample(False if outcome.duration_ns > target_ns else None, None)
    further = max(0, tokens_each(outcome) - 1)
    if ttft is None:
        return Sample(outcome.duration_ns <= target_ns + further * spec.tpot_ns, False)
    in_time = ttft <= target_ns
    if outcome.output_tokens is not None:
        rest_ns = max(0, outcome.duration_ns - ttft)
        in_time = in_time and rest_ns <= further * spec.tpot_ns + _SLACK_NS
    return Sample(in_time, False, ttft_ms)


#: What ends a stream after its last token takes a moment too.
_SLACK_NS = 5 * MS_NS


def tokens_each(outcome: Outcome) -> int:
    """Tokens of one of the request's sequences, as counted, else as predicted."""
    tokens = outcome.output_tokens
    if tokens is None:
        tokens = outcome.reservation.output_tokens
    return tokens // max(1, outcome.reservation.permits)


class LatencySeries:
    """A mean and quantiles of milliseconds, in buckets that grow by a twentieth."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.buckets: dict[int, int] = {}

    def add(self, ms: float) -> None:
        """Take one time; less than a microsecond counts as one."""
        self.count += 1
        self.total += ms
        at = int(log(max(ms, 1e-3)) // BUCKET)
        self.buckets[at] = self.buckets.get(at, 0) + 1

    def quantile(self, share: float) -> float | None:
        """The nearest-rank quantile, at its bucket's middle; None without any."""
        left = share * self.count
        for at in sorted(self.buckets):
            left -= self.buckets[at]
            if left <= 1e-9:
                return exp((at + 0.5) * BUCKET)
        return None

    def view(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "mean": _rounded(self.total / self.count) if self.count else None,
            "p50": _rounded(self.quantile(0.5)),
            "p90": _rounded(self.quantile(0.9)),
            "count": self.count,
        }


class ArmResults:
    """One arm's figures. `attainment`, `errors` and `ttft` take requests, or means of units (units.py)."""

    __slots__ = (
        "attainment",
        "client_gone",
        "error",
        "errors",
        "held",
        "ok",
        "output_tokens",
        "prompt_tokens",
        "refused",
        "requests",
        "shed",
        "tpot",
        "ttft",
        "ttft_times",
        "units",
    )

    def __init__(self) -> None:
        self.requests = self.ok = self.error = self.refused = self.shed = self.client_gone = 0
        self.units = 0
        self.prompt_tokens = self.output_tokens = 0
        self.attainment, self.errors, self.ttft = Mean(), Mean(), Mean()
        self.ttft_times, self.tpot, self.held = LatencySeries(), LatencySeries(), LatencySeries()

    def ended(self, outcome: Outcome) -> None:
        """Count a request's end in the plain figures."""
        self.requests += 1
        if outcome.refused or outcome.end is End.ERROR:
            self.error += 1
        elif outcome.end is End.OK:
            self.ok += 1
        elif outcome.end is End.REFUSED:
            self.refused += 1
        else:
            self.client_gone += 1
        self.prompt_tokens += outcome.prompt_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        self.held.add(outcome.reservation.held_ms)
        if outcome.ttft_ns is not None:
            self.ttft_times.add(outcome.ttft_ns / MS_NS)
            tokens = tokens_each(outcome)
            if outcome.end is End.OK and outcome.output_tokens is not None and tokens > 1:
                self.tpot.add(max(0, outcome.duration_ns - outcome.ttft_ns) / MS_NS / (tokens - 1))

    def turned_away(self, waited_ms: float) -> None:
        """Count a request that we refused after a wait."""
        self.requests += 1
        self.shed += 1
        self.held.add(waited_ms)

    def test(self, attained: float | None, error: float | None, ttft_ms: float | None) -> None:
        """Take a request, or a unit's means, into what is tested."""
        self.units += 1
        if attained is not None:
            self.attainment.add(attained)
        if error is not None:
            self.errors.add(error)
        if ttft_ms is not None:
            self.ttft.add(ttft_ms / TTFT_CAP_MS)

    def view(self, alpha: float) -> dict[str, Any]:
        """As plain values; every interval is wrong, ever, with probability `alpha` at most."""
        ttft = self.ttft.interval(alpha)
        return {
            "requests": self.requests,
            "units": self.units,
            "ok": self.ok,
            "errors": self.error,
            "refused": self.refused,
            "shed": self.shed,
            "client_gone": self.client_gone,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "attainment": interval_view(self.attainment.interval(alpha)),
            "error_share": interval_view(self.errors.interval(alpha)),
            "ttft_ms": {
                **self.ttft_times.view(),
                "tested": interval_view(ttft, scale=TTFT_CAP_MS, digits=1),
            },
            "tpot_ms": self.tpot.view(),
            "held_ms": self.held.view(),
        }


def interval_view(interval: ConfidenceSequence, *, scale: float = 1.0, digits: int = 4) -> dict[str, Any]:
    """As plain values; the mean is None where nothing was seen."""
    return {
        "mean": round(interval.mean * scale, digits) if interval.count else None,
        "low": round(interval.low * scale, digits),
        "high": round(interval.high * scale, digits),
        "count": interval.count,
    }


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 2)
