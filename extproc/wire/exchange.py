"""One ext_proc stream as a state machine: bytes of a message in, bytes of a message out.

Owns the order of the phases and what becomes of an exception: a degraded decision, counted, never a
500. No I/O: any transport that carries messages may drive it.

    await headers ── no body follows ──▶ done        (decided, answered or refused)
          └─ body follows ──▶ await body ──▶ done    (decided or refused)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING

import msgspec

from extproc.core.contract import EXPLAIN_HEADER, MODEL_HEADER
from extproc.core.errors import Error, as_engine_says
from extproc.core.families import members
from extproc.core.misrouted import advice, dialect_of
from extproc.core.outcome import QUOTA_EXCEEDED, Hold, LocalAnswer, Reject, Routed
from extproc.core.quota import Granted, Refused
from extproc.core.reading import BYTE_ORDER_MARK, bare, parse
from extproc.core.request import (
    Dialect,
    Request,
    Route,
    RouteKind,
    UsageAsked,
    find_route,
)
from extproc.core.scheduler import AskQuota
from extproc.core.tenant import ANONYMOUS, Tenant
from extproc.observe.tracing.request_trace import RequestTrace
from extproc.wire import codec, usage
from extproc.wire.codec import Reply
from extproc.wire.rename import renamed

if TYPE_CHECKING:
    from extproc.wire.processor import Processor

#: Envoy waits this much longer than a hold can last, so that the service's own 429 comes first.
HOLD_MARGIN_MS = 2_000
#: Bodies kept while their requests are held (those that ask for a family get another model's name).
BODIES_BYTES_MAX = 256 * 1024 * 1024
#: What is told to who is refused since too much of others' bodies is kept.
BODIES_HELD = "the gateway holds as much of requests' bodies as it may"
#: A Content-Length of more digits is larger than any bound.
LENGTH_DIGITS_MAX = 18
#: The value of the header with which a client asks for the reason.
EXPLAIN_REASON = "reason"


class ExchangeState(Enum):
    """How far a stream is."""

    AWAIT_HEADERS = auto()
    AWAIT_BODY = auto()
    DONE = auto()


class Exchange:
    """One request's stream."""

    __slots__ = (
        "_as_json",
        "_asked_for",
        "_asked_id",
        "_body",
        "_carried",
        "_dialect",
        "_explain",
        "_family",
        "_held_id",
        "_key",
        "_model",
        "_on_ready",
        "_phase",
        "_processor",
        "_ready",
        "_request_id",
        "_reservation_id",
        "_route",
        "_source",
        "_state",
        "_tenant",
        "_usage",
        "request_trace",
    )

    def __init__(self, processor: Processor) -> None:
        #: What is noted of its way; set by whoever has the call's metadata.
        self.request_trace: RequestTrace | None = None
        #: What of its trace rides with the request.
        self._carried = ""
        self._processor = processor
        self._state = ExchangeState.AWAIT_HEADERS
        self._dialect = Dialect.OPENAI
        self._route: Route | None = None
        self._tenant: Tenant = ANONYMOUS
        self._model: str | None = None
        self._reservation_id = ""
        self._held_id = ""
        self._asked_id = ""
        self._asked_for: Request | None = None
        self._key = ""
        #: Kept where it names a family, or where usage may be asked for in its name.
        self._body = b""
        self._family = False
        self._usage = UsageAsked.NO_STREAM
        self._explain = False
        #: Declared as something else, a body that was read as JSON goes on as JSON.
        self._as_json = False
        #: The address that it came from.
        self._source = ""
        self._request_id = ""
        self._phase = ""
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
        directory = self._processor.directory
        message = codec.read(data, claim=directory.claim, proxy=directory.proxy)
        return self._whatever_comes(lambda: self._received(message))

    def _received(self, message: codec.Message) -> Reply:
        if isinstance(message, codec.Headers) and self._state is ExchangeState.AWAIT_HEADERS:
            return self._on_headers(message)
        if isinstance(message, codec.Body) and self._state is ExchangeState.AWAIT_BODY:
            return self._on_body(message.data, "request_body")
        # A phase we did not ask for: somebody else's Envoy configuration. Let it pass.
        self._processor.scheduler.counts["phase.unexpected"] += 1
        kind = message.kind if isinstance(message, codec.Other) else _phase_of(message)
        return Reply(codec.CONTINUE.get(kind, codec.CONTINUE["request_headers"]), end=False)

    def _whatever_comes(self, answer: Callable[[], Reply]) -> Reply:
        """The last step: what nothing else has caught is a refusal too.

        An exception here would end the stream, and Envoy would take that for a service that is away: with
        `failure_mode: open` a request's content could let it past every quota.
        """
        try:
            return answer()
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._processor.failed(error, "exchange")
        self._state = ExchangeState.DONE
        try:
            self._undo()
        except Exception as error:  # noqa: BLE001 (what is not undone expires)
            self._processor.failed(error, "undoing")
        refused = Error.INTERNAL.reject()
        return Reply(codec.immediate(refused, self._dialect), end=True)

    def delivered(self) -> None:
        """The final reply went out whole: from here on the access log settles."""
        self._reservation_id = ""
        if self.request_trace is not None:
            self.request_trace.delivered(self._processor.clock())

    def sent_all(self) -> None:
        """Envoy has closed its side: nothing more comes. Whoever leaves instead cancels the call."""

    def when_ready(self, call: Callable[[Reply], None]) -> None:
        """After a reply that waits: call with the real one, at once if it is there already."""
        if self._ready is not None:
            call(self._ready)
        else:
            self._on_ready = call

    def release(self, decision: Routed | Reject) -> None:
        """The scheduler has decided on this held request."""
        self._held_id = ""
        if self.request_trace is not None:
            self.request_trace.released_ns = self._processor.clock()
        try:
            reply = self._answer(decision) if isinstance(decision, Reject) else self._routed(decision)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._undo()
            self._processor.failed(error, "release")
            reply = self._answer(Error.INTERNAL.reject("the gateway could not release this request"))
        self._ready = reply
        if self._on_ready is not None:
            self._on_ready(reply)

    def close(self) -> None:
        """The stream is over; a decision that was not delivered is undone, a wait given up."""
        self._processor.open_exchanges -= 1
        if self._asked_id:
            # Reserved or not by now: a cancelled reservation is refunded, an unknown one is nothing.
            self._processor.scheduler.quotas.cancel(self._asked_id, now_ns=self._processor.clock())
            self._asked_id = ""
        self._state = ExchangeState.DONE
        self._undo()
        if self.request_trace is not None:
            self.request_trace.closed(self._processor.clock())

    def overdue(self) -> Reply:
        """Its deadline has passed: the body is not here yet, or no replica had room."""
        if self._state is ExchangeState.DONE:
            refused = Error.OVERLOADED.reject("no replica had room before the gateway's deadline")
        else:
            refused = Error.REQUEST_TIMEOUT.reject()
        self._undo()
        self._processor.scheduler.turned_away(self._tenant.name, refused, now_ns=self._processor.clock())
        return self._answer(refused)

    def _on_headers(self, headers: codec.Headers) -> Reply:
        answer = self._begin(headers)
        if answer is not None:
            return answer
        if headers.alone:
            # Its body may come, and asks for the decision itself.
            self.request_trace = None
            return self._lets_come(headers.values.get("content-length", ""))
        if headers.end_of_stream:
            return self._on_body(b"", "request_headers")
        self._state = ExchangeState.AWAIT_BODY
        return Reply(codec.CONTINUE["request_headers"], end=False)

    def _lets_come(self, length: str) -> Reply:
        """A large body of a known sender: now, in a moment, or not."""
        processor = self._processor
        # Without a length it may be as large as any.
        expected = _declared(length, processor.body_bytes_max)
        wait_s = processor.paced(self._tenant.name, self._source, expected)
        if isinstance(wait_s, Reject):
            processor.scheduler.turned_away(self._tenant.name, wait_s, now_ns=processor.clock())
            return self._answer(wait_s)
        self._state = ExchangeState.DONE
        return Reply(codec.CONTINUE["request_headers"], end=True, after_s=wait_s)

    def _begin(self, headers: codec.Headers) -> Reply | None:
        """Look at a request's headers: the answer where they are enough for one, else None."""
        answer: LocalAnswer | Reject | None
        try:
            answer = self._screen(headers)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            # Who asks is unknown, and a stranger is not let in by a fault of ours.
            self._processor.failed(error, "screening")
            answer = Error.INTERNAL.reject("the gateway could not read this request")
        if isinstance(answer, Reject):
            whose = "" if answer.status == 401 else self._tenant.name
            self._processor.scheduler.turned_away(whose, answer, now_ns=self._processor.clock())
        return None if answer is None else self._answer(answer)

    def _screen(self, headers: codec.Headers) -> LocalAnswer | Reject | None:
        """Everything that can be said before the body comes; None lets it come."""
        processor, values = self._processor, headers.values
        method, path = values.get(":method", ""), values.get(":path", "")
        route, bare = find_route(method, path, processor.extra_routes), path.partition("?")[0]
        self._dialect = route.dialect if route is not None else dialect_of(bare)
        if self.request_trace is not None:
            self.request_trace.headers(route.kind if route is not None else None, values)
        if headers.repeated:
            return Error.INVALID_REQUEST.reject(
                f"the header '{headers.repeated}' was sent twice; send it once"
            )
        if route is not None and route.kind is RouteKind.HEALTH:
            return self._health()
        identity = processor.identify(headers.evidence)
        if isinstance(identity, Reject):
            return identity
        self._tenant = self._tenant_of(identity.tenant, values)
        if self.request_trace is not None:
            self.request_trace.tenant = self._tenant
        self._key = identity.key.id if identity.key is not None else ""
        self._source = headers.evidence.source
        if wait_s := processor.refused_too_much(self._tenant.name, self._source):
            return Error.TOO_MANY_REFUSED.reject(retry_after_s=wait_s)
        if route is None:
            message = advice(
                method, bare, scheme=values.get(":scheme", ""), host=values.get(":authority", "")
            )
            return Error.NOT_FOUND.reject(message)
        if route.kind is RouteKind.MODELS:
            return self._models()
        self._route, self._model = route, values.get(MODEL_HEADER)
        self._request_id = values.get("x-request-id", "")
        self._explain = (
            self._tenant.explain and values.get(EXPLAIN_HEADER, "").strip().lower() == EXPLAIN_REASON
        )
        if processor.deciding > processor.decisions_concurrent_max:
            processor.scheduler.counts["bound.decisions_concurrent_max"] += 1
            return Error.OVERLOADED.reject("the gateway decides as many requests as it may")
        encoding = values.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            return Error.UNSUPPORTED_ENCODING.reject(encoding=encoding[:32])
        # curl and urllib say "form" where they are told nothing, and engines refuse that: TGI with 415, vLLM
        # with 400. A page in a browser says its origin; it may send a form's type to anywhere unasked, but
        # not JSON's, and we are not who lifts that.
        self._as_json = "origin" not in values and not codec.declares_json(values.get("content-type", ""))
        if _exceeds(values.get("content-length", ""), processor.body_bytes_max):
            return _too_large(processor)
        return None

    def _tenant_of(self, proven: Tenant, _values: dict[str, str], /) -> Tenant:
        """Whose request it is, by what was proven."""
        return proven

    def _on_body(self, body: bytes, phase: str) -> Reply:
        """Decide, and say how long it took."""
        begun_ns = self._processor.clock()
        reply = self._decide_on(body, phase)
        now_ns = self._processor.took(begun_ns)
        if self.request_trace is not None:
            self.request_trace.body_ns, self.request_trace.decided_ns = begun_ns, now_ns
        return reply

    def _decide_on(self, body: bytes, phase: str) -> Reply:
        """Decide; should that fail, decide with less; should that fail, refuse."""
        processor, route = self._processor, self._route
        assert route is not None
        self._state = ExchangeState.DONE
        body = body.removeprefix(BYTE_ORDER_MARK)  # of no use to whoever writes it anew
        # A body without a length was not measured by its headers.
        refused = _too_large(processor) if len(body) > processor.body_bytes_max else None
        request: Request | Reject | None = None
        try:
            request = refused or parse(route, body, processor.body_bounds)
            if isinstance(request, Reject):
                return self._refused_read(request, body)
            self._family, self._usage = request.model in processor.scheduler.families, request.usage
            if self._family and (refused := _not_utf8(body)):
                # It goes on with another name in it, which wants every field's own name to be one.
                return self._refused_read(refused, body)
            if self._family or self._rewrites(body):
                self._body = body
            return self._decide(request, phase)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._undo()
            processor.failed(error, "decision")
        if isinstance(request, Reject):
            return self._answer(request)
        try:
            # What it asks for counts against quota and permits now as well; only what it says is left out.
            plain = bare(route, body) if request is None else _without_text(request)
            return self._decide(plain, phase, degraded="internal error")
        except Exception as error:  # noqa: BLE001 (the same law, once more)
            self._undo()
            processor.failed(error, "degraded decision")
        return self._undecided()

    def _refused_read(self, refused: Reject, body: bytes) -> Reply:
        """Refused for what is in its body: it cost what a served one costs to carry and to read."""
        if (
            refused.status == Error.UNFIT.status
            and self._dialect is Dialect.OPENAI
            and self._route is not None
        ):
            model = bare(self._route, body).model or self._model
            refused = as_engine_says(refused, self._dialect, self._processor.engine_for(model, self._tenant))
        self._processor.refused(self._tenant.name, self._source, len(body))
        self._processor.scheduler.turned_away(self._tenant.name, refused, now_ns=self._processor.clock())
        return self._answer(refused)

    def unanswered(self, error: Exception) -> Reply:
        """The shared store could not be asked at all: nobody said that the quota allows it."""
        self._processor.failed(error, "asking the quota")
        return self._whatever_comes(self._undecided)

    def answered(self, asked: AskQuota, answer: Granted | Refused) -> Reply:
        """The shared store has answered `Reply.ask`: the decision goes on."""
        self._asked_id = ""
        processor = self._processor
        if self.request_trace is not None:
            self.request_trace.answered(processor.clock(), granted=isinstance(answer, Granted))
        if isinstance(answer, Refused) and self._asked_for is not None:
            processor.spent(self._asked_for, self._tenant, self._key)
        try:
            return self._decided(processor.scheduler.answered(asked, answer, now_ns=processor.clock()))
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            self._undo()
            processor.failed(error, "decision after the quota")
            return self._undecided()

    def _decide(self, request: Request, phase: str, *, degraded: str = "") -> Reply:
        self._phase = phase
        processor = self._processor
        request = self._complete(request)
        if self.request_trace is not None:
            self.request_trace.read(request, processor.clock())
        decision = processor.scheduler.admit(
            request, self._tenant, key=self._key, now_ns=processor.clock(), degraded=degraded
        )
        if isinstance(decision, AskQuota):
            self._asked_for = request
        elif isinstance(decision, Reject) and decision.code == QUOTA_EXCEEDED:
            processor.spent(request, self._tenant, self._key)
        return self._decided(decision)

    def _decided(self, decision: Routed | Reject | Hold | AskQuota) -> Reply:
        processor = self._processor
        if isinstance(decision, Reject):
            return self._answer(decision)
        if isinstance(decision, AskQuota):
            self._asked_id = decision.routing.id
            if self.request_trace is not None:
                self.request_trace.asked_ns = processor.clock()
            return Reply(b"", end=False, ask=decision)
        if isinstance(decision, Hold):
            processor.scheduler.decisions.named(self._request_id, decision.id)
            if not self._family and processor.bodies_bytes + len(self._body) > BODIES_BYTES_MAX:
                self._body = b""  # it goes on as it came
            if self._body and processor.bodies_bytes + len(self._body) > BODIES_BYTES_MAX:
                processor.scheduler.counts["bound.bodies_bytes_max"] += 1
                processor.scheduler.leave(decision.id, now_ns=processor.clock())
                return self._answer(Error.OVERLOADED.reject(BODIES_HELD))
            self._held_id = decision.id
            processor.hold(decision.id, self)
            if self.request_trace is not None:
                self.request_trace.held_ns = processor.clock()
            return self._waits(decision)
        return self._routed(decision)

    def _routed(self, decision: Routed) -> Reply:
        self._reservation_id = decision.reservation.id
        self._processor.scheduler.decisions.named(self._request_id, decision.reservation.id)
        # Engines refuse names that they do not know: a family's is none of theirs.
        body = renamed(self._body, decision.reservation.model) if self._family and self._body else None
        if self.request_trace is not None:
            self._carried = self.request_trace.placed(decision)
        reply = self._goes(decision, body)
        self._processor.stats.decided(self._tenant.name, decision)
        self._processor.recent.routed(decision.reservation, now_ns=self._processor.clock())
        return reply

    def _waits(self, hold: Hold, /) -> Reply:
        """Tell Envoy to wait."""
        left_ms = (hold.until_ns - self._processor.clock()) // 1_000_000
        return Reply(codec.hold(left_ms + HOLD_MARGIN_MS), end=False, wait=True)

    def _goes(self, decision: Routed, body: bytes | None) -> Reply:
        """Tell Envoy where it goes, and with which body in place of its own."""
        asked, body = self._with_usage(decision, body)
        data = codec.routed(
            decision,
            self._phase,
            seal=self._processor.seal,
            event_cluster=self._processor.event_cluster,
            explained=self._explain,
            carried=self._carried,
            body=body,
            as_json=self._as_json and self._phase == "request_body",
            usage=asked,
            engine_key=self._processor.engine_keys.get(decision.reservation.pool, ""),
        )
        return Reply(data, end=True, reservation_id=decision.reservation.id)

    def _rewrites(self, body: bytes) -> bool:
        """Whether usage may be asked for in a body."""
        return self._usage is not UsageAsked.NO_STREAM and len(body) <= usage.BODY_BYTES_MAX

    def _with_usage(self, decision: Routed, body: bytes | None) -> tuple[str, bytes | None]:
        """What is asked for in the client's name, and the body that asks for it."""
        pool = self._processor.scheduler.fleet.pools.get(decision.reservation.pool)
        if not self._body or pool is None or self._route is None or not self._rewrites(self._body):
            return "", body
        asked = usage.wanted(pool, self._route.kind, self._usage)
        if not asked:
            return "", body
        try:
            return asked, usage.with_usage(body or self._body, every=usage.EVERY in asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "", body  # what we cannot write goes on as it came

    def _refuses(self, answer: LocalAnswer | Reject) -> bytes:
        """Tell Envoy to answer itself."""
        return codec.immediate(answer, self._dialect)

    def _undo(self) -> None:
        """Release what this exchange reserved and did not deliver; give up a wait."""
        if self._held_id:
            self._processor.gave_up(self._held_id)
            self._held_id = ""
        if self._reservation_id:
            self._processor.scheduler.cancel(self._reservation_id, now_ns=self._processor.clock())
            self._processor.recent.cancelled(self._reservation_id)
            self._reservation_id = ""

    def _complete(self, request: Request) -> Request:
        """What is not in the body: the model header counts where the body names none."""
        if request.model is None and self._model:
            return replace(request, model=self._model)
        return request

    def _undecided(self) -> Reply:
        """Neither way could decide. Nobody else may: quota, queue and regions hang on a decision."""
        return self._answer(Error.INTERNAL.reject())

    def _answer(self, answer: LocalAnswer | Reject) -> Reply:
        self._state = ExchangeState.DONE
        if isinstance(answer, Reject) and answer.status != 401:
            self._processor.stats.rejected(self._tenant.name)
        if self.request_trace is not None:
            self.request_trace.answer(answer)
        return Reply(self._refuses(answer), end=True)

    def _health(self) -> LocalAnswer | Reject:
        # Nobody is asked for a key here: whether it serves, and nothing else.
        if any(endpoint.ready for endpoint in self._processor.scheduler.fleet.endpoints):
            return LocalAnswer(status=200, body=b'{"status":"ok"}')
        return Error.NO_READY_ENDPOINT.reject()

    def _models(self) -> LocalAnswer:
        scheduler = self._processor.scheduler
        served = scheduler.fleet.models_for(self._tenant.name)
        names = [n for n in served if self._tenant.may(n)]
        names += [n for n, f in scheduler.families.items() if members(f, self._tenant, scheduler.fleet)]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "steersman"} for name in names]
        return LocalAnswer(status=200, body=msgspec.json.encode({"object": "list", "data": listed}))


