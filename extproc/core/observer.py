"""Who watches decisions: the record of traffic, and whoever tunes by it.

Owns the interface alone. An observer is called on the request path: it returns within microseconds, raises
nothing and changes nothing.
"""

from __future__ import annotations

from typing import Protocol

from extproc.core.decide import Case
from extproc.core.outcome import Reject, Routed


class Observer(Protocol):
    """Hears what became of each request that a tenant may make; how it ended comes with its record."""

    def placed(self, case: Case, routed: Routed, *, now_ns: int) -> None:
        """It was sent to an endpoint, at once or after a hold."""
        ...

    def refused(self, case: Case, reject: Reject, *, now_ns: int) -> None:
        """It was turned away: its quota, no room, or its hold was over."""
        ...

    def left(self, reservation_id: str, case: Case | None, *, now_ns: int) -> None:
        """Its client left: while it was held (`case`), or before the decision reached Envoy (None)."""
        ...
