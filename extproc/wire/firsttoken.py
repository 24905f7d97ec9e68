"""First-token events: Envoy tells the service that a stream's first chunk has come.

Owns the call's reading and its counts. What a first token means is the scheduler's. The id in the call comes
from the decision's own metadata, sealed there: nobody else can make an event of a request.

The event only speeds up what the access log says later, so that one which is lost, late, of an unknown
request or sent twice does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from extproc.core.contract import REFUSED_HEADER, RESERVATION_HEADER, SERVED_HEADER
from extproc.wire.calls import RpcCall
from extproc.wire.processor import Processor
from extproc.wire.seal import EVENT

#: Takes a reservation's id, whether the engine refused, and who answers ("" where that is not said); says
#: whether it knew the request.
FirstToken = Callable[[str, bool, str], bool]


class FirstTokens:
    """The handler of the unary method; `first_token` None takes the events and does nothing with them."""

    def __init__(self, processor: Processor, first_token: FirstToken | None) -> None:
        self._processor = processor
        self._first_token = first_token

    def receive(self, _: bytes, call: RpcCall) -> bytes:
        """Take one event; answers empty, whatever becomes of it."""
        self.take(call.metadata())
        return b""

    def take(self, metadata: Iterable[tuple[str, str]]) -> None:
        """The event of a call with these headers."""
        sealed, refused, served_by = "", False, ""
        for name, value in metadata:
            if name == RESERVATION_HEADER:
                sealed = value
            elif name == REFUSED_HEADER:
                refused = True
            elif name == SERVED_HEADER:
                served_by = value
        counts = self._processor.scheduler.counts
        counts["events.first_token"] += 1
        if refused:
            counts["events.refused"] += 1
        reservation_id = self._processor.seal.opened(sealed, EVENT)
        if reservation_id is None:
            counts["events.forged"] += 1
            return
        try:
            if self._first_token is None or not self._first_token(reservation_id, refused, served_by):
                counts["events.unknown"] += 1
        except Exception as error:  # noqa: BLE001 (an event is a hint: a fault of ours must not reach Envoy)
            self._processor.failed(error, "first token")
