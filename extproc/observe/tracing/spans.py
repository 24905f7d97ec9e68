"""Spans out of what was noted: names, times, attributes. Runs in the pipeline's thread.

    <the parent: Envoy's ext_proc call, the client's span, or none>
      └─ "chat MODEL"         the request, from its arrival to its end; client kind, gen_ai.* attributes
           └─ steersman.decide    from the call to the last word of the decision
                ├─ steersman.reserve  where the quota's shared store was asked
                └─ steersman.hold     where it waited for a replica

A request for what is no inference (an unknown path, /tokenize) is called `steersman.request` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from extproc.core.outcome import REASON_SCORES_SHOWN, CacheHit, End, Outcome, Reservation, Routed
from extproc.core.request import RouteKind
from extproc.observe.tracing import propagation, semconv
from extproc.observe.tracing.propagation import Carried
from extproc.observe.tracing.request_trace import Decided, Expired, Note, RequestTrace, TraceEnd
from extproc.observe.tracing.semconv import Names

Value = str | bool | int | float | Sequence[str] | Sequence[float]

#: Why a request ended badly, where no status says it.
CLIENT_GONE, OVERLOADED_IN_STREAM, LOST, BROKEN = "client_gone", "engine_overloaded", "lost", "stream_broken"
#: Characters of a message or a reason.
TEXT_MAX = 1_024
NAME_MAX = 256


@dataclass(slots=True)
class Span:
    """A finished span; times in unix nanoseconds, `parent_id` 0 for a trace's first."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    state: str = ""
    #: It calls a model server, or is work of our own.
    client: bool = False
    #: Why it failed, in words; it did not where empty.
    error: str = ""
    events: list[tuple[str, int, dict[str, Value]]] = field(default_factory=list)


