"""The last minutes by the second, and the last decisions: what the page's charts and its stream show.

Owns short memories, all bounded. Called on the request path: an event is a count and an append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from extproc.core.decide import RoutingRequest
from extproc.core.events import Observer, Settled
from extproc.core.outcome import End, Reject, Routed
from extproc.observe.stats import percentile_ms

S_NS = 1_000_000_000
#: Seconds that are remembered.
POINTS_KEPT = 900
#: Seconds over which percentiles are taken, and times kept of each: the last ones of a busy second.
SPAN_S, SAMPLES_MAX = 10, 200
#: Decisions remembered; what comes faster than the stream shows is counted.
DECISIONS_KEPT = 500


class _Second:
    """What happened within one."""

    __slots__ = ("at", "decide_ns", "errors", "gone", "ok", "placed", "refused", "tokens", "ttft_ns")

    def __init__(self, at: int) -> None:
        self.at = at
        self.placed = self.refused = self.ok = self.errors = self.gone = self.tokens = 0
        self.ttft_ns: deque[int] = deque(maxlen=SAMPLES_MAX)
        self.decide_ns: deque[int] = deque(maxlen=SAMPLES_MAX)


#: What became of a request: number, when (clock), kind, whose, and what was decided.
Entry = tuple[int, int, str, str, RoutingRequest | None, Routed | Reject | None, str]


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
        self.entries: deque[Entry] = deque(maxlen=DECISIONS_KEPT)
        #: Entries since the start: the number of the last one.
        self.count = 0

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """Count it, and keep the decision."""
        self._at(now_ns).placed += 1
        self._enter(now_ns, "placed", routing.tenant.name, routing, routed)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """Count it, and keep the refusal."""
        self._at(now_ns).refused += 1
        self._enter(now_ns, "refused", routing.tenant.name, routing, reject)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """The same for what never was a case."""
        self._at(now_ns).refused += 1
        self._enter(now_ns, "refused", tenant, None, reject)

    def left(self, reservation_id: str, routing: RoutingRequest | None, *, now_ns: int) -> None:
        """Keep that a client left before it was placed."""
        self._enter(now_ns, "left", routing.tenant.name if routing else "", routing, None, reservation_id)

    def decided(self, elapsed_ns: int, *, now_ns: int) -> None:
        """Keep how long it took."""
        self._at(now_ns).decide_ns.append(elapsed_ns)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """Count the end of one's own."""
        if not event.here:
            return
        outcome = event.outcome
        second = self._at(now_ns)
        if outcome.refused or outcome.end is End.ERROR:
            second.errors += 1
        elif outcome.end is End.CLIENT_GONE:
            second.gone += 1
        else:
            second.ok += 1
        second.tokens += outcome.output_tokens or 0
        if outcome.ttft_ns is not None:
            second.ttft_ns.append(outcome.ttft_ns)

    def step(self, *, now_ns: int) -> list[dict[str, Any]]:
        """Reckon with the seconds that have passed; the points that this made, SPAN_S at the most."""
        self._at(now_ns)
        made = [self._close(second, now_ns) for second in self._over]
        self._over.clear()
        return made

    def after(self, number: int, *, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The last entries after a number, oldest first, as plain values, and how many are left out."""
        new = min(self.count - number, len(self.entries))
        shown = min(new, limit)
        first = len(self.entries) - shown
        found = [self._plain(self.entries[i]) for i in range(first, len(self.entries))]
        return found, self.count - number - shown

    def _at(self, now_ns: int) -> _Second:
        second = now_ns // S_NS
        if second > self._second.at:
            self._over.append(self._second)
            self._second = _Second(second)
        return self._second

    def _enter(
        self,
        now_ns: int,
        kind: str,
        tenant: str,
        routing: RoutingRequest | None,
        what: Routed | Reject | None,
        name: str = "",
    ) -> None:
        self.count += 1
        self.entries.append((self.count, now_ns, kind, tenant, routing, what, name))

    def _close(self, second: _Second, now_ns: int) -> dict[str, Any]:
        self._seconds.append(second)
        recent = [each for each in self._seconds if each.at > second.at - SPAN_S]
        ttft = sorted(time for each in recent for time in each.ttft_ns)
        decide = sorted(time for each in recent for time in each.decide_ns)
        in_flight, held = self._gauge()
        point = {
            "at": round(self._wall() - (now_ns / S_NS - second.at), 0),
            "placed": second.placed,
            "refused": second.refused,
            "ok": second.ok,
            "errors": second.errors,
            "client_gone": second.gone,
            "output_tokens": second.tokens,
            "ttft_p50_ms": percentile_ms(ttft, 0.50),
            "ttft_p99_ms": percentile_ms(ttft, 0.99),
            "decision_p50_ms": _fine_ms(decide, 0.50),
            "decision_p99_ms": _fine_ms(decide, 0.99),
            "in_flight": in_flight,
            "held": held,
        }
        self.points.append(point)
        return point

    def _plain(self, entry: Entry) -> dict[str, Any]:
        number, at_ns, kind, tenant, routing, what, name = entry
        plain: dict[str, Any] = {
            "number": number,
            "at": round(self._wall() - (self._clock() - at_ns) / S_NS, 3),
            "kind": kind,
            "id": routing.id if routing is not None else name,
            "tenant": tenant,
            "class": routing.tenant.service_class if routing is not None else "",
            "model": routing.model if routing is not None else "",
            "pool": routing.pool if routing is not None else "",
        }
        if isinstance(what, Routed):
            reservation = what.reservation
            plain |= {
                "endpoint": reservation.address,
                "spares": list(what.addresses[1:]),
                "strategy": what.reason.strategy,
                "arm": reservation.arm,
                "degraded": what.reason.degraded,
                "input_tokens": reservation.input_tokens,
                "cached_tokens": reservation.cached_tokens,
                "output_tokens": reservation.output_tokens,
                "held_ms": round(reservation.held_ms, 1),
                "ttft_ms": round(reservation.ttft_ms, 1),
                "reason": what.reason.text(),
            }
        elif isinstance(what, Reject):
            plain |= {"status": what.status, "code": what.code, "reason": what.message}
        else:
            plain |= {"reason": "the client left before it was placed"}
        return plain


def _fine_ms(times_ns: list[int], share: float) -> float | None:
    """The nearest-rank percentile in milliseconds, to the microsecond."""
    if not times_ns:
        return None
    return round(times_ns[min(len(times_ns) - 1, int(share * len(times_ns)))] / 1e6, 3)
