"""One ext_proc stream as a state machine: bytes of a message in, bytes of a message out.

Owns the order of the phases and what becomes of an exception: a degraded decision, counted, never a 500. Its
states, and what each of them undoes, are the table of states.py. No I/O: any transport that carries messages
may drive it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from extproc.core.cachekeys import AskAnswer, CachedAnswer
from extproc.core.errors import Error
from extproc.core.outcome import CacheHit, Hold, LocalAnswer, Reject, Routed
from extproc.core.quota import Granted, Refused
from extproc.core.reading import BYTE_ORDER_MARK, bare, parse
from extproc.core.request import Request, UsageAsked
from extproc.core.routes import UNKNOWN_UNREAD, BodyKind
from extproc.core.scheduler import AskQuota
from extproc.core.tenant import Tenant
from extproc.observe.tracing.request_trace import UNTRACED, StreamTrace
from extproc.wire import codec, narrowed, usage
from extproc.wire.caching import answer_of
from extproc.wire.joining import CacheWants
from extproc.wire.processor import Processor
from extproc.wire.rename import not_utf8
from extproc.wire.responder import BODIES_HELD, EnvoyResponder, Reply, Responder
from extproc.wire.screen import Asked, declared, screen
from extproc.wire.states import BODY, DONE, HEADERS, JOINED, ROUTED, Joining, Over

#: Bodies kept while their requests are held (those that ask for a family get another model's name).
BODIES_BYTES_MAX = 256 * 1024 * 1024


class Exchange:
    """One request's stream; `close` it when it ends, however it ends.

    `responder` says in the gateway's protocol what is decided; our own Envoy's when left out.
    """

    __slots__ = (
        "_asked",
        "_body",
        "_family",
        "_id",
        "_looking",
        "_on_ready",
        "_phase",
        "_processor",
        "_ready",
        "_responder",
        "_state",
        "_usage",
        "_wants",
        "request_trace",
    )

    def __init__(self, processor: Processor, responder: Responder | None = None) -> None:
        processor.open_exchanges += 1
        #: What is noted of its way; set by whoever has the call's metadata.
        self.request_trace: StreamTrace = UNTRACED
        self._processor = processor
        self._responder: Responder = EnvoyResponder(processor) if responder is None else responder
        self._state = HEADERS
        #: What is asked for, held or reserved, as the state says.
        self._id = ""
        self._asked = Asked()
        #: What it is decided on: request_headers where no body follows them.
        self._phase = "request_body"
        #: Kept where it names a family, or where usage may be asked for in its name.
        self._body = b""
        self._family = False
        self._usage = UsageAsked.NO_STREAM
        self._wants: CacheWants | None = None
        #: What is decided on once the store of answers was asked, and the size of its body.
        self._looking: tuple[Request, int] | None = None
        self._ready: Reply | None = None
        self._on_ready: Callable[[Reply], None] | None = None

    @property
    def body_bytes(self) -> int:
        """The size of the body that is kept."""
        return len(self._body)

    @property
    def deadline_s(self) -> float | None:
        """How long it may take to a decision; None where Envoy itself sees to that."""
        return None

    def receive(self, data: bytes) -> Reply:
        """Answer one message. Raises only on bytes that are no ProcessingRequest."""
        directory, named = self._processor.directory, self._processor.model_headers
        message = codec.read(data, claim=directory.claim, proxy=directory.proxy, named=named)
        try:
            if isinstance(message, codec.Body) and self._state is BODY:
                self._asked.whole = message.whole
                return self._on_body(message.data)
            if isinstance(message, codec.Headers) and self._state is HEADERS:
                return self._on_headers(message)
            return self._stray(message.kind)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            return self._failed(error)

    def answered(self, asked: AskQuota, answer: Granted | Refused) -> Reply:
        """The shared store has answered `Reply.ask`: the decision goes on."""
        processor = self._processor
        self.request_trace.answered(granted=isinstance(answer, Granted))
        return self._after(
            "the quota",
            lambda: self._told(processor.scheduler.answered(asked, answer, now_ns=processor.clock())),
        )

    def _after(self, what: str, decide: Callable[[], Reply]) -> Reply:
        """The decision after something was waited for; a fault of ours is a refusal."""
        try:
            return decide()
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._undo()
            self._processor.failed(error, f"decision after {what}")
            return self.turned_away(Error.INTERNAL.reject())

    def unanswered(self, error: Exception) -> Reply:
        """The shared store could not be asked at all: nobody said that the quota allows it."""
        self._processor.failed(error, "asking the quota")
        try:
            self._undo()
            return self.turned_away(Error.INTERNAL.reject())
        except Exception as another:  # noqa: BLE001 (law: every exception becomes a decision)
            return self._failed(another)

    def delivered(self) -> None:
        """The final reply went out whole: from here on the access log settles."""
        if self._state is ROUTED:
            self._become(Over)
        self.request_trace.delivered()

    def sent_all(self) -> None:
        """Envoy has closed its side: nothing more comes. Whoever leaves instead cancels the call."""

    def when_ready(self, call: Callable[[Reply], None]) -> None:
        """After a reply that waits: call with the real one, at once if it is there already."""
        ready, self._ready = self._ready, None
        if ready is not None:
            call(ready)
        else:
            self._on_ready = call

    def release(self, decision: Routed | Reject) -> None:
        """It was held, and is decided on."""
        self.request_trace.released()
        self._now_ready(self._after("a hold", lambda: self._told(decision)))

    def close(self) -> None:
        """The stream is over; what was not delivered is undone, a wait given up."""
        self._processor.open_exchanges -= 1
        self._undo()
        self._state = DONE
        self.request_trace.closed()

    def overdue(self) -> Reply:
        """Its deadline has passed: the body is not here yet, or no replica had room."""
        if self._state in (HEADERS, BODY):
            refused = Error.REQUEST_TIMEOUT.reject()
        else:
            refused = Error.OVERLOADED.reject("no replica had room before the gateway's deadline")
        self._undo()
        return self.turned_away(refused)

    def _become(self, said: type, id_: str = "") -> None:
        """The next state, by what was said; `id_` is what it asks for, holds or has reserved."""
        self._state, self._id = self._state.then[said], id_

    def _undo(self) -> None:
        """Give up what the state stands for: nothing is decided, as when the body came."""
        state, self._state = self._state, BODY
        if state.undo is not None:
            state.undo(self._processor, self._id)

    def _failed(self, error: Exception) -> Reply:
        """The last step: what nothing else has caught is a refusal too.

        An exception here would end the stream, and Envoy would take that for a service that is away: with
        `failure_mode: open` a request's content could let it past every quota.
        """
        self._processor.failed(error, "exchange")
        try:
            self._undo()
        except Exception as another:  # noqa: BLE001 (what is not undone expires)
            self._processor.failed(another, "undoing")
        self._state = DONE
        return Reply(codec.immediate(Error.INTERNAL.reject(), self._asked.dialect), end=True)

    def _stray(self, kind: str) -> Reply:
        """A phase we did not ask for: somebody else's Envoy configuration. Let it pass."""
        self._processor.scheduler.counts["phase.unexpected"] += 1
        return Reply(codec.CONTINUE.get(kind, codec.CONTINUE["request_headers"]), end=False)

    def _on_headers(self, headers: codec.Headers) -> Reply:
        """What can be said before the body comes; else the body may come, or there is none."""
        processor, asked = self._processor, self._asked
        try:
            answer = screen(processor, headers, asked, trace=self.request_trace, whose=self._whose)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            # Who asks is unknown, and a stranger is not let in by a fault of ours.
            processor.failed(error, "screening")
            answer = Error.INTERNAL.reject("the gateway could not read this request")
        if isinstance(answer, Reject):
            return self.turned_away(answer)
        if answer is not None:
            return self._answer(answer)
        if headers.alone:
            # Its body may come, and asks for the decision itself.
            self.request_trace = UNTRACED
            return self._paced(headers.values.get("content-length", ""))
        self._become(codec.Headers)
        if headers.end_of_stream:
            self._phase = "request_headers"
            return self._on_body(b"")
        reply = self._responder.let_come()
        return reply if asked.taken is None else replace(reply, ask=asked.taken)

    def _whose(self, proven: Tenant, _values: dict[str, str], /) -> Tenant:
        """Whose request it is, by what was proven."""
        return proven

    def _paced(self, length: str) -> Reply:
        """A large body of a known sender: now, in a moment, or not. Without a length it may be any size."""
        processor, asked = self._processor, self._asked
        expected = declared(length, processor.body_bytes_max)
        wait_s = processor.paced(asked.tenant.name, asked.source, expected)
        if isinstance(wait_s, Reject):
            return self.turned_away(wait_s)
        self._become(Over)
        return Reply(codec.CONTINUE["request_headers"], end=True, after_s=wait_s)

    def _on_body(self, body: bytes) -> Reply:
        """Decide, and say how long it took."""
        processor = self._processor
        begun_ns = processor.clock()
        reply = self._decided_on(body)
        self.request_trace.decided(begun_ns, processor.took(begun_ns))
        return reply

    def _decided_on(self, body: bytes) -> Reply:
        """Decide; should that fail, decide with less; should that fail, refuse.

        Nobody else may decide then: quota, queue and regions hang on a decision.
        """
        processor, route = self._processor, self._asked.route
        assert route is not None
        body = body.removeprefix(BYTE_ORDER_MARK)  # of no use to whoever writes it anew
        request: Request | Reject | None = None
        try:
            request = self._parsed(body)
            if isinstance(request, Reject):
                return self._refused_read(request, body)
            return self._looked_up(request, body)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._undo()
            processor.failed(error, "decision")
        if isinstance(request, Reject):
            return self._answer(request)
        if request is None and route.kind in UNKNOWN_UNREAD:  # of another's response, for all that is known
            return self.turned_away(Error.INTERNAL.reject())
        try:
            # What it asks for counts against quota and permits now as well; only what it says is left out.
            plain = bare(route, body) if request is None else narrowed.bare_of_text(request)
            return self._decide(plain, degraded="internal error")
        except Exception as error:  # noqa: BLE001 (the same law, once more)
            self._undo()
            processor.failed(error, "degraded decision")
        return self.turned_away(Error.INTERNAL.reject())

    def _parsed(self, body: bytes) -> Request | Reject:
        """The request in a body; the body is kept where it may have to be written anew."""
        processor, asked, route = self._processor, self._asked, self._asked.route
        assert route is not None
        # A body without a length was not measured by its headers.
        if len(body) > processor.body_bytes_max:
            return Error.BODY_TOO_LARGE.reject(bytes=processor.body_bytes_max)
        request = parse(route, body, processor.body_bounds)
        if isinstance(request, Reject):
            return request
        if route.body is BodyKind.FORM:
            head = codec.FORM_HEAD if self._asked.whole else codec.FORM_PART
            self._phase = head if self._responder.shows_heads else self._phase
            return narrowed.of_form(processor, asked, request)
        held = request.follows is not None or asked.item
        if held and isinstance(request := narrowed.to_holder(processor, asked, request), Reject):
            return request
        self._family = narrowed.asks_family(processor, asked, request.model)
        if self._family and route.own is not None and not route.own.renames:
            return narrowed.no_family("this route")
        if self._family and (mistake := not_utf8(body)):
            # It goes on with another name in it, which wants every field's own name to be one.
            return mistake
        if self._responder.asks_usage and len(body) <= usage.BODY_BYTES_MAX:
            self._usage = request.usage
        scheduler, renames = processor.scheduler, False
        if scheduler.settings.spills or scheduler.fleet.adapters_by_base:
            renames = scheduler.may_rename(request.model or asked.model, asked.tenant)
        if self._family or renames or self._usage is not UsageAsked.NO_STREAM:
            self._body = body
        return request

    def _refused_read(self, refused: Reject, body: bytes) -> Reply:
        """Refused for what is in its body: it cost what a served one costs to carry and to read."""
        processor, asked = self._processor, self._asked
        processor.refused(asked.tenant.name, asked.source, len(body))
        return self.turned_away(narrowed.in_its_words(processor, asked, refused, body))

    def _decide(self, request: Request, *, degraded: str = "", cached: CachedAnswer | None = None) -> Reply:
        processor, asked = self._processor, self._asked
        request = self._complete(request)
        self.request_trace.read(request)
        decision = processor.scheduler.admit(
            request, asked.tenant, key=asked.key, now_ns=processor.clock(), degraded=degraded, cached=cached
        )
        return self._told(decision)

    def _looked_up(self, request: Request, body: bytes) -> Reply:
        """Decide on it; with an answer from the cache, or once an equal request has got one."""
        if (questions := self._processor.questions) is not None:
            question = questions(self._complete(request), body, self._asked.tenant.name)
            request = replace(request, question=question)
        if self._family or not self._responder.caches:
            return self._decide(request)
        wants = self._wants = CacheWants(self._processor, self._asked)
        found = wants.look(self._complete(request), body)
        if isinstance(found, AskAnswer):
            self._become(AskAnswer)
            self.request_trace.cache("asks")
            self._looking = request, len(body)
            return Reply(b"", end=False, ask=found)
        return self._known(request, len(body), found)

    def _known(self, request: Request, size: int, cached: CachedAnswer | None) -> Reply:
        """Whether an answer is known was looked up: it is given, waited for, or asked of a replica."""
        wants = self._wants
        if cached is None and wants is not None and wants.wanted is not None:
            self.request_trace.cache("miss")
            name, left_ms = wants.join(size, lambda found: self._rejoin(request, found))
            if name:
                self._become(Joining, name)
                self.request_trace.cache("joins")
                return self._responder.hold(left_ms)
        return self._decide(request, cached=cached)

    def looked(self, found: CachedAnswer | None) -> Reply:
        """The store of answers was asked (`Reply.ask`): the decision goes on."""
        assert self._looking is not None
        (request, size), self._looking = self._looking, None
        self._state = BODY
        self.request_trace.cache("answered")
        return self._after("a look", lambda: self._known(request, size, found))

    def _complete(self, request: Request) -> Request:
        """What is not in the body: the model header counts where the body names none."""
        asked = self._asked
        if request.model is None and asked.model:
            request = replace(request, model=asked.model)
        return replace(request, site=asked.site, hops=asked.hops) if asked.site else request

    def _rejoin(self, request: Request, found: CachedAnswer | None) -> None:
        """The wait is over: with the answer, or without."""
        if self._state is not JOINED:
            return
        self._processor.joined -= 1
        self._state, self._id = BODY, ""
        self.request_trace.cache("told", None if self._wants is None else self._wants.words)
        self._now_ready(self._after("a wait", lambda: self._decide(request, cached=found)))

    def _now_ready(self, reply: Reply) -> None:
        """A reply that was waited for; it may be another wait."""
        call, self._on_ready = self._on_ready, None
        if call is None:
            self._ready = reply
        else:
            call(reply)

    def _told(self, decision: Routed | Reject | Hold | AskQuota | CacheHit) -> Reply:
        """The answer to what was decided."""
        if isinstance(decision, Routed):
            return self._routed(decision)
        if isinstance(decision, Reject):
            return self._answer(decision)
        if isinstance(decision, Hold):
            return self._held(decision)
        if isinstance(decision, CacheHit):
            self._processor.scheduler.dispatcher.decisions.named(self._asked.request_id, decision.id)
            self.request_trace.hit(decision)
            return self._answer(answer_of(decision))
        self._become(AskQuota, decision.routing.id)
        self.request_trace.asks()
        return Reply(b"", end=False, ask=decision)

    def _held(self, hold: Hold) -> Reply:
        processor = self._processor
        processor.scheduler.dispatcher.decisions.named(self._asked.request_id, hold.id)
        if processor.bodies_bytes + len(self._body) > BODIES_BYTES_MAX:
            if self._family or processor.scheduler.dispatcher.goes_elsewhere(hold.id):
                processor.scheduler.counts["bound.bodies_bytes_max"] += 1
                processor.scheduler.leave(hold.id, now_ns=processor.clock())
                return self.turned_away(Error.OVERLOADED.reject(BODIES_HELD))
            self._body = b""  # it goes on as it came, and nowhere that knows its model by another name
            processor.scheduler.dispatcher.stays(hold.id)
        self._become(Hold, hold.id)
        processor.hold(hold.id, self)
        self.request_trace.waits()
        return self._responder.hold((hold.until_ns - processor.clock()) // 1_000_000)

    def _routed(self, decision: Routed) -> Reply:
        processor, asked, reservation = self._processor, self._asked, decision.reservation
        self._become(Routed, reservation.id)
        processor.scheduler.dispatcher.decisions.named(asked.request_id, reservation.id)
        body, usage_asked = None, ""
        anew = self._family or narrowed.other_name(processor, asked, reservation)
        if anew and (mistake := not_utf8(self._body)):
            processor.scheduler.cancel(reservation.id, now_ns=processor.clock())
            return self.turned_away(mistake)
        if self._body:
            usage_asked, body = narrowed.written_anew(
                processor, asked, reservation, self._body, self._usage, anew=anew
            )
        return self._responder.route(
            decision,
            phase=self._phase,
            explained=asked.explain,
            as_json=asked.as_json and self._phase == "request_body",
            trace=self.request_trace.placed(decision),
            body=body,
            usage=usage_asked,
            # What another pool answers is not what this model would have said.
            cache="" if self._wants is None or reservation.spilled_from else self._wants.flag(reservation),
        )

    def turned_away(self, refused: Reject) -> Reply:
        """Refused before it was a request that may be served; a stranger's is nobody's."""
        whose = "" if refused.status == 401 else self._asked.tenant.name
        self._processor.scheduler.turned_away(whose, refused, now_ns=self._processor.clock())
        return self._answer(refused)

    def _answer(self, answer: LocalAnswer | Reject) -> Reply:
        reply = self._responder.refuse(answer, self._asked.dialect)
        self._become(type(answer))
        self.request_trace.answer(answer)
        return reply