def _exceeds(length: str, bound: int) -> bool:
    """Whether a Content-Length says more than a bound; what is no number says nothing."""
    return _declared(length, -1) > bound


def _declared(length: str, otherwise: int) -> int:
    """What a Content-Length says, as far as numbers go here; what is no number says `otherwise`."""
    if not (length.isascii() and length.isdigit()):
        return otherwise
    digits = length.lstrip("0") or "0"
    # By the number of digits first: Python refuses to read an integer of 4,301.
    return int(digits) if len(digits) <= LENGTH_DIGITS_MAX else 10**LENGTH_DIGITS_MAX


def _too_large(processor: Processor) -> Reject:
    return Error.BODY_TOO_LARGE.reject(bytes=processor.body_bytes_max)


def _not_utf8(body: bytes) -> Reject | None:
    if body.isascii():
        return None
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return Error.INVALID_REQUEST.reject(f"the body is not UTF-8: {error.reason}")
    return None


def _without_text(request: Request) -> Request:
    """A request without what it says: prefixes, families' scores and sessions do without."""
    return replace(request, segments=(), marks=(), prompt_ids=b"", prefix=(), tools=0, user=None)


def _phase_of(message: codec.Headers | codec.Body) -> str:
    return "request_headers" if isinstance(message, codec.Headers) else "request_body"
