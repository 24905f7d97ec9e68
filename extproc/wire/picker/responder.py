"""How the picker protocol is answered: the decision in the answer to the headers, and the body in pieces.

Owns the request's body while it is here, and whether the stream stays for the response.
"""

from __future__ import annotations

from extproc.core.contract import DROPPED_HEADER
from extproc.core.errors import Error
from extproc.core.outcome import QUOTA_EXCEEDED, LocalAnswer, Reject, Reservation, Routed
from extproc.core.request import Dialect
from extproc.wire.codec import CONTINUE, immediate, told
from extproc.wire.picker import Picker, codec
from extproc.wire.picker.response import Followed
from extproc.wire.responder import BODIES_HELD, Reply

#: Why a request was dropped, in llm-d's words where it has one.
SATURATED, EXPIRED, QUOTA, NO_ENDPOINT = (
    "rejected-saturated",
    "rejected-ttl-expired",
    "rejected-quota",
    "rejected-no-endpoint",
)
_NOTHING_YET = Reply(b"", end=False)


class PickerBody:
    """A request's body while it is here: its pieces, then the whole; counted in what all bodies may take."""

    __slots__ = ("_kept", "_picker", "_pieces", "trailers", "whole")

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._pieces = bytearray()
        self._kept = 0
        #: All of it, once it is here.
        self.whole = b""
        #: Trailers end it, and are answered too.
        self.trailers = False

    def add(self, piece: bytes) -> Reject | None:
        """One more piece; why it is one too many."""
        picker, length = self._picker, len(piece)
        processor = picker.processor
        if len(self._pieces) + length > processor.body_bytes_max:
            return Error.BODY_TOO_LARGE.reject(bytes=processor.body_bytes_max)
        if picker.bodies_bytes + length > picker.settings.bodies_bytes_max:
            processor.scheduler.counts["bound.picker_bodies_bytes_max"] += 1
            return Error.OVERLOADED.reject(BODIES_HELD)
        self._pieces += piece
        self._kept += length
        picker.bodies_bytes += length
        return None

    def end(self) -> bytes:
        """It is whole."""
        self.whole = bytes(self._pieces)
        self._pieces.clear()
        return self.whole

    def forget(self) -> None:
        """It went on, or nobody wants it."""
        self._picker.bodies_bytes -= self._kept
        self._kept = 0
        self._pieces.clear()
        self.whole = b""


class PickerResponder:
    """One stream's answers, and what it keeps for them."""

    __slots__ = (
        "_begun_ns",
        "_held",
        "_picker",
        "_start_unix_ns",
        "body",
        "followed",
        "response_mode",
        "stays",
    )

    #: Nobody would take it out of the answer again.
    asks_usage = False
    shows_heads = False
    #: What comes back passes through another gateway, which gathers nothing.
    caches = False

    def __init__(self, picker: Picker) -> None:
        self._picker = picker
        self._begun_ns = picker.processor.clock()
        self._start_unix_ns = int(picker.processor.wall_clock() * 1e9)
        self._held = False
        self.body = PickerBody(picker)
        #: How the response's body comes, as the gateway says it.
        self.response_mode: int = codec.FULL_DUPLEX
        #: The stream does not end with the decision, and its response is read.
        self.stays = False
        self.followed: Followed | None = None

    def let_come(self) -> Reply:
        """Where it goes is in the answer to the headers, which waits for the body."""
        return _NOTHING_YET

    def hold(self, _left_ms: int) -> Reply:
        """Envoy waits as long as the client does."""
        self._held = True
        return Reply(b"", end=False, wait=True)

    def route(
        self,
        decision: Routed,
        *,
        phase: str,
        explained: bool,
        as_json: bool,
        trace: str,
        body: bytes | None,
        usage: str,  # noqa: ARG002 (none is asked)
        cache: str = "",  # noqa: ARG002 (none is gathered)
    ) -> Reply:
        """The headers' answer, then the body in pieces, then the trailers'."""
        processor, kept, reservation = self._picker.processor, self.body, decision.reservation
        onward = kept.whole if body is None else body
        head = phase == "request_headers"
        # Nobody here writes its model's own name back, so what goes to another pool is not tried at home.
        addresses = decision.addresses[:1] if reservation.spilled_from else decision.addresses
        if reservation.then:
            addresses = addresses[:-1]
        data = codec.goes(
            addresses,
            told(
                decision,
                seal=processor.seal,
                event_cluster=processor.event_cluster,
                explained=explained,
                carried=trace,
            ),
            length=None if head or kept.trailers else len(onward),
            without_keys=processor.directory.required,
            clear_route_cache=self._picker.settings.clear_route_cache,
            as_json=as_json,
            tries=self._picker.settings.tries,
            engine_key=processor.engine_keys.get(reservation.pool),
        )
        more: list[bytes] = []
        if not head:
            more.extend(codec.pieces("request_body", onward, end=not kept.trailers))
        if kept.trailers:
            more.append(CONTINUE["request_trailers"])
        self._follow(reservation, trace=trace)
        kept.forget()
        return Reply(data, end=not self.stays, reservation_id=reservation.id, more=tuple(more))

    def refuse(self, answer: LocalAnswer | Reject, dialect: Dialect) -> Reply:
        """With the reason of the drop in a header."""
        self.body.forget()
        why = "" if isinstance(answer, LocalAnswer) else _why(answer, held=self._held)
        headers = ((DROPPED_HEADER, why),) if why else ()
        return Reply(immediate(answer, dialect, headers=headers), end=True)

    def _follow(self, reservation: Reservation, *, trace: str) -> None:
        """Whether the stream stays for the response, and is read.

        Where response bodies come, a piece may be under way to us when we end the stream, and Envoy would
        lose it: such a stream stays to pass them on, though the access log settles.
        """
        follows = self._picker.settings.settle == "stream"
        self.stays = follows or self.response_mode != codec.NO_BODY
        if follows:
            self.followed = Followed(
                reservation,
                begun_ns=self._begun_ns,
                start_unix_ns=self._start_unix_ns,
                trace=trace,
                request_bytes=len(self.body.whole),
            )
        elif self.stays:
            self._picker.passed_on()


def _why(reject: Reject, *, held: bool) -> str:
    if reject.code == QUOTA_EXCEEDED:
        return QUOTA
    if reject.status == Error.OVERLOADED.status:
        return EXPIRED if held else SATURATED
    return NO_ENDPOINT if reject.code == Error.NO_READY_ENDPOINT.code else ""
