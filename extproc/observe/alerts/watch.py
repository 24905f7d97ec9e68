"""What alerts look at: an Observer that adds requests up by fleet, pool, class and tenant.

Owns the columns, the scopes and their bounds, and how a windowed signal is read. Decides nothing and knows no
rule. Each event costs a few microseconds: additions to four rows of totals.

Every service of several hears of every request's end, and of its own refusals and placements alone: so error
rates, latencies and attainment are the whole fleet's at each of them, refusals and holds each one's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from extproc.config.signals import CODES, SIGNALS
from extproc.core.decide import RoutingRequest
from extproc.core.errors import wanted_room
from extproc.core.events import Observer, Settled
from extproc.core.outcome import End, Reject, Reservation, Routed
from extproc.core.series import Scale, binned, quantile
from extproc.core.slo import ClassSpec
from extproc.observe.alerts.history import RunningTotals, Tiers

SECOND: Final = 1_000_000_000
#: Columns of the counts.
OK, ERROR, TURNED, GONE, ASKED, REFUSED, INPUT, OUTPUT, JUDGED, MET = range(10)
CODE: Final = 10
COLUMNS: Final = CODE + len(CODES)
_CODE = {code: CODE + i for i, code in enumerate(CODES)}
_OTHER = _CODE["other"]
_ENDS = {End.OK: OK, End.ERROR: ERROR, End.REFUSED: TURNED, End.CLIENT_GONE: GONE}

#: Times are in the bins of a coarse sketch, side by side, so that a window is a difference of two rows: from
#: 1 ms (and less) to about five minutes (and more).
SCALE: Final = Scale(0.09)
BUCKETS: Final = 70
TTFT, TPOT, HOLD = 0, BUCKETS, 2 * BUCKETS
_FIRST: Final = {"ttft": TTFT, "tpot": TPOT, "hold": HOLD}

#: Rows kept: two minutes by the second, an hour by ten, three days by five minutes.
COUNT_TIERS: Final[Tiers] = ((1, 130), (10, 400), (300, 900))
TIME_TIERS: Final[Tiers] = ((1, 130), (10, 800))
#: Of a tenant: two minutes by five seconds, two hours by two minutes.
TENANT_TIERS: Final[Tiers] = ((5, 26), (120, 62))
#: Times of a kind kept of one tenant: its quantiles are of its last so many at the most.
SAMPLES: Final = 64
#: Requests in flight whose first token is awaited.
OPEN_MAX: Final = 100_000
#: A tenant that was idle for so long may give its place to another.
IDLE_S: Final = 60

#: What is looked at: (kind, name), such as ("pool", "chat"); ("fleet", "") is everything.
Key = tuple[str, str]
FLEET: Final[Key] = ("fleet", "")


def bucket_of(ms: float) -> int:
    """Where a time belongs."""
    return min(SCALE.bin_of(ms), BUCKETS - 1) if ms > 1.0 else 0


class RecentTimes:
    """A tenant's last times, of each kind: when, and how long."""

    __slots__ = ("_at", "_ms", "_next")

    def __init__(self) -> None:
        kinds = len(_FIRST)
        self._at = array("q", bytes(8 * SAMPLES * kinds))
        self._ms = array("f", bytes(4 * SAMPLES * kinds))
        self._next = [0] * kinds

    def add(self, first: int, ms: float, second: int) -> None:
        """Take one; the oldest of its kind goes."""
        kind = first // BUCKETS
        at = kind * SAMPLES + self._next[kind] % SAMPLES
        self._at[at], self._ms[at] = second, ms
        self._next[kind] += 1

    def within(self, first: int, since: int, until: int) -> list[float]:
        """Those of a kind after one second and until another, ascending."""
        kind = first // BUCKETS
        begin = kind * SAMPLES
        end = begin + min(SAMPLES, self._next[kind])
        return sorted(self._ms[i] for i in range(begin, end) if since < self._at[i] <= until)


