"""Which replica holds a response that was made before: who continues one, or asks for it, goes there.

Owns the map and its bounds. An engine answers whoever knows an id: a tenant's ids are its own here, and
another's are as if they were not there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from extproc.core.errors import Error
from extproc.core.events import Observer, Settled
from extproc.core.outcome import Reject

#: Responses that are known, and of one tenant; the one that was made longest ago is forgotten first.
RESPONSES_MAX: Final = 200_000
RESPONSES_PER_TENANT_MAX: Final = 20_000
#: Characters of an id that a message repeats.
ID_SHOWN_MAX: Final = 80


class HeldResponse(msgspec.Struct, frozen=True):
    """Whose it is, which model made it, and where it is kept."""

    tenant: str
    model: str
    address: str


class HeldResponses(Observer):
    """Learns from the records of requests that have ended."""

    def __init__(
        self, *, responses_max: int = RESPONSES_MAX, per_tenant_max: int = RESPONSES_PER_TENANT_MAX
    ) -> None:
        self._responses_max, self._per_tenant_max = responses_max, per_tenant_max
        self._held: OrderedDict[str, HeldResponse] = OrderedDict()
        self._of_tenant: dict[str, OrderedDict[str, None]] = {}
        #: What has come since somebody took it; None where nobody does.
        self.fresh: list[tuple[str, HeldResponse]] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def settled(self, event: Settled, *, now_ns: int) -> None:  # noqa: ARG002 (the observer's)
        """A request has ended; where its answer had an id, who answered holds it."""
        outcome = event.outcome
        if outcome.response_id and outcome.served_by:
            reservation = outcome.reservation
            held = HeldResponse(reservation.tenant, reservation.model, outcome.served_by)
            self.put(outcome.response_id, held)

    def put(self, identity: str, held: HeldResponse) -> None:
        """Remember one. Who has it first keeps it: an engine makes no id twice, but a client may."""
        if identity in self._held:
            return
        self._held[identity] = held
        if self.fresh is not None:
            self.fresh.append((identity, held))
        mine = self._of_tenant.setdefault(held.tenant, OrderedDict())
        mine[identity] = None
        if len(mine) > self._per_tenant_max:
            self._forget(next(iter(mine)))
        if len(self._held) > self._responses_max:
            self._forget(next(iter(self._held)))

    def of(self, tenant: str, identity: str) -> HeldResponse | Reject:
        """Where a tenant's response is; a 404 where it has none by this name."""
        held = self._held.get(identity)
        if held is None or held.tenant != tenant:
            return Error.RESPONSE_NOT_FOUND.reject(id=identity[:ID_SHOWN_MAX])
        return held

    def _forget(self, identity: str) -> None:
        held = self._held.pop(identity)
        mine = self._of_tenant[held.tenant]
        del mine[identity]
        if not mine:
            del self._of_tenant[held.tenant]
