"""What became of the requests of one arm: plain figures, and the three that are tested.

What a request says of its arm is `slo.Sample`.
"""

from __future__ import annotations

from typing import Any

from extproc.core.experiment.sequence import ConfidenceSequence, Mean
from extproc.core.outcome import End, Outcome
from extproc.core.series import Sketch
from extproc.core.slo import Sample

#: Times to first token count as at most this in the mean with bounds; quantiles and the plain mean do not.
TTFT_CAP_MS = 10_000.0
#: Means with bounds in each arm: attainment, errors, time to first token.
TESTED = 3


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
        self.ttft_times, self.tpot, self.held = Sketch(), Sketch(), Sketch()

    def ended(self, outcome: Outcome, sample: Sample) -> None:
        """Count a request's end in the plain figures."""
        self.requests += 1
        if sample.error:
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
        if sample.ttft_ms is not None:
            self.ttft_times.add(sample.ttft_ms)
        if sample.tpot_ms is not None:
            self.tpot.add(sample.tpot_ms)

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
                **_times(self.ttft_times),
                "tested": interval_view(ttft, scale=TTFT_CAP_MS, digits=1),
            },
            "tpot_ms": _times(self.tpot),
            "held_ms": _times(self.held),
        }


def interval_view(interval: ConfidenceSequence, *, scale: float = 1.0, digits: int = 4) -> dict[str, Any]:
    """As plain values; the mean is None where nothing was seen."""
    return {
        "mean": round(interval.mean * scale, digits) if interval.count else None,
        "low": round(interval.low * scale, digits),
        "high": round(interval.high * scale, digits),
        "count": interval.count,
    }


def _times(series: Sketch) -> dict[str, Any]:
    mean, (p50, p90) = series.mean, series.quantiles((0.5, 0.9), digits=2)
    return {"mean": mean if mean is None else round(mean, 2), "p50": p50, "p90": p90, "count": series.count}
