"""What is noted of each request on its way; turned into spans elsewhere, later.

Owns everything of tracing that runs on the request path: a few marks of time and references, no attribute,
no string but what rides with the request. A note is handed on (`offer`) when the decision has left, and when
the request has ended. Knows nothing of OpenTelemetry's SDK.

A decision's note belongs to the service that made it. A request's end is heard by every service; it is noted
by the one that decided, or, when that is gone, by its heir alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from random import Random
from typing import NamedTuple

from extproc.config.tracing import OpenTelemetry
from extproc.core.cachekeys import SemanticAsk
from extproc.core.events import Observer, Settled
from extproc.core.outcome import CacheHit, LocalAnswer, Outcome, Reject, Reservation, Routed
from extproc.core.prefix import CALLS_MARK, IMAGE_MARK, MESSAGE_MARK, TOOLS_MARK
from extproc.core.request import Request, RouteKind
from extproc.core.slo import Sample
from extproc.core.tenant import ANONYMOUS, Tenant
from extproc.observe.tracing import propagation
from extproc.observe.tracing.context import TRACEPARENT, TRACESTATE, parent_of, parse

#: Requests in flight whose request_traces are kept; what is above ends by what rode with it.
OPEN_MAX = 100_000
#: Ends of other services' requests that wait for the word on whether their service lives.
ORPHANS_MAX = 10_000
#: Digits of a hashed name.
USER_DIGITS = 16

#: A gRPC call's metadata, read only when it is wanted: reading costs 5 µs.
Metadata = Callable[[], Iterable[tuple[str, str | bytes]]]


class Decided(NamedTuple):
    """A decision is out, or its client left before; `offset_ns` makes the trace's times unix time."""

    request_trace: RequestTrace
    offset_ns: int
    #: The request is over with it: refused, left, or sent on without a ticket.
    last: bool


class TraceEnd(NamedTuple):
    """A request's record came; `request_trace` is None where another life of the service decided on it."""

    request_trace: RequestTrace | None
    outcome: Outcome
    sample: Sample
    at_unix_ns: int
    here: bool


class Expired(NamedTuple):
    """A request's record never came."""

    request_trace: RequestTrace
    reservation: Reservation
    offset_ns: int
    now_ns: int


Note = Decided | TraceEnd | Expired


class StreamTrace:
    """What the wire tells of one request's way; of a request that nobody traces it goes nowhere."""

    __slots__ = ()

    def headers(self, kind: RouteKind | None, values: Mapping[str, str]) -> None:
        """The headers were read: whose trace it is, where Envoy did not say."""

    def identified(self, tenant: Tenant) -> None:
        """Who asks is known."""

    def read(self, request: Request) -> None:
        """The body was understood."""

    def asks(self) -> None:
        """The quota's shared store is asked."""

    def answered(self, *, granted: bool) -> None:
        """The quota's shared store has answered."""

    def waits(self) -> None:
        """It is held."""

    def released(self) -> None:
        """It was held, and is decided on."""

    def cache(self, what: str, words: SemanticAsk | None = None) -> None:
        """Of the cache: `asks` the store, which `answered`; `miss`; `joins` a flight or a look, is `told`."""

    def hit(self, hit: CacheHit) -> None:
        """It is answered from the cache."""

    def placed(self, routed: Routed) -> str:  # noqa: ARG002 (nothing rides along)
        """It goes to an endpoint; returns what is to ride with it."""
        return ""

    def answer(self, answer: LocalAnswer | Reject) -> None:
        """It gets an answer of ours: one that serves no model (the model list) has no trace."""

    def decided(self, begun_ns: int, now_ns: int) -> None:
        """The body was there, and was decided on."""

    def delivered(self) -> None:
        """Envoy has the decision."""

    def closed(self) -> None:
        """The stream is over; where nothing was delivered, its client has left."""


class StreamTraces:
    """Begins each request's trace; here nobody's."""

    def filled(self, reservation_id: str, became: str) -> None:
        """A request's answer has come for the cache: what became of it there."""

    def begin(self, metadata: Metadata) -> StreamTrace:  # noqa: ARG002 (nobody wants to know)
        """A request has come; `metadata` is its gRPC call's."""
        return UNTRACED


UNTRACED, NO_TRACES = StreamTrace(), StreamTraces()