class ScopeFigures:
    """What is known of one scope."""

    __slots__ = ("begun", "counts", "samples", "times")

    def __init__(self, *, tenant: bool) -> None:
        #: The second of the first event; -1 before it.
        self.begun = -1
        self.counts = RunningTotals(COLUMNS, TENANT_TIERS if tenant else COUNT_TIERS)
        self.times = None if tenant else RunningTotals(3 * BUCKETS, TIME_TIERS)
        self.samples = RecentTimes() if tenant else None

    def took(self, first: int, ms: float, bucket: int, second: int) -> None:
        """Count a time, of which `bucket_of` has said where it belongs."""
        if self.times is not None:
            self.times.at(second)[first + bucket] += 1.0
        elif self.samples is not None:
            self.samples.add(first, ms, second)

    def counted(self, since: int, until: int) -> list[float]:
        """What each column grew by after one second and until another."""
        now = self.counts.before(until)
        if now is None:
            return [0.0] * COLUMNS
        base = self.counts.before(since)
        return list(now) if base is None else [a - b for a, b in zip(now, base, strict=True)]

    def quantile(self, first: int, share: float, since: int, until: int) -> tuple[float | None, int]:
        """A quantile in milliseconds (within a tenth), and of how many."""
        if self.samples is not None:
            values = self.samples.within(first, since, until)
            return (quantile(values, share) if values else None), len(values)
        assert self.times is not None
        now, base = self.times.before(until), self.times.before(since)
        if now is None:
            return None, 0
        end = first + BUCKETS
        grown = list(now[first:end])
        if base is not None:
            grown = [a - b for a, b in zip(grown, base[first:end], strict=True)]
        count = sum(grown)
        if count < 0.5:
            return None, 0
        (value,) = binned(list(enumerate(grown)), (share,), lambda at: SCALE.value(at) if at else 0.0)
        return value, int(count)


