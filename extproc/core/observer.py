"""Who watches requests pass: the record of traffic, figures, traces, whoever tunes by them.

Owns the interfaces alone. Everything here is called on the request path: it returns within microseconds,
raises nothing and changes nothing.
"""

from __future__ import annotations

from extproc.core.decide import RoutingRequest
from extproc.core.outcome import Outcome, Reject, Reservation, Routed


class Observer:
    """Hears what becomes of each request; each method does nothing until it is overridden."""

    def placed(self, routing: RoutingRequest, routed: Routed, *, now_ns: int) -> None:
        """It was sent to an endpoint, at once or after a hold."""

    def refused(self, routing: RoutingRequest, reject: Reject, *, now_ns: int) -> None:
        """It was turned away: its quota, no room, or its hold was over."""

    def left(self, reservation_id: str, routing: RoutingRequest | None, *, now_ns: int) -> None:
        """Its client left: while it was held (`routing`), or before the decision reached Envoy (None)."""

    def turned_away(self, tenant: str, reject: Reject, *, now_ns: int) -> None:
        """Refused before it was a case: no identity (`tenant` is ""), malformed, unknown model or path."""

    def decided(self, elapsed_ns: int, *, now_ns: int) -> None:
        """A decision was made (a hold is one) in `elapsed_ns` of this service, waiting apart."""

    def first_token(self, reservation_id: str, *, refused: bool, now_ns: int) -> None:
        """A stream's first chunk came; `refused`: it says that the engine is overloaded."""

    def ended(self, outcome: Outcome, *, now_ns: int, here: bool) -> None:
        """A request's record came, once each; `here`: this service decided on it.

        Each service of several hears of all: who adds the services' figures up counts those of `here` alone.
        """

    def expired(self, reservation: Reservation, *, now_ns: int) -> None:
        """A request's end never came."""
