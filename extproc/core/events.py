"""What becomes of requests, told while it happens: one emitter, and whoever wants to hear.

Owns the events; nobody tells of a request in another way. Everything here is called on the request path: an
observer returns within microseconds, raises nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from extproc.core.cachekeys.values import CachedAnswer
from extproc.core.decide import RoutingRequest
from extproc.core.outcome import Outcome, Reject, Reservation, Routed
from extproc.core.quota import Amounts
from extproc.core.slo import Sample


class Settled(msgspec.Struct, frozen=True):
    """A request's end, once each, as the books took it.

    `outcome` has its counts judged and completed (meter.py), `charged` is what its tenant pays, and `sample`
    what it says of its class's targets. `here`: this service decided on it. Each service of several hears of
    all: who adds the services' figures up counts those of `here` alone.
    """

    outcome: Outcome
    charged: Amounts
    sample: Sample
    here: bool


class Observer:
    """Hears what becomes of each request; each method does nothing until it is overridden."""

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """It was sent to an endpoint, at once or after a hold."""

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """It was turned away: its quota, no room, or its hold was over."""

    def cached(self, routing: RoutingRequest, answer: CachedAnswer, *, now_ns: int) -> None:
        """It was answered from the cache: no endpoint hears of it, and nothing more is told of it."""

    def left(
        self, reservation_id: str, routing: RoutingRequest | None, *, gave_up: bool, now_ns: int
    ) -> None:
        """Its client left: while it was held (`routing`), or before the decision reached Envoy (None).

        `gave_up`: its first token was overdue, so that it missed its class's target.
        """

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """Refused before it was routed: no identity (`tenant` is ""), malformed, unknown model or path."""

    def decided(self, elapsed_ns: int, *, now_ns: int) -> None:
        """A decision was made (a hold is one) in `elapsed_ns` of this service, waiting apart."""

    def first_token(self, reservation_id: str, *, refused: bool, now_ns: int) -> None:
        """A stream's first chunk came; `refused`: it says that the engine is overloaded."""

    def settled(self, event: Settled, *, now_ns: int) -> None:
        """A request has ended."""

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """A request's end never came."""


#: What an observer hears of.
_EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class EventEmitter(Observer):
    """The emitter: what it is told, it tells every observer, in order.

    `failed` hears of an observer's exception: by then the request is in the books, and goes on.
    """

    def __init__(self) -> None:
        self.failed: Callable[[Exception, str], None] = raises
        self.observers = ()

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Whom it tells."""
        return self._observers

    @observers.setter
    def observers(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        for event in _EVENTS:
            # Most hear of few events: only those who do something at one are called, and nothing is between.
            hearers = [
                getattr(each, event)
                for each in observers
                if getattr(type(each), event) is not getattr(Observer, event)
            ]
            setattr(self, event, self._teller(event, hearers))

    def _teller(self, event: str, hearers: Sequence[Callable[..., None]]) -> Callable[..., None]:
        def tell(*what: object, **facts: object) -> None:
            for hears in hearers:
                try:
                    hears(*what, **facts)
                except Exception as error:  # noqa: BLE001 (who watches a request must not lose it)
                    who: object = getattr(hears, "__self__", None)
                    self.failed(error, f"telling {type(who).__name__}")

        # Tracebacks and profiles tell the events apart.
        tell.__code__ = tell.__code__.replace(co_name=event, co_qualname=f"EventEmitter.{event}")
        return tell


def raises(error: Exception, _what: str) -> None:
    """Where nobody else hears of it."""
    raise error
