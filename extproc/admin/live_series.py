"""The last minutes by the second: what the page's charts show.

Owns short memories, all bounded. Called on the request path: an event is a count, and a value in a sketch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import End, Reject, Routed
from extproc.core.series import Sketch

S_NS = 1_000_000_000
#: Seconds that are remembered.
POINTS_KEPT = 900
#: Seconds over which percentiles are taken.
SPAN_S = 10
SHARES = (0.5, 0.99)


class _Second:
    """What happened within one."""

    __slots__ = ("at", "decide_ms", "errors", "gone", "ok", "placed", "refused", "tokens", "ttft_ms")

    def __init__(self, at: int) -> None:
        self.at = at
        self.placed = self.refused = self.ok = self.errors = self.gone = self.tokens = 0
        self.ttft_ms, self.decide_ms = Sketch(), Sketch()


class LiveSeries(Observer):
    """Hears every request. `gauge` gives requests in flight and held."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        wall_clock: Callable[[], float],
        gauge: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._clock, self._wall, self._gauge = clock, wall_clock, gauge
        self._second = _Second(clock() // S_NS)
        #: Seconds that are over and not yet reckoned with, and the last that are.
        self._over: deque[_Second] = deque(maxlen=SPAN_S)
        self._seconds: deque[_Second] = deque(maxlen=SPAN_S)
        self.points: deque[dict[str, Any]] = deque(maxlen=POINTS_KEPT)

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:  # noqa: ARG002
        """Count it."""
        self._at(now_ns).placed += 1

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """Count it."""
        self._at(now_ns).refused += 1

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:  # noqa: ARG002
        """Count what was never routed too."""
        self._at(now_ns).refused += 1

    def decided(self, elapsed_ns: int, *, now_ns: int) -> None:
        """Keep how long it took."""
        self._at(now_ns).decide_ms.add(elapsed_ns / 1e6)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """Count the end of one's own."""
        if not event.here:
            return
        outcome, sample = event.outcome, event.sample
        second = self._at(now_ns)
        if outcome.refused or outcome.end is End.ERROR:
            second.errors += 1
        elif outcome.end is End.CLIENT_GONE:
            second.gone += 1
        else:
            second.ok += 1
        second.tokens += outcome.output_tokens or 0
        if sample.ttft_ms is not None:
            second.ttft_ms.add(sample.ttft_ms)

    def step(self, *, now_ns: int) -> list[dict[str, Any]]:
        """Reckon with the seconds that have passed; the points that this made, SPAN_S at the most."""
        self._at(now_ns)
        made = [self._close(second, now_ns) for second in self._over]
        self._over.clear()
        return made

    def _at(self, now_ns: int) -> _Second:
        second = now_ns // S_NS
        if second > self._second.at:
            self._over.append(self._second)
            self._second = _Second(second)
        return self._second

    def _close(self, second: _Second, now_ns: int) -> dict[str, Any]:
        self._seconds.append(second)
        recent = [each for each in self._seconds if each.at > second.at - SPAN_S]
        ttft, decide = Sketch(), Sketch()
        for each in recent:
            ttft.merge(each.ttft_ms)
            decide.merge(each.decide_ms)
        (ttft_p50, ttft_p99), (decide_p50, decide_p99) = ttft.quantiles(SHARES, 1), decide.quantiles(SHARES)
        in_flight, held = self._gauge()
        point = {
            "at": round(self._wall() - (now_ns / S_NS - second.at), 0),
            "placed": second.placed,
            "refused": second.refused,
            "ok": second.ok,
            "errors": second.errors,
            "client_gone": second.gone,
            "output_tokens": second.tokens,
            "ttft_p50_ms": ttft_p50,
            "ttft_p99_ms": ttft_p99,
            "decision_p50_ms": decide_p50,
            "decision_p99_ms": decide_p99,
            "in_flight": in_flight,
            "held": held,
        }
        self.points.append(point)
        return point
