"""How a gateway is told what was decided: one small interface, and our own Envoy's way.

Owns `Reply`, what a transport is to send. The picker protocol's way is picker/responder.py's.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from extproc.core.cachekeys import AskAnswer
from extproc.core.outcome import LocalAnswer, Reject, Routed
from extproc.core.remote.identity import AskTaken
from extproc.core.request import Dialect
from extproc.core.scheduler import AskQuota
from extproc.wire import codec
from extproc.wire.processor import Processor

#: Envoy waits this much longer than a hold can last, so that the service's own 429 comes first.
HOLD_MARGIN_MS = 2_000
#: What is told to who is refused since too much of others' bodies is kept.
BODIES_HELD = "the gateway holds as much of requests' bodies as it may"


class Reply(msgspec.Struct, frozen=True):
    """What to send, and whether the exchange ends with it."""

    data: bytes
    end: bool
    #: The reservation that the reply carries, so that a client's leaving can undo it.
    reservation_id: str = ""
    #: The real answer comes later: `Exchange.when_ready` says when.
    wait: bool = False
    #: What goes out right after it, in order.
    more: tuple[bytes, ...] = ()
    #: It is sent only so much later.
    after_s: float = 0.0
    #: Nothing to send yet: the quota's shared store must be asked, and `Exchange.answered` told; or the store
    #: of answers, and `Exchange.looked`. It is sent once other services have been asked of a site's token.
    ask: AskQuota | AskAnswer | AskTaken | None = None


class Responder(Protocol):
    """One exchange's answers, in its gateway's protocol."""

    @property
    def asks_usage(self) -> bool:
        """Whether usage that was asked for in the client's name is taken out of the answer again."""

    @property
    def caches(self) -> bool:
        """Whether its gateway gathers answers for the cache."""

    @property
    def shows_heads(self) -> bool:
        """Whether of a form the head alone comes here."""

    def let_come(self) -> Reply:
        """The headers are in order; the body is awaited."""

    def hold(self, left_ms: int) -> Reply:
        """It waits for a replica, for so long at most."""

    def route(
        self,
        decision: Routed,
        *,
        phase: str,
        explained: bool,
        as_json: bool,
        trace: str,
        body: bytes | None,
        usage: str,
        cache: str = "",
    ) -> Reply:
        """It goes to the decision's endpoints.

        `phase` is what it was decided on (request_headers or request_body); `explained` tells the client why;
        `as_json` declares its body as what it was read as; `trace` rides along; `body` goes on in place of
        the client's, with `usage` asked for in its name; with `cache` its answer is gathered, up to so many
        bytes.
        """

    def refuse(self, answer: LocalAnswer | Reject, dialect: Dialect) -> Reply:
        """An answer without an upstream."""


class EnvoyResponder:
    """The answers of a stream that ends with its decision, of our own Envoy."""

    __slots__ = ("_processor",)

    asks_usage = True
    shows_heads = True
    caches = True

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def let_come(self) -> Reply:
        """Nothing of the request changes so far."""
        return _LET_COME

    def hold(self, left_ms: int) -> Reply:
        """Envoy's patience is made longer than the hold."""
        return Reply(codec.hold(left_ms + HOLD_MARGIN_MS), end=False, wait=True)

    def route(
        self,
        decision: Routed,
        *,
        phase: str,
        explained: bool,
        as_json: bool,
        trace: str,
        body: bytes | None,
        usage: str,
        cache: str = "",
    ) -> Reply:
        """Where it goes, and with which body in place of its own."""
        processor, reservation = self._processor, decision.reservation
        data = codec.routed(
            decision,
            phase,
            seal=processor.seal,
            event_cluster=processor.event_cluster,
            explained=explained,
            carried=trace,
            body=body,
            as_json=as_json,
            usage=usage,
            cache=cache,
            path_prefix=processor.path_prefixes.get(reservation.pool, ""),
            site="" if processor.sites is None else processor.sites.token(reservation),
        )
        return Reply(data, end=True, reservation_id=reservation.id)

    def refuse(self, answer: LocalAnswer | Reject, dialect: Dialect) -> Reply:
        """Envoy answers itself."""
        return Reply(codec.immediate(answer, dialect), end=True)


_LET_COME = Reply(codec.CONTINUE["request_headers"], end=False)