class Spans:
    """Builds them. `engines` names the engine of each pool, and of each model."""

    def __init__(self, names: Names, *, engines: Mapping[str, str], rng: Random) -> None:
        self.names = names
        self.engines = engines
        self._rng = rng

    def of(self, note: Note) -> list[Span]:
        """The spans that a note makes; none where its request is not sampled."""
        if isinstance(note, Decided):
            spans = self._decision(note)
            if note.last:
                spans.append(self._turned_away(note))
            return spans
        if isinstance(note, Expired):
            return [self._expired(note)]
        origin: RequestTrace | Carried | None = note.request_trace
        if origin is None:
            origin = propagation.read(note.outcome.trace)
        if origin is None or (isinstance(origin, RequestTrace) and not origin.sampled):
            return []
        return [self._ended(origin, note)]

    def _decision(self, note: Decided) -> list[Span]:
        """The decision, what it waited for, and what it knew."""
        request_trace, offset_ns = note.request_trace, note.offset_ns
        routed, reject = request_trace.routed, request_trace.reject
        # What it refers to (a fleet's scores) shall not live as long as the request.
        if not note.last:
            request_trace.routed = None
        about: dict[str, Value] = {
            "steersman.tenant": request_trace.tenant.name,
            "steersman.class": request_trace.tenant.service_class,
        }
        if request_trace.tenant.place:
            about["steersman.place"] = request_trace.tenant.place
        read_ns, decided_ns = (
            request_trace.body_ns or request_trace.done_ns,
            request_trace.decided_ns or request_trace.done_ns,
        )
        about["steersman.read_ms"] = _ms(read_ns - request_trace.arrived_ns)
        if request_trace.parsed_ns:
            about["steersman.parse_ms"] = _ms(request_trace.parsed_ns - read_ns)
            about["steersman.decide_ms"] = _ms(decided_ns - request_trace.parsed_ns)
        span = Span(
            "steersman.decide",
            request_trace.trace_id,
            self._id(),
            request_trace.span_id,
            request_trace.arrived_ns + offset_ns,
            request_trace.done_ns + offset_ns,
            about,
            request_trace.state,
        )
        if routed is not None:
            _tell(span, routed, decided_ns + offset_ns)
        elif reject is not None:
            about["steersman.refusal"] = reject.code
            about[semconv.HTTP_STATUS] = reject.status
            if reject.retry_after_s is not None:
                about["steersman.retry_after_s"] = reject.retry_after_s
        spans = [span, *self._cache(request_trace, span, offset_ns)]
        if request_trace.asked_ns:
            ended_ns = request_trace.answered_ns or request_trace.done_ns
            spans.append(self._within(span, "steersman.reserve", request_trace.asked_ns, ended_ns, offset_ns))
            spans[-1].attributes["steersman.granted"] = request_trace.granted
        if request_trace.held_ns:
            ended_ns = request_trace.released_ns or request_trace.done_ns
            spans.append(self._within(span, "steersman.hold", request_trace.held_ns, ended_ns, offset_ns))
            fate = "left" if request_trace.gone else "placed" if routed is not None else "refused"
            spans[-1].attributes["steersman.outcome"] = fate
            about["steersman.held_ms"] = _ms(ended_ns - request_trace.held_ns)
        return spans

    def _cache(self, request_trace: RequestTrace, span: Span, offset_ns: int) -> list[Span]:
        """What was looked for in the response cache, and the waits for it."""
        marks, hit = request_trace.cache_marks, request_trace.hit_of
        if marks is None and hit is None:
            return []
        marks, about = marks or {}, span.attributes
        about["steersman.cache"] = "miss" if hit is None else _hit(hit, joined="joins" in marks)
        if hit is not None:
            about["steersman.cache.age_s"] = hit.answer.age_s
            if hit.answer.likely is not None:
                about["steersman.cache.likely"] = hit.answer.likely
        if (words := request_trace.words) is not None and words.outcome:
            about["steersman.cache.words"] = words.outcome
            if words.similarity:
                about["steersman.cache.similarity"] = words.similarity
        spans = []
        for name, begins, ends in (
            ("steersman.look", "asks", "answered"),
            ("steersman.join", "joins", "told"),
        ):
            if begins in marks:
                ended_ns = marks.get(ends, request_trace.done_ns)
                spans.append(self._within(span, name, marks[begins], ended_ns, offset_ns))
        return spans

    def _within(self, span: Span, name: str, start_ns: int, end_ns: int, offset_ns: int) -> Span:
        start, end = start_ns + offset_ns, end_ns + offset_ns
        return Span(name, span.trace_id, self._id(), span.span_id, start, end, {}, span.state)

    def _turned_away(self, note: Decided) -> Span:
        """A request that never had an endpoint, or whose client left before one could answer."""
        request_trace, offset_ns = note.request_trace, note.offset_ns
        model = request_trace.asked
        provider = self.engines.get(model, semconv.OURSELVES)
        span = self._request(
            request_trace,
            provider,
            model,
            request_trace.arrived_ns + offset_ns,
            request_trace.done_ns + offset_ns,
        )
        about = span.attributes
        about["steersman.tenant"] = request_trace.tenant.name
        about["steersman.class"] = request_trace.tenant.service_class
        if request_trace.tenant.place:
            about["steersman.place"] = request_trace.tenant.place
        if self.names.stream and request_trace.stream:
            about[self.names.stream] = True
        if request_trace.max_tokens is not None:
            about[semconv.MAX_TOKENS] = request_trace.max_tokens
        if request_trace.reject is not None:
            about[semconv.ERROR_TYPE] = request_trace.reject.code
            about[semconv.HTTP_STATUS] = request_trace.reject.status
            span.error = request_trace.reject.message[:TEXT_MAX]
        elif request_trace.hit_of is not None and not request_trace.gone:
            about[semconv.HTTP_STATUS] = 200
            about["steersman.cache"] = _hit(request_trace.hit_of, joined=False)
        elif request_trace.gone:
            about[semconv.ERROR_TYPE] = CLIENT_GONE
            span.error = "the client left before it was served"
        return span

    def _ended(self, origin: RequestTrace | Carried, note: TraceEnd) -> Span:
        outcome = note.outcome
        reservation = outcome.reservation
        # Envoy's own start, where it said one: its span and this one then begin together.
        start_ns = outcome.start_unix_ns or note.at_unix_ns - outcome.duration_ns
        provider = self.engines.get(reservation.pool, semconv.OURSELVES)
        asked = origin.asked or reservation.model
        span = self._request(origin, provider, asked, start_ns, start_ns + outcome.duration_ns)
        self._booked(span, reservation)
        about, names = span.attributes, self.names
        about[semconv.HTTP_STATUS] = outcome.status
        about["steersman.attempts"] = outcome.attempts
        if isinstance(origin, RequestTrace) and origin.filled:
            about["steersman.cache.fill"] = origin.filled
        if not note.here:
            about["steersman.settled_by_another"] = True
        self._served_by(span, outcome.served_by or reservation.address)
        if outcome.status == 200 and not outcome.refused:
            about[semconv.RESPONSE_MODEL] = reservation.model
        if outcome.prompt_tokens is not None:
            about[semconv.INPUT_TOKENS] = outcome.prompt_tokens
            if names.cache_read and reservation.cached_tokens and outcome.status == 200:
                # What the prefix index believed at the decision: no engine tells it in each answer.
                about[names.cache_read] = min(reservation.cached_tokens, outcome.prompt_tokens)
        if outcome.output_tokens is not None:
            about[semconv.OUTPUT_TOKENS] = outcome.output_tokens
        if outcome.ttft_ns is not None:
            about[semconv.TTFT_NS] = outcome.ttft_ns
            if names.first_chunk:
                about[names.first_chunk] = outcome.ttft_ns / 1e9
            span.events.append(("steersman.first_token", start_ns + outcome.ttft_ns, {}))
        error = error_of(outcome)
        if error:
            about[semconv.ERROR_TYPE] = error
            span.error = _words(outcome, error)
            if names.error_finish and outcome.status == 200 and semconv.OPERATION in about:
                about[semconv.FINISH_REASONS] = ["error"] * max(1, reservation.permits)
        return span

    def _expired(self, note: Expired) -> Span:
        request_trace, reservation, offset_ns = note.request_trace, note.reservation, note.offset_ns
        provider = self.engines.get(reservation.pool, semconv.OURSELVES)
        asked = request_trace.asked or reservation.model
        start_ns, end_ns = request_trace.arrived_ns + offset_ns, note.now_ns + offset_ns
        span = self._request(request_trace, provider, asked, start_ns, end_ns)
        self._booked(span, reservation)
        self._served_by(span, reservation.address)
        span.attributes[semconv.ERROR_TYPE] = LOST
        span.error = "its end was never heard of"
        return span

    def _request(
        self, origin: RequestTrace | Carried, provider: str, model: str, start_ns: int, end_ns: int
    ) -> Span:
        operation = None if origin.route_kind is None else semconv.OPERATIONS.get(origin.route_kind)
        about: dict[str, Value] = {}
        name = "steersman.request"
        model = model[:NAME_MAX]
        if operation is not None:
            name = f"{operation} {model}" if model else operation
            about[semconv.OPERATION] = operation
            about[self.names.provider] = provider
            if model:
                about[semconv.REQUEST_MODEL] = model
            if origin.user:
                about[semconv.CONVERSATION] = origin.user
            if origin.prompt and self.names.messages:
                about[self.names.messages] = messages_json(origin.prompt)
        return Span(
            name,
            origin.trace_id,
            origin.span_id,
            origin.parent_id,
            start_ns,
            max(start_ns, end_ns),
            about,
            origin.state,
            client=operation is not None,
        )

    def _booked(self, span: Span, reservation: Reservation) -> None:
        """What the decision wrote into the books."""
        about = span.attributes
        if semconv.OPERATION in about:
            if reservation.max_new_tokens is not None:
                about[semconv.MAX_TOKENS] = reservation.max_new_tokens
            if self.names.stream and reservation.stream:
                about[self.names.stream] = True
            if reservation.permits > 1:
                about[semconv.CHOICES] = reservation.permits
        about["steersman.tenant"] = reservation.tenant
        about["steersman.class"] = reservation.service_class
        if reservation.place:
            about["steersman.place"] = reservation.place
        about["steersman.pool"] = reservation.pool
        about["steersman.reservation"] = reservation.id
        about["steersman.strategy"] = reservation.strategy
        about["steersman.held_ms"] = reservation.held_ms
        if reservation.arm:
            about["steersman.arm"] = reservation.arm

    def _served_by(self, span: Span, address: str) -> None:
        host, _, port = address.rpartition(":")
        if host and port.isdigit():
            span.attributes[semconv.SERVER_ADDRESS] = host.strip("[]")
            span.attributes[semconv.SERVER_PORT] = int(port)

    def _id(self) -> int:
        return self._rng.getrandbits(64) or 1