class AlertWatch(Observer):
    """The figures of all scopes. `tenants_max` bounds the tenants with figures of their own."""

    def __init__(self, classes: Iterable[ClassSpec], *, tenants_max: int) -> None:
        self.tenants_max = tenants_max
        self.figures: dict[Key, ScopeFigures] = {FLEET: ScopeFigures(tenant=False)}
        #: Allowed shares of misses by class, for slo_burn.
        self.budgets: dict[str, float] = {}
        #: Tenants with figures of their own.
        self.tenants = 0
        #: Requests whose tenant found no place.
        self.tenants_left_out = 0
        self._classes: dict[str, ClassSpec] = {}
        #: Of a request in flight: when it came and whose it is; None once its first token was seen.
        self._open: dict[str, tuple[int, list[ScopeFigures]] | None] = {}
        self._sought = -1
        self.apply(classes)

    def apply(self, classes: Iterable[ClassSpec], *, pools: Iterable[str] = ()) -> None:
        """New classes and pools; the figures of those that are no more are forgotten."""
        self._classes = {each.name: each for each in classes}
        known = {("class", name) for name in self._classes} | {("pool", name) for name in pools}
        for key in [key for key in self.figures if key[0] in ("class", "pool") and key not in known]:
            del self.figures[key]
        for key in known:
            self.figures.setdefault(key, ScopeFigures(tenant=False))

    def scopes(self, kind: str) -> list[Key]:
        """What is known of a kind."""
        return [FLEET] if kind == "fleet" else [key for key in self.figures if key[0] == kind]

    # What is heard of requests.

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """It was sent to an endpoint."""
        second, reservation = now_ns // SECOND, routed.reservation
        found = self._of(reservation.tenant, reservation.pool, reservation.service_class, second)
        held_ms = reservation.held_ms
        bucket = bucket_of(held_ms)
        for each in found:
            each.counts.at(second)[ASKED] += 1.0
            each.took(HOLD, held_ms, bucket, second)
        if len(self._open) < OPEN_MAX:
            self._open[reservation.id] = (routing.arrived_ns or now_ns, found)

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """It was turned away."""
        tenant, missed = routing.tenant, routing.permits > 0 and wanted_room(reject.code)
        self._refused(tenant.name, routing.pool, tenant.service_class, reject.code, missed, now_ns)

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """It was refused before it was a case."""
        self._refused(tenant, "", "", reject.code, bool(tenant) and wanted_room(reject.code), now_ns)

    def left(
        self, reservation_id: str, routing: RoutingRequest | None, *, gave_up: bool, now_ns: int
    ) -> None:
        """Its client left before it had an endpoint."""
        self._open.pop(reservation_id, None)
        if routing is not None and gave_up:
            tenant, second = routing.tenant, now_ns // SECOND
            for each in self._of(tenant.name, routing.pool, tenant.service_class, second):
                each.counts.at(second)[JUDGED] += 1.0

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:  # noqa: ARG002 (an observer's)
        """Its end never came: what it was nobody knows."""
        self._open.pop(reservation.id, None)

    def first_token(self, reservation_id: str, *, refused: bool, now_ns: int) -> None:
        """Its first token came: known long before a stream's end."""
        entry = self._open.get(reservation_id)
        if entry is not None and not refused:
            self._open[reservation_id] = None
            second, ms = now_ns // SECOND, max(0, now_ns - entry[0]) / 1e6
            bucket = bucket_of(ms)
            for each in entry[1]:
                each.took(TTFT, ms, bucket, second)

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """It has ended."""
        outcome = event.outcome
        second, reservation = now_ns // SECOND, outcome.reservation
        sample = event.sample
        end = ERROR if sample.error else _ENDS[outcome.end]
        heard = self._open.pop(reservation.id, _UNHEARD) is None
        took: list[tuple[int, float, int]] = []
        if (ms := sample.ttft_ms) is not None and not heard:
            took.append((TTFT, ms, bucket_of(ms)))
        if (ms := sample.tpot_ms) is not None:
            took.append((TPOT, ms, bucket_of(ms)))
        read, written = outcome.prompt_tokens or 0, outcome.output_tokens or 0
        for each in self._of(reservation.tenant, reservation.pool, reservation.service_class, second):
            totals = each.counts.at(second)
            totals[end] += 1.0
            totals[INPUT] += read
            totals[OUTPUT] += written
            if sample.attained is not None:
                totals[JUDGED] += 1.0
                totals[MET] += sample.attained
            for first, ms, bucket in took:
                each.took(first, ms, bucket, second)

    # How signals are read.

    def windowed(
        self, signal: str, key: Key, since: int, until: int, *, code: str | None = None
    ) -> tuple[float | None, int]:
        """A windowed signal's value after one second and until another, None where nothing says it.

        Beside it, of how many requests it is.
        """
        figures = self.figures.get(key)
        if figures is None:
            return None, 0
        spec = SIGNALS[signal]
        if spec.times:
            return figures.quantile(_FIRST[spec.times], spec.quantile, since, until)
        grown = figures.counted(since, until)
        if signal in ("error_rate", "refusal_rate", "slo_attainment", "slo_burn"):
            part, whole = _share(signal, grown, code)
            value = part / whole if whole else None
            if signal == "slo_burn" and value is not None:
                value = (1.0 - value) / self.budgets.get(key[1], 1.0)
            return value, int(whole)
        requests = sum(grown[each] for each in (OK, ERROR, TURNED, GONE, REFUSED))
        amount = {"input_tokens_per_s": grown[INPUT], "output_tokens_per_s": grown[OUTPUT]}.get(
            signal, requests
        )
        return amount / max(1, until - max(since, figures.begun - 1)), int(requests)

    def covered_s(self, key: Key, since: int, until: int) -> int:
        """For how much of a span the scope was known."""
        figures = self.figures.get(key)
        if figures is None or figures.begun < 0:
            return 0
        return max(0, until - max(since, figures.begun - 1))

    def _of(self, tenant: str, pool: str, klass: str, second: int) -> list[ScopeFigures]:
        figures = self.figures
        found = [figures[FLEET]]
        if (each := figures.get(("pool", pool))) is not None:
            found.append(each)
        if (each := figures.get(("class", klass))) is not None:
            found.append(each)
        each = figures.get(("tenant", tenant))
        if each is None and tenant:
            each = self._new_tenant(tenant, second)
        if each is not None:
            found.append(each)
        for each in found:
            if each.begun < 0:
                each.begun = second
        return found

    def _new_tenant(self, tenant: str, second: int) -> ScopeFigures | None:
        """A place for a tenant, perhaps of one that is idle; sought once a second where there is none."""
        if self.tenants >= self.tenants_max:
            if second == self._sought:
                self.tenants_left_out += 1
                return None
            self._sought = second
            theirs = [(each.counts.second, key) for key, each in self.figures.items() if key[0] == "tenant"]
            last, idle = min(theirs)
            if last > second - IDLE_S:
                self.tenants_left_out += 1
                return None
            del self.figures[idle]
            self.tenants -= 1
        self.tenants += 1
        found = self.figures["tenant", tenant] = ScopeFigures(tenant=True)
        return found

    def _refused(self, tenant: str, pool: str, klass: str, code: str, missed: bool, now_ns: int) -> None:
        second = now_ns // SECOND
        for each in self._of(tenant, pool, klass, second):
            totals = each.counts.at(second)
            totals[ASKED] += 1.0
            totals[REFUSED] += 1.0
            totals[_CODE.get(code, _OTHER)] += 1.0
            totals[JUDGED] += missed


#: Told apart from the None of a request whose first token was seen.
_UNHEARD: Final = (0, list[ScopeFigures]())


def _share(signal: str, grown: list[float], code: str | None) -> tuple[float, float]:
    if signal == "error_rate":
        return grown[ERROR], grown[OK] + grown[ERROR]
    if signal == "refusal_rate":
        return grown[REFUSED] if code is None else grown[_CODE[code]], grown[ASKED]
    return grown[MET], grown[JUDGED]