class RequestTrace(StreamTrace):
    """One request's marks; times are the clock's, 0 where it did not come so far."""

    __slots__ = (
        "_request_traces",
        "answered_ns",
        "arrived_ns",
        "asked",
        "asked_ns",
        "body_ns",
        "cache_marks",
        "decided_ns",
        "done_ns",
        "filled",
        "gone",
        "granted",
        "held_ns",
        "hit_of",
        "max_tokens",
        "parent_id",
        "parsed_ns",
        "prompt",
        "reject",
        "released_ns",
        "reservation_id",
        "route_kind",
        "routed",
        "sampled",
        "span_id",
        "state",
        "stream",
        "tenant",
        "trace_id",
        "user",
        "words",
    )

    def __init__(self, request_traces: RequestTraces, arrived_ns: int) -> None:
        self._request_traces = request_traces
        self.arrived_ns = arrived_ns
        #: When the body was there, was read, was decided on; when the decision went out, or the stream ended.
        self.body_ns = self.parsed_ns = self.decided_ns = self.done_ns = 0
        #: When the quota's store was asked and answered; when it was held and released.
        self.asked_ns = self.answered_ns = self.held_ns = self.released_ns = 0
        self.trace_id = self.parent_id = self.span_id = 0
        self.state = self.asked = self.user = self.reservation_id = ""
        self.sampled = self.stream = self.gone = self.granted = False
        self.max_tokens: int | None = None
        self.route_kind: RouteKind | None = None
        self.tenant: Tenant = ANONYMOUS
        self.routed: Routed | None = None
        self.reject: Reject | None = None
        #: When what came of the cache; None where it was not asked.
        self.cache_marks: dict[str, int] | None = None
        self.hit_of: CacheHit | None = None
        self.words: SemanticAsk | None = None
        #: What became of its answer there.
        self.filled = ""
        self.prompt: tuple[tuple[str, str], ...] = ()

    def headers(self, kind: RouteKind | None, values: Mapping[str, str]) -> None:
        """The headers were read: whose trace it is, where Envoy did not say."""
        self.route_kind = kind
        if not self.trace_id:
            self._request_traces.root(self, values)

    def identified(self, tenant: Tenant) -> None:
        """Who asks is known."""
        self.tenant = tenant

    def read(self, request: Request) -> None:
        """The body was understood."""
        self.parsed_ns = self._request_traces.clock()
        self.asked, self.stream = request.model or "", request.stream
        self.max_tokens = request.max_new_tokens
        if self.sampled:
            settings = self._request_traces.settings
            if request.user and settings.users != "none":
                self.user = request.user if settings.users == "named" else hashed(request.user)
            if self.tenant.trace_prompts:
                self.prompt = prompt_of(request, settings.prompt_characters_max)

    def asks(self) -> None:
        """The quota's shared store is asked."""
        self.asked_ns = self._request_traces.clock()

    def answered(self, *, granted: bool) -> None:
        """The quota's shared store has answered."""
        self.answered_ns, self.granted = self._request_traces.clock(), granted

    def waits(self) -> None:
        """It is held."""
        self.held_ns = self._request_traces.clock()

    def released(self) -> None:
        """It was held, and is decided on."""
        self.released_ns = self._request_traces.clock()

    def cache(self, what: str, words: SemanticAsk | None = None) -> None:
        """The same, and what came of it in other words."""
        self.words = words or self.words
        if self.cache_marks is None:
            self.cache_marks = {}
        self.cache_marks[what] = self._request_traces.clock()

    def hit(self, hit: CacheHit) -> None:
        """It is answered from the cache."""
        self.hit_of = hit

    def placed(self, routed: Routed) -> str:
        """It goes to an endpoint; returns what is to ride with it."""
        self._unplaced()
        self.routed = routed
        self.reservation_id = routed.reservation.id
        self._request_traces.keep(self)
        if not self.sampled:
            return ""
        return propagation.write(
            self.trace_id,
            self.parent_id,
            self.span_id,
            kind=self.route_kind,
            asked=self.asked,
            user=self.user,
            state=self.state,
        )

    def answer(self, answer: LocalAnswer | Reject) -> None:
        """It gets an answer of ours: one that serves no model (the model list) has no trace."""
        if isinstance(answer, Reject):
            self._unplaced()
            self.reject = answer
        elif self.hit_of is None:
            self.sampled = False

    def _unplaced(self) -> None:
        """A placement of before does not hold: it was undone by a fault."""
        if self.reservation_id:
            self._request_traces.forget(self)
            self.routed, self.reservation_id = None, ""

    def decided(self, begun_ns: int, now_ns: int) -> None:
        """The body was there, and was decided on."""
        self.body_ns, self.decided_ns = begun_ns, now_ns

    def delivered(self) -> None:
        """Envoy has the decision."""
        if self.done_ns:
            return
        self.done_ns = self._request_traces.clock()
        if self.sampled and (self.routed or self.reject or self.hit_of) is not None:
            self._request_traces.note(self, last=self.routed is None)

    def closed(self) -> None:
        """The stream is over; where nothing was delivered, its client has left."""
        if self.done_ns:
            return
        self.done_ns, self.gone = self._request_traces.clock(), True
        self._request_traces.forget(self)
        if self.sampled:
            self._request_traces.note(self, last=True)