def _hit(hit: CacheHit, *, joined: bool) -> str:
    """How the cache answered: with an equal request's answer, one that was waited for, or in other words."""
    return "semantic" if hit.answer.likely is not None else "joined" if joined else "hit"


def _tell(span: Span, routed: Routed, at_ns: int) -> None:
    """Where it goes and why."""
    about, reason, reservation = span.attributes, routed.reason, routed.reservation
    best = [reason.candidates[i].address for i in reason.best[:REASON_SCORES_SHOWN]]
    about["steersman.pool"] = reservation.pool
    about["steersman.model"] = reservation.model
    about["steersman.reservation"] = reservation.id
    about["steersman.endpoint"] = reservation.address
    about["steersman.endpoints"] = list(routed.addresses)
    about["steersman.strategy"] = reason.strategy
    about["steersman.reason"] = reason.text()[:TEXT_MAX]
    about["steersman.candidates"] = len(reason.candidates)
    about["steersman.best"] = best
    about["steersman.scores"] = [float(reason.scores[i]) for i in reason.best[:REASON_SCORES_SHOWN]]
    about["steersman.degraded"] = reason.degraded
    if reservation.arm:
        about["steersman.arm"] = reservation.arm
    about["steersman.expected_input_tokens"] = reservation.input_tokens
    about["steersman.expected_output_tokens"] = reservation.output_tokens
    about["steersman.expected_ttft_ms"] = reservation.ttft_ms
    cached: dict[str, Value] = {
        "steersman.cached_tokens": reservation.cached_tokens,
        "steersman.expected_input_tokens": reservation.input_tokens,
    }
    span.events.append(("steersman.cache_lookup", at_ns, cached))


def error_of(outcome: Outcome) -> str:
    """`error.type`: a status, or one of this module's words; "" where it went well."""
    match outcome.end:
        case End.OK:
            return ""
        case End.CLIENT_GONE:
            return CLIENT_GONE
        case _ if outcome.refused:
            return OVERLOADED_IN_STREAM
        case _ if outcome.status >= 400:
            return str(outcome.status)
        case _:
            return BROKEN


def _words(outcome: Outcome, error: str) -> str:
    match error:
        case "client_gone":
            return "the client left"
        case "engine_overloaded":
            return "the engine refused inside its stream: overloaded"
        case "stream_broken":
            return "the answer broke off"
        case _:
            return f"the engine answered {outcome.status}"


def messages_json(prompt: Sequence[tuple[str, str]]) -> str:
    """Messages in the conventions' form, as the JSON text that spans may hold."""
    return msgspec.json.encode(
        [{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in prompt]
    ).decode()


def _ms(ns: int) -> float:
    return round(max(0, ns) / 1e6, 4)


def inference(kind: RouteKind | None) -> str | None:
    """The operation's name; None for what is no inference."""
    return None if kind is None else semconv.OPERATIONS.get(kind)
