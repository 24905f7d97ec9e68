"""The endpoint-picker protocol (Gateway API Inference Extension) as a state machine beside `Exchange`.

Owns streams whose bodies come in pieces both ways (FULL_DUPLEX_STREAMED): they are put together, decided on
as any other request, and sent back; then the response is followed, or the stream ended. Screening, reading
and deciding are `Exchange`'s. No I/O.

    await headers ── answered or refused ──▶ done
          ├─ no body follows ──▶ decide
          └─ await body ── its end, or trailers ──▶ decide ── access_log ──▶ done
                                                       └─ stream ──▶ follow the response ──▶ done
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from google.protobuf.message import DecodeError

from extproc._pb import ext_proc_pb2 as pb
from extproc.config.picker import PickerConfig as Settings
from extproc.core.contract import (
    DROPPED_HEADER,
    FAIRNESS_HEADER,
    OBJECTIVE_HEADER,
    SLO_TPOT_HEADER,
    SLO_TTFT_HEADER,
)
from extproc.core.errors import Error
from extproc.core.outcome import QUOTA_EXCEEDED, Hold, LocalAnswer, Outcome, Reject, Reservation, Routed
from extproc.core.request import Request
from extproc.core.tenant import Tenant
from extproc.wire import codec, picker_codec
from extproc.wire.codec import Reply
from extproc.wire.exchange import BODIES_HELD, Exchange, ExchangeState
from extproc.wire.picker_response import Followed
from extproc.wire.processor import Processor

log = logging.getLogger(__name__)

#: A target above this is none (ten minutes).
SLO_MS_MAX = 600_000
#: How often a request that runs is said to do so: often enough for the shortest reservation (5 s).
HEARTBEAT_NS = 1_000_000_000

#: Why a request was dropped, in llm-d's words where it has one.
SATURATED, EXPIRED, QUOTA, NO_ENDPOINT = (
    "rejected-saturated",
    "rejected-ttl-expired",
    "rejected-quota",
    "rejected-no-endpoint",
)


def _nobody_joins(_model: str, _tenant: str, _addresses: tuple[str, ...]) -> None:
    """Endpoints that are in no pool stay out."""


class Picker:
    """What all streams of the protocol share.

    `settle` takes outcomes as the access log's, `first_token` a reservation's id and whether the engine
    refused. `join(model, tenant, addresses)` hears of endpoints that a gateway named and no pool has.
    """

    def __init__(
        self,
        processor: Processor,
        settings: Settings,
        *,
        settle: Callable[[Outcome], object],
        first_token: Callable[[str, bool], object],
        join: Callable[[str, str, tuple[str, ...]], object] = _nobody_joins,
    ) -> None:
        self.processor = processor
        self.settings = settings
        self.settle = settle
        self.first_token = first_token
        self.join = join
        #: Request bodies in memory.
        self.bodies_bytes = 0
        #: Streams that stay for their responses.
        self.following: set[PickerExchange] = set()
        self._told_ns = 0

    def speaks(self, data: bytes) -> bool:
        """Whether a stream that begins with this message is of the protocol."""
        settings = self.settings
        if not settings.enabled:
            return False
        said = picker_codec.modes(data)
        return settings.assume if said is None else said.request == picker_codec.FULL_DUPLEX

    def open(self) -> PickerExchange:
        """A new stream; `close` it when it ends, however it ends."""
        self.processor.open_exchanges += 1
        return PickerExchange(self)

    def passed_on(self) -> None:
        """A response that need not pass through here, and does."""
        self._count(
            "picker.passed_on",
            "picker.settle is 'access_log', but a gateway sends response bodies: its streams stay open to "
            "pass them on; set its response_body_mode to NONE",
        )

    def unseen(self) -> None:
        """A response whose end a gateway does not let us see."""
        self._count(
            "picker.unseen",
            "picker.settle is 'stream', but a gateway sends no response bodies: its requests' ends stay "
            "unseen and their reservations expire; let it send them, or our access log",
        )

    def step(self, *, now_ns: int) -> None:
        """Time has passed: what still runs is said to, so that its reservation lives on."""
        if now_ns - self._told_ns < HEARTBEAT_NS:
            return
        self._told_ns = now_ns
        for exchange in tuple(self.following):
            exchange.beat(now_ns=now_ns)

    def _count(self, name: str, warning: str) -> None:
        """What a gateway's configuration is to blame for; said once."""
        counts = self.processor.scheduler.counts
        if not counts[name]:
            log.warning(warning)
        counts[name] += 1


