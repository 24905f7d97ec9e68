"""What became of the requests of one arm: plain figures, and the three that are tested."""

from __future__ import annotations

from math import exp, log
from typing import Any

from extproc.core.experiment.sequence import ConfidenceSequence, Mean
from extproc.core.load import MS_NS
from extproc.core.outcome import End, Outcome
from extproc.core.slo import tokens_each

#: Times to first token count as at most this in the mean with bounds; quantiles and the plain mean do not.
TTFT_CAP_MS = 10_000.0
#: Means with bounds in each arm: attainment, errors, time to first token.
TESTED = 3
#: Width of a bucket of times: quantiles are right within 2.5 %.
BUCKET = log(1.05)


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