class RequestTraces(StreamTraces, Observer):
    """All of them: begins each, and hears of the ends.

    `settings` and `offer` may be exchanged. `offer` takes notes and must not wait. `heir` says whether this
    service ends what the service that decided on a reservation cannot end any more; it is asked
    `orphan_wait_ns` after the record came, when a dead service is known to be dead.
    """

    def __init__(
        self,
        settings: OpenTelemetry,
        *,
        clock: Callable[[], int],
        wall_ns: Callable[[], int],
        rng: Random,
        offer: Callable[[Note], None],
        heir: Callable[[str], bool],
        orphan_wait_ns: int = 0,
    ) -> None:
        self.settings = settings
        self.orphan_wait_ns = orphan_wait_ns
        self.clock = clock
        self._wall_ns = wall_ns
        self._rng = rng
        self.offer = offer
        self._heir = heir
        self._offset_ns = wall_ns() - clock()
        self._open: dict[str, RequestTrace] = {}
        self._orphans: deque[tuple[int, TraceEnd]] = deque()
        self.dropped = 0

    def begin(self, metadata: Metadata) -> RequestTrace:
        """A request has come; `metadata` is its gRPC call's."""
        request_trace = RequestTrace(self, self.clock())
        parent = parent_of(metadata())
        if parent is not None:
            request_trace.trace_id, request_trace.parent_id, sampled, request_trace.state = parent
            request_trace.sampled = sampled and self.settings.traces
            request_trace.span_id = self._rng.getrandbits(64) or 1
        return request_trace

    def root(self, request_trace: RequestTrace, values: Mapping[str, str]) -> None:
        """Envoy named no parent: the client's, or a trace of its own for as many as are to have one."""
        parent = None
        if self.settings.client_parent and TRACEPARENT in values:
            parent = parse(values[TRACEPARENT], values.get(TRACESTATE, ""))
        if parent is not None:
            request_trace.trace_id, request_trace.parent_id, sampled, request_trace.state = parent
        else:
            request_trace.trace_id = self._rng.getrandbits(128) or 1
            sampled = self._rng.random() < self.settings.sample_ratio
        request_trace.sampled = sampled and self.settings.traces
        request_trace.span_id = self._rng.getrandbits(64) or 1

    def keep(self, request_trace: RequestTrace) -> None:
        """It is in flight: its end will ask for it."""
        if len(self._open) < OPEN_MAX:
            self._open[request_trace.reservation_id] = request_trace
        else:
            self.dropped += 1

    def forget(self, request_trace: RequestTrace) -> None:
        """Its end will not come."""
        self._open.pop(request_trace.reservation_id, None)

    def filled(self, reservation_id: str, became: str) -> None:
        """A request's answer has come for the cache; its record comes about now."""
        request_trace = self._open.get(reservation_id)
        if request_trace is not None:
            request_trace.filled = became

    def note(self, request_trace: RequestTrace, *, last: bool) -> None:
        """Its decision is out."""
        self.offer(Decided(request_trace, self._offset_ns, last))

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended."""
        outcome, unix_ns = event.outcome, now_ns + self._offset_ns
        if event.here:
            request_trace = self._open.pop(outcome.reservation.id, None)
            self.offer(TraceEnd(request_trace, outcome, event.sample, unix_ns, True))
        elif outcome.trace and self.settings.traces:
            if len(self._orphans) >= ORPHANS_MAX:
                self.dropped += 1
                return
            due_ns = now_ns + self.orphan_wait_ns
            self._orphans.append((due_ns, TraceEnd(None, outcome, event.sample, unix_ns, False)))

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """A request's end never came."""
        request_trace = self._open.pop(reservation.id, None)
        if request_trace is not None and request_trace.sampled:
            self.offer(Expired(request_trace, reservation, self._offset_ns, now_ns))

    def step(self, *, now_ns: int, last: bool = False) -> None:
        """Time has passed: the wall clock is read again, and orphans find their heir, all at the `last`."""
        self._offset_ns = self._wall_ns() - self.clock()
        orphans = self._orphans
        while orphans and (last or orphans[0][0] <= now_ns):
            note = orphans.popleft()[1]
            if self._heir(note.outcome.reservation.id):
                self.offer(note)

    @property
    def in_flight(self) -> int:
        """Traces whose end is awaited."""
        return len(self._open)


def hashed(name: str) -> str:
    """A name that tells only who knows it already."""
    return sha256(name.encode(errors="replace")).hexdigest()[:USER_DIGITS]


_OTHER_MARKS = (TOOLS_MARK[0], IMAGE_MARK[0], CALLS_MARK[0])


def prompt_of(request: Request, characters_max: int) -> tuple[tuple[str, str], ...]:
    """A prompt's messages as (role, text), cut off after so many characters over all."""
    messages: list[tuple[str, str]] = []
    left = characters_max
    for i, text in enumerate(request.segments):
        mark = request.marks[i] if i < len(request.marks) else b""
        begins = mark.rfind(MESSAGE_MARK)
        cut = text[:left]
        left -= len(cut)
        if begins >= 0 or not messages or request.kind is RouteKind.COMPLETION:
            messages.append((_role(mark[begins + 1 :]) if begins >= 0 else "user", cut))
        else:
            # A further part of the same message.
            role, before = messages[-1]
            messages[-1] = (role, before + cut)
        if left <= 0:
            break
    return tuple(messages)


def _role(raw: bytes) -> str:
    for i, byte in enumerate(raw):
        if byte in _OTHER_MARKS:
            raw = raw[:i]
            break
    return raw.strip(b'"').decode(errors="replace")[:32] or "user"