class PickerExchange(Exchange):
    """One request's stream, and its response's."""

    __slots__ = (
        "_begun_ns",
        "_followed",
        "_kept",
        "_only",
        "_onward",
        "_picker",
        "_pieces",
        "_response_mode",
        "_start_unix_ns",
        "_stays",
        "_trailers",
        "_values",
        "_was_held",
    )

    def __init__(self, picker: Picker) -> None:
        super().__init__(picker.processor)
        self._picker = picker
        self._begun_ns = picker.processor.clock()
        self._start_unix_ns = int(picker.processor.wall_clock() * 1e9)
        self._pieces = bytearray()
        self._kept = 0
        self._onward = b""
        self._trailers = False
        self._values: dict[str, str] = {}
        self._only: tuple[str, ...] | None = None
        self._response_mode: int = picker_codec.FULL_DUPLEX
        self._was_held = False
        self._stays = False
        self._followed: Followed | None = None

    @property
    def deadline_s(self) -> float | None:
        """How long it may take to a decision."""
        return self._picker.settings.deadline_ms / 1e3

    @property
    def body_bytes(self) -> int:
        """Nothing that the processor must count: bodies are counted here."""
        return 0

    def receive(self, data: bytes) -> Reply:
        """Answer one message. Raises only on bytes that are no ProcessingRequest."""
        message = pb.ProcessingRequest.FromString(data)
        kind = message.WhichOneof("request")
        if kind is None:
            raise DecodeError("a ProcessingRequest without a phase")
        return self._whatever_comes(lambda: self._taken(kind, message))

    def _taken(self, kind: str, message: pb.ProcessingRequest) -> Reply:
        if kind.startswith("response"):
            return self._on_response(kind, message)
        if kind == "request_headers" and self._state is ExchangeState.AWAIT_HEADERS:
            return self._on_request_headers(message)
        if kind == "request_body" and self._state is ExchangeState.AWAIT_BODY:
            return self._on_piece(message.request_body)
        if kind == "request_trailers" and self._state is ExchangeState.AWAIT_BODY:
            self._trailers = True
            return self._on_whole()
        self._processor.scheduler.counts["phase.unexpected"] += 1
        return Reply(codec.CONTINUE[kind], end=False)

    def delivered(self) -> None:
        """The decision went out whole: its end comes from the response, or from the access log."""
        if self._reservation_id and self._stays:
            self._picker.following.add(self)
            self._processor.following += 1
        super().delivered()

    def sent_all(self) -> None:
        """Envoy has no further phase for us: the response goes on unseen, or is over."""
        if self in self._picker.following and self._response_mode == picker_codec.NO_BODY:
            # Whether this is the decision's end or the request's cannot be told: the access log may say it,
            # and else its reservation expires.
            self._picker.unseen()
            self._let_go()

    def beat(self, *, now_ns: int) -> None:
        """Say that the request still runs."""
        if self._followed is not None:
            self._picker.settle(self._followed.heartbeat(now_ns=now_ns))

    def close(self) -> None:
        """The stream is over: what was cut is settled, what was not delivered undone."""
        self._forget_body()
        if self in self._picker.following:
            self._ended(complete=False)
        super().close()

    def _on_request_headers(self, message: pb.ProcessingRequest) -> Reply:
        if message.HasField("protocol_config"):
            self._response_mode = message.protocol_config.response_body_mode
        directory = self._processor.directory
        headers = codec.read_headers(
            message,
            claim=directory.claim,
            proxy=directory.proxy,
            trusted=picker_codec.TRUSTED if self._picker.settings.trust_headers else frozenset(),
        )
        self._values, self._only = headers.values, picker_codec.subset(message)
        answer = self._begin(headers)
        if answer is not None:
            return answer
        self._state = ExchangeState.AWAIT_BODY
        if headers.end_of_stream:
            self._onward = b""
            return self._on_body(b"", "request_headers")
        return Reply(b"", end=False)

    def _on_piece(self, piece: pb.HttpBody) -> Reply:
        picker, length = self._picker, len(piece.body)
        if len(self._pieces) + length > self._processor.body_bytes_max:
            return self._refused_unread(Error.BODY_TOO_LARGE.reject(bytes=self._processor.body_bytes_max))
        if picker.bodies_bytes + length > picker.settings.bodies_bytes_max:
            self._processor.scheduler.counts["bound.picker_bodies_bytes_max"] += 1
            return self._refused_unread(Error.OVERLOADED.reject(BODIES_HELD))
        self._pieces += piece.body
        self._kept += length
        picker.bodies_bytes += length
        return self._on_whole() if piece.end_of_stream else Reply(b"", end=False)

    def _on_whole(self) -> Reply:
        """The body is here: decide."""
        self._onward = bytes(self._pieces)
        self._pieces.clear()
        return self._on_body(self._onward, "request_body")

    def _refused_unread(self, refused: Reject) -> Reply:
        self._processor.scheduler.turned_away(self._tenant.name, refused, now_ns=self._processor.clock())
        return self._answer(refused)

    def _tenant_of(self, proven: Tenant, values: dict[str, str], /) -> Tenant:
        settings, processor = self._picker.settings, self._processor
        if not settings.trust_headers:
            return proven
        directory = processor.directory
        if not directory.required and (name := values.get(FAIRNESS_HEADER)):
            proven = directory.tenants.get(name, proven)
        if objective := values.get(OBJECTIVE_HEADER):
            wanted = settings.objectives.get(objective, objective)
            if any(each.name == wanted for each in processor.scheduler.policy.classes):
                proven = replace(proven, service_class=wanted)
        return proven

    def _complete(self, request: Request) -> Request:
        request = super()._complete(request)
        values = self._values
        ttft_ms, tpot_ms = _target(values.get(SLO_TTFT_HEADER)), _target(values.get(SLO_TPOT_HEADER))
        only = None if self._only is None else self._resolved(self._only, request)
        if only is None and not (ttft_ms or tpot_ms):
            return request
        return replace(request, only=only, ttft_ms=ttft_ms, tpot_ms=tpot_ms)

    def _resolved(self, named: tuple[str, ...], request: Request) -> frozenset[str]:
        """The addresses that a subset allows; those that no pool has may join first."""
        fleet = self._processor.scheduler.fleet
        if self._picker.settings.discover:
            model = request.model or self._tenant.default_model or self._processor.scheduler.default_model
            self._picker.join(model, self._tenant.name, tuple(each for each in named if _has_port(each)))
        bare = {each for each in named if not _has_port(each)}
        only = set(named) - bare
        if bare:
            only.update(e.address for e in fleet.endpoints if e.address.rpartition(":")[0] in bare)
        return frozenset(only)

    def _waits(self, _hold: Hold, /) -> Reply:
        self._was_held = True
        return Reply(b"", end=False, wait=True)

    def _goes(self, decision: Routed, body: bytes | None) -> Reply:
        settings = self._picker.settings
        onward = self._onward if body is None else body
        head = self._phase == "request_headers"
        data = picker_codec.goes(
            decision.addresses,
            codec.told(
                decision,
                seal=self._processor.seal,
                event_cluster=self._processor.event_cluster,
                explained=self._explain,
                carried=self._carried,
            ),
            length=None if head or self._trailers else len(onward),
            without_keys=self._processor.directory.required,
            clear_route_cache=settings.clear_route_cache,
            as_json=self._as_json and not head,
            engine_key=self._processor.engine_keys.get(decision.reservation.pool, ""),
        )
        more: list[bytes] = []
        if not head:
            more.extend(picker_codec.pieces("request_body", onward, end=not self._trailers))
        if self._trailers:
            more.append(codec.CONTINUE["request_trailers"])
        self._follow(decision.reservation, request_bytes=len(self._onward))
        self._forget_body()
        return Reply(data, end=not self._stays, reservation_id=decision.reservation.id, more=tuple(more))

    def _rewrites(self, body: bytes, /) -> bool:  # noqa: ARG002 (nobody would take it out of the answer again)
        return False

    def _follow(self, reservation: Reservation, *, request_bytes: int) -> None:
        """Whether the stream stays for the response, and is read.

        Where response bodies come, a piece may be under way to us when we end the stream, and Envoy would
        lose it: such a stream stays to pass them on, though the access log settles.
        """
        follows = self._picker.settings.settle == "stream"
        self._stays = follows or self._response_mode != picker_codec.NO_BODY
        if follows:
            self._followed = Followed(
                reservation,
                begun_ns=self._begun_ns,
                start_unix_ns=self._start_unix_ns,
                trace=self._carried,
                request_bytes=request_bytes,
            )
        elif self._stays:
            self._picker.passed_on()

    def _refuses(self, answer: LocalAnswer | Reject) -> bytes:
        self._forget_body()
        why = "" if isinstance(answer, LocalAnswer) else _why(answer, held=self._was_held)
        return codec.immediate(answer, self._dialect, headers=((DROPPED_HEADER, why),) if why else ())

    def _on_response(self, kind: str, message: pb.ProcessingRequest) -> Reply:
        """Send back what came, whatever becomes of reading it."""
        data: tuple[bytes, ...]
        if kind == "response_headers":
            data, end = (codec.CONTINUE[kind],), message.response_headers.end_of_stream
        elif kind == "response_trailers":
            data, end = (codec.CONTINUE[kind],), True
        elif self._response_mode == picker_codec.FULL_DUPLEX:
            piece = message.response_body
            end = piece.end_of_stream
            data = tuple(picker_codec.pieces(kind, piece.body, end=end)) or (codec.CONTINUE[kind],)
        else:
            data, end = (codec.CONTINUE[kind],), message.response_body.end_of_stream
        try:
            self._read(kind, message, end=end)
        except Exception as error:  # noqa: BLE001 (a response that cannot be read goes on all the same)
            self._processor.failed(error, "response")
        return Reply(data[0], end=end, more=data[1:])

    def _read(self, kind: str, message: pb.ProcessingRequest, *, end: bool) -> None:
        followed, now_ns = self._followed, self._processor.clock()
        if followed is None or self not in self._picker.following:
            return
        if kind == "response_headers":
            followed.headers(message.response_headers, served_by=picker_codec.served_by(message))
            if followed.served_by:
                # The load goes along with a retry at once.
                self._picker.settle(followed.heartbeat(now_ns=now_ns))
            # Of a body that never comes here the end does not either; an answer that is no stream is whole.
            end = end or (self._response_mode == picker_codec.NO_BODY and not followed.streams)
        elif kind == "response_body" and followed.body(message.response_body.body, now_ns=now_ns):
            self._picker.first_token(followed.reservation_id, followed.refused)
        if end:
            self._ended(complete=True)

    def _ended(self, *, complete: bool) -> None:
        followed = self._let_go()
        if followed is not None:
            try:
                self._picker.settle(followed.outcome(now_ns=self._processor.clock(), complete=complete))
            except Exception as error:  # noqa: BLE001 (the stream ends in any case)
                self._processor.failed(error, "settling")

    def _let_go(self) -> Followed | None:
        followed, self._followed = self._followed, None
        self._picker.following.discard(self)
        self._processor.following -= 1
        return followed

    def _forget_body(self) -> None:
        self._picker.bodies_bytes -= self._kept
        self._kept = 0
        self._pieces.clear()
        self._onward = b""


def _has_port(address: str) -> bool:
    """Whether it is `ip:port`: an IPv6 address stands in brackets."""
    return not address.endswith("]") and ":" in address


def _target(text: str | None) -> int:
    """A target in milliseconds; 0 for none, and for what is none."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= len(str(SLO_MS_MAX))):
        return 0
    return min(int(text), SLO_MS_MAX)


def _why(reject: Reject, *, held: bool) -> str:
    if reject.code == QUOTA_EXCEEDED:
        return QUOTA
    if reject.status == Error.OVERLOADED.status:
        return EXPIRED if held else SATURATED
    return NO_ENDPOINT if reject.code == Error.NO_READY_ENDPOINT.code else ""
