"""One stream of the endpoint-picker protocol as a state machine beside `Exchange`.

Owns bodies that come in pieces both ways (FULL_DUPLEX_STREAMED): they are put together, decided on as any
other request, and sent back; then the response is followed, or the stream ended. Screening, reading and
deciding are `Exchange`'s. No I/O.
"""

from __future__ import annotations

from dataclasses import replace

from google.protobuf.message import DecodeError
from msgspec import structs

from extproc._pb import ext_proc_pb2 as pb
from extproc.core.request import Request
from extproc.core.tenant import Tenant
from extproc.wire.codec import CONTINUE, read_headers
from extproc.wire.exchange import Exchange
from extproc.wire.picker import Picker, codec
from extproc.wire.picker.responder import PickerResponder
from extproc.wire.picker.response import Followed
from extproc.wire.responder import Reply
from extproc.wire.states import BODY, HEADERS, ROUTED

#: A target above this is none (ten minutes).
SLO_MS_MAX = 600_000


class PickerExchange(Exchange):
    """One request's stream, and its response's."""

    __slots__ = ("_only", "_picker", "_side", "_values")

    def __init__(self, picker: Picker) -> None:
        self._side = PickerResponder(picker)
        super().__init__(picker.processor, self._side)
        self._picker = picker
        #: What a trusted gateway says in headers, and the endpoints that it allows.
        self._values: dict[str, str] = {}
        self._only: tuple[str, ...] | None = None

    @property
    def _names(self) -> codec.HeaderNames:
        """The headers of a gateway that is trusted."""
        return codec.NAMES[self._picker.settings.header_names]

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
        try:
            if kind.startswith("response"):
                return self._on_response(kind, message)
            if kind == "request_headers" and self._state is HEADERS:
                return self._on_first(message)
            if kind == "request_body" and self._state is BODY:
                return self._on_piece(message.request_body)
            if kind == "request_trailers" and self._state is BODY:
                self._side.body.trailers = True
                return self._on_body(self._side.body.end())
            return self._stray(kind)
        except Exception as error:  # noqa: BLE001 (law: every exception becomes a decision)
            return self._failed(error)

    def delivered(self) -> None:
        """The decision went out whole: its end comes from the response, or from the access log."""
        if self._state is ROUTED and self._side.stays:
            self._picker.following.add(self)
            self._processor.following += 1
        super().delivered()

    def sent_all(self) -> None:
        """Envoy has no further phase for us: the response goes on unseen, or is over."""
        if self in self._picker.following and self._side.response_mode == codec.NO_BODY:
            # Whether this is the decision's end or the request's cannot be told: the access log may say it,
            # and else its reservation expires.
            self._picker.unseen()
            self._let_go()

    def beat(self, *, now_ns: int) -> None:
        """Say that the request still runs."""
        if self._side.followed is not None:
            self._picker.settle(self._side.followed.heartbeat(now_ns=now_ns))

    def close(self) -> None:
        """The stream is over: what was cut is settled, what was not delivered undone."""
        self._side.body.forget()
        if self in self._picker.following:
            self._ended(complete=False)
        super().close()

    def _on_first(self, message: pb.ProcessingRequest) -> Reply:
        """The request's headers, and what else their message says."""
        if message.HasField("protocol_config"):
            self._side.response_mode = message.protocol_config.response_body_mode
        directory = self._processor.directory
        headers = read_headers(
            message,
            claim=directory.claim,
            proxy=directory.proxy,
            trusted=self._processor.model_headers
            | (frozenset(self._names) if self._picker.settings.trust_headers else frozenset()),
        )
        self._values, self._only = headers.values, codec.subset(message)
        return self._on_headers(headers)

    def _on_piece(self, piece: pb.HttpBody) -> Reply:
        body = self._side.body
        if (refused := body.add(piece.body)) is not None:
            return self.turned_away(refused)
        return self._on_body(body.end()) if piece.end_of_stream else Reply(b"", end=False)

    def _whose(self, proven: Tenant, values: dict[str, str], /) -> Tenant:
        settings, processor = self._picker.settings, self._processor
        if not settings.trust_headers:
            return proven
        directory = processor.directory
        if not directory.required and (name := values.get(self._names.fairness)):
            proven = directory.tenants.get(name, proven)
        if objective := values.get(self._names.objective):
            wanted = settings.objectives.get(objective, objective)
            if any(each.name == wanted for each in processor.scheduler.policy.classes):
                proven = replace(proven, service_class=wanted)
        return proven

    def _complete(self, request: Request) -> Request:
        request = super()._complete(request)
        values, names = self._values, self._names
        ttft_ms, tpot_ms = _target(values.get(names.ttft)), _target(values.get(names.tpot))
        only = None if self._only is None else self._resolved(self._only, request)
        if only is None and not (ttft_ms or tpot_ms):
            return request
        return structs.replace(request, only=only, ttft_ms=ttft_ms, tpot_ms=tpot_ms)

    def _resolved(self, named: tuple[str, ...], request: Request) -> frozenset[str]:
        """The addresses that a subset allows; those that no pool has may join first."""
        scheduler, tenant = self._processor.scheduler, self._asked.tenant
        if self._picker.settings.discover:
            model = request.model or tenant.default_model or scheduler.settings.default_model
            self._picker.join(model, tenant.name, tuple(each for each in named if _has_port(each)))
        bare = {each for each in named if not _has_port(each)}
        only = set(named) - bare
        if bare:
            only.update(e.address for e in scheduler.fleet.endpoints if e.address.rpartition(":")[0] in bare)
        return frozenset(only)

    def _on_response(self, kind: str, message: pb.ProcessingRequest) -> Reply:
        """Send back what came, whatever becomes of reading it."""
        data: tuple[bytes, ...]
        if kind == "response_headers":
            data, end = (CONTINUE[kind],), message.response_headers.end_of_stream
        elif kind == "response_trailers":
            data, end = (CONTINUE[kind],), True
        elif self._side.response_mode == codec.FULL_DUPLEX:
            piece = message.response_body
            end = piece.end_of_stream
            data = tuple(codec.pieces(kind, piece.body, end=end)) or (CONTINUE[kind],)
        else:
            data, end = (CONTINUE[kind],), message.response_body.end_of_stream
        try:
            self._follow(kind, message, end=end)
        except Exception as error:  # noqa: BLE001 (a response that cannot be read goes on all the same)
            self._processor.failed(error, "response")
        return Reply(data[0], end=end, more=data[1:])

    def _follow(self, kind: str, message: pb.ProcessingRequest, *, end: bool) -> None:
        followed, now_ns = self._side.followed, self._processor.clock()
        if followed is None or self not in self._picker.following:
            return
        if kind == "response_headers":
            followed.headers(message.response_headers, served_by=codec.served_by(message))
            if followed.served_by:
                # The load goes along with a retry at once.
                self._picker.settle(followed.heartbeat(now_ns=now_ns))
            # Of a body that never comes here the end does not either; an answer that is no stream is whole.
            end = end or (self._side.response_mode == codec.NO_BODY and not followed.streams)
        elif kind == "response_body" and followed.body(message.response_body.body, now_ns=now_ns):
            self._picker.first_token(followed.reservation_id, followed.refused, followed.served_by)
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
        followed, self._side.followed = self._side.followed, None
        self._picker.following.discard(self)
        self._processor.following -= 1
        return followed


def _has_port(address: str) -> bool:
    """Whether it is `ip:port`: an IPv6 address stands in brackets."""
    return not address.endswith("]") and ":" in address


def _target(text: str | None) -> int:
    """A target in milliseconds; 0 for none, and for what is none."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= len(str(SLO_MS_MAX))):
        return 0
    return min(int(text), SLO_MS_MAX)
